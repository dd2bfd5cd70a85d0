/* Pointwise convolution of bfloat16 maps with AMX, forward and dL/dx. Channels come in 32s, as a tile has rows and columns; included after
 * amx_sides.h.
 *
 * y = x w' and dL/dx = g w take a map's pixels as the rows of a matrix, as they lie. The weights are packed once a call, rounded to
 * bfloat16, to panels of 32 results. A band of pixels goes through as many panels as the L2 cache holds, then through the next ones; what
 * it reads next is fetched meanwhile. */

enum { CHANNELS = SQ_ROWS };             /* of which a number of channels is a multiple */
enum { BAND_TILES = 8 };                 /* tiles of pixels that go through some panels together */
enum { BAND_PIXELS = BAND_TILES * SQ_ROWS };
enum { PANELS_BYTES = 640 << 10 };       /* gone through together */
enum { SUM_PARTS = 4 };                  /* of a thread, which each have sums of their own, where dL/dx is not made with dL/dweight */

/* c (rows, cols) = a (rows, depth) * small (depth, cols) + bias. `transposed`: small lies as (cols, depth). */
typedef struct {
    int64_t rows, depth, cols, parts;
    const uint16_t *a;
    const float *small, *bias;
    int transposed, threads;
    uint16_t *c;
    side enters;        /* of a */
    int sums;
    side gate;          /* GATED: of the map that c is the gradient of, in the order of registers */
    const uint16_t *of; /* that map */
    double *part_sums;  /* [part][SIDE_ROWS][cols] */
    float *panels;      /* [panel][unit][SQ_COLS] */
    char *scratch;      /* a worker: pixels as they enter, or the last ones; floats of sums */
} tall_product;

static int64_t panel_units(const tall_product *s) { return s->depth / 2 * SQ_COLS; }

static int64_t weights_panels_bytes(int64_t depth, int64_t cols) { return aligned(depth / 2 * cols * (int64_t)sizeof(float)); }
static int64_t pixels_bytes(int64_t depth) { return aligned(BAND_PIXELS * depth * (int64_t)sizeof(uint16_t)); }
static int64_t side_bytes(int64_t cols) { return aligned(SIDE_ROWS * cols * (int64_t)sizeof(float)); }

static int64_t tall_bytes(int64_t depth, int64_t cols, int64_t threads) {
    const int64_t part_sums = SUM_PARTS * threads * SIDE_ROWS * cols * (int64_t)sizeof(double);
    return weights_panels_bytes(depth, cols) + side_bytes(cols) + threads * (pixels_bytes(depth) + side_bytes(cols)) + part_sums;
}

static int64_t bands_of(const tall_product *s) { return (s->rows + BAND_PIXELS - 1) / BAND_PIXELS; }

static void place_tall(tall_product *s, void *workspace) {
    s->panels = (float *)aligned((int64_t)(intptr_t)workspace);
    float *constants = (float *)((char *)s->panels + weights_panels_bytes(s->depth, s->cols));
    if (s->sums == GATED) s->gate = in_register_order(&s->gate, s->cols, constants);
    s->scratch = (char *)constants + side_bytes(s->cols);
    s->part_sums = (double *)(s->scratch + s->threads * (pixels_bytes(s->depth) + side_bytes(s->cols)));
    s->parts = s->sums ? sepnet_min(bands_of(s), SUM_PARTS * s->threads) : bands_of(s);
}

/* --- weights ------------------------------------------------------------------------------------------------------------------ */

/* 32 rows of small are a panel's columns; 32 values of them at a time are 16 units. */
static void pack_weight_rows(const float *small, int64_t depth, float *to) {
    for (int64_t k = 0; k < depth; k += 2 * VL, to += VL * SQ_COLS)
        for (int v = 0; v < SQ_VECTORS; v++) {
            vf line[VL];
#pragma GCC unroll 16
            for (int n = 0; n < VL; n++) {
                const float *from = small + (v * VL + n) * depth + k;
                line[n] = narrow_both(load_lanes(from, 0, VL, SEPNET_FLOAT32), load_lanes(from, VL, VL, SEPNET_FLOAT32));
            }
            turn_units(line);
#pragma GCC unroll 16
            for (int u = 0; u < VL; u++) *(vf *)(to + u * SQ_COLS + v * VL) = line[u];
        }
}

static void pack_weight_columns(const float *small, int64_t depth, int64_t cols, float *to) {
    for (int64_t k = 0; k < depth; k += 2, small += 2 * cols, to += SQ_COLS)
        for (int v = 0; v < SQ_VECTORS; v++) {
            const vf first = load_lanes(small, v * VL, VL, SEPNET_FLOAT32);
            const vf second = load_lanes(small + cols, v * VL, VL, SEPNET_FLOAT32);
            *(vf *)(to + v * VL) = (vf)((vu)widen(narrow(second)) | ((vu)widen(narrow(first)) >> 16));
        }
}

static void pack_weight_part(void *context, int64_t panel, sepnet_worker worker) {
    (void)worker;
    const tall_product *s = context;
    float *to = s->panels + panel * panel_units(s);
    if (s->transposed)
        pack_weight_rows(s->small + panel * SQ_COLS * s->depth, s->depth, to);
    else
        pack_weight_columns(s->small + panel * SQ_COLS, s->depth, s->cols, to);
}

/* --- products ----------------------------------------------------------------------------------------------------------------- */

/* The next lines that are asked of the memory, so many with each of a tile's steps; 0: none. */
typedef struct {
    const char *at;
    int64_t lines;
} lines_ahead;

/* Results of a band of pixels: the last tile's are still to be written, while the next one is multiplied. */
typedef struct {
    square_tile sum[2];
    int at, fresh;          /* which of the two; whether the first row is the part's, which sums are about */
    int64_t row, rows, col; /* rows 0: there are none */
    result_sums sums;
} results;

/* The writer of that tile. */
INLINE writer open_last(const tall_product *s, const results *r, const int kind) {
    return open_writer(&r->sums, s->bias, &s->gate, r->col, r->sum[r->at][0], r->fresh, kind);
}

INLINE void write_rows(const tall_product *s, const results *r, writer *w, int64_t begin, int64_t end, const int kind) {
    for (int64_t row = begin; row < end; row++) {
        const int64_t at = (r->row + row) * s->cols + r->col;
        write_row(w, r->sum[r->at][row], s->c + at, kind == GATED ? s->of + at : NULL, SQ_ROWS * s->cols, kind);
    }
}

/* A tile's products, and meanwhile the rows of the one before, so many with a step: nothing would be multiplied while they are written.
 * Some of the next pixels' lines are fetched with each step, as many as it reads: in one go they would wait for each other. */
INLINE void multiply_writing(const tall_product *s, results *r, const float *a, const float *panel, lines_ahead *next, const int kind) {
    const int64_t depth = s->depth / 2, steps = depth / SQ_UNITS, share = (r->rows + steps - 1) / steps;
    writer w = open_last(s, r, kind);
    clear_sums();
    compiler_stores_all(panel);
    for (int64_t u = 0, row = 0; u < depth; u += SQ_UNITS, row += share, panel += SQ_UNITS * SQ_COLS) {
        next->at = fetch(next->at, (size_t)(next->lines * CACHE_LINE));
        multiply_step(a + u, a + u + VL * depth, depth * (int64_t)sizeof(float), panel);
        write_rows(s, r, &w, row, sepnet_min(row + share, r->rows), kind);
    }
    close_writer(&w, &r->sums, r->col, kind);
    r->at ^= 1;
    store_sums((float *)r->sum[r->at]);
}

static void write_last(const tall_product *s, results *r, const int kind) {
    writer w = open_last(s, r, kind);
    write_rows(s, r, &w, 0, r->rows, kind);
    close_writer(&w, &r->sums, r->col, kind);
    r->rows = r->fresh = 0;
}

/* Where a tile's pixels are read: where they lie, or, as they enter and for the last ones, in `room`, whither the first group of panels
 * brings them; there is room for a band, if other groups follow. */
INLINE const uint16_t *tile_pixels(const tall_product *s, int64_t row, int64_t rows, uint16_t *room, int first) {
    const uint16_t *a = s->a + row * s->depth;
    if (!s->enters.scale && rows == SQ_ROWS) return a;
    if (first && s->enters.scale)
        enter_pixels(&s->enters, a, rows, s->depth, room);
    else if (first)
        memcpy(room, a, (size_t)(rows * s->depth) * sizeof *a);
    return room;
}

/* A tile of pixels through panels [begin, end), to which what is fetched of the next one is dealt out. */
INLINE void multiply_pixels(const tall_product *s, int64_t row, int64_t begin, int64_t end, uint16_t *room, results *r, int fresh,
                            const int kind) {
    const int64_t rows = sepnet_min(SQ_ROWS, s->rows - row), panels = end - begin;
    const uint16_t *a = tile_pixels(s, row, rows, room, begin == 0);
    const char *next_pixels = (const char *)(s->a + (row + SQ_ROWS) * s->depth);
    lines_ahead next = {next_pixels, row + 2 * SQ_ROWS <= s->rows ? (SQ_ROWS + panels - 1) / panels : 0};
    for (int64_t p = begin; p < end; p++) {
        multiply_writing(s, r, (const float *)a, s->panels + p * panel_units(s), &next, kind);
        r->row = row, r->rows = rows, r->col = p * SQ_COLS, r->fresh = fresh;
    }
}

/* Pixels [first, last) of at most a band, all panels. `fresh`: a part's first ones. */
INLINE void multiply_band(const tall_product *s, int64_t first, int64_t last, uint16_t *room, results *r, int fresh, const int kind) {
    const int64_t panels = s->cols / SQ_COLS, at_once = sepnet_max(1, PANELS_BYTES / (panel_units(s) * (int64_t)sizeof(float)));
    const int64_t apart = at_once < panels ? s->depth : 0;
    if (kind != NO_SUMS) begin_sums(&r->sums);
    for (int64_t p = 0; p < panels; p += at_once)
        for (int64_t row = first; row < last; row += SQ_ROWS)
            multiply_pixels(s, row, p, sepnet_min(p + at_once, panels), room + (row - first) * apart, r, fresh && row == first, kind);
    write_last(s, r, kind);
    if (kind != NO_SUMS) keep_sums(&r->sums, fresh);
}

static void plain_band(const tall_product *s, int64_t first, int64_t last, uint16_t *room, results *r, int fresh) {
    multiply_band(s, first, last, room, r, fresh, NO_SUMS);
}
static void moments_band(const tall_product *s, int64_t first, int64_t last, uint16_t *room, results *r, int fresh) {
    multiply_band(s, first, last, room, r, fresh, MOMENTS);
}
static void gated_band(const tall_product *s, int64_t first, int64_t last, uint16_t *room, results *r, int fresh) {
    multiply_band(s, first, last, room, r, fresh, GATED);
}

/* Pixels [begin, end), a band at a time; begin is a multiple of a tile. `fresh`: the part's first ones. */
static void multiply_bands(const tall_product *s, int64_t begin, int64_t end, int64_t part, int64_t worker, int fresh) {
    char *room = s->scratch + worker * (pixels_bytes(s->depth) + side_bytes(s->cols));
    void (*band)(const tall_product *, int64_t, int64_t, uint16_t *, results *, int) = s->sums == MOMENTS ? moments_band
                                                                                     : s->sums == GATED   ? gated_band
                                                                                                          : plain_band;
    results r; /* the sums are not cleared */
    r.at = r.fresh = 0, r.row = r.rows = r.col = 0;
    r.sums = (result_sums){(float *)(room + pixels_bytes(s->depth)), s->part_sums + part * SIDE_ROWS * s->cols, s->cols};
    for (int64_t first = begin; first < end; first += BAND_PIXELS)
        band(s, first, sepnet_min(first + BAND_PIXELS, end), (uint16_t *)room, &r, fresh && first == begin);
}

static void tall_part(void *context, int64_t part, sepnet_worker worker) {
    const tall_product own = *(const tall_product *)context, *s = &own; /* which no store can alias */
    const int64_t bands = bands_of(s), begin = sepnet_part_begin(bands, s->parts, part), end = sepnet_part_begin(bands, s->parts, part + 1);
    set_up_tiles();
    multiply_bands(s, begin * BAND_PIXELS, sepnet_min(end * BAND_PIXELS, s->rows), part, worker.index, 1);
    give_tiles_back();
}

/* The parts' sums, in their order: the rows that sepnet_norm_statistics takes, or those of sepnet_norm_gradients. */
static void reduce_result_sums(const tall_product *s, double *rows) {
    const int64_t cols = s->cols, bands = bands_of(s);
    if (s->sums == MOMENTS) {
        for (int64_t c = 0; c < cols; c++) rows[c] = s->part_sums[place_of(c)];
        rows += cols;
    }
    for (int64_t c = 0; c < cols; c++) {
        const double *at = s->part_sums + place_of(c), origin = at[0];
        rows[c] = rows[cols + c] = 0;
        for (int64_t p = 0; p < s->parts; p++, at += SIDE_ROWS * cols) {
            const int64_t last = sepnet_min(sepnet_part_begin(bands, s->parts, p + 1) * BAND_PIXELS, s->rows);
            const int64_t pixels = last - sepnet_part_begin(bands, s->parts, p) * BAND_PIXELS;
            const double sum = at[cols], apart = s->sums == MOMENTS ? at[0] - origin : 0, all = apart * (double)pixels;
            rows[c] += sum + all, rows[cols + c] += at[2 * cols] + apart * (2 * sum + all);
        }
    }
}

static void prepare_tall(tall_product *s, void *workspace) {
    place_tall(s, workspace);
    sepnet_run_parts(pack_weight_part, s, s->cols / SQ_COLS, s->threads);
}

/* sums: rows as sepnet_joined says, or NULL. */
static void run_tall(tall_product s, double *sums, void *workspace) {
    prepare_tall(&s, workspace);
    sepnet_run_parts(tall_part, &s, s.parts, s.threads);
    if (s.sums) reduce_result_sums(&s, sums);
}
