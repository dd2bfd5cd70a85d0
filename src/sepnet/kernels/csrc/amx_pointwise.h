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
enum { SUM_PARTS = 4 };                  /* of a thread, which each have sums of their own */

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

/* Writes so many rows of a tile, a cache line each, and adds what is summed of them. */
INLINE void put_rows(const tall_product *s, square_tile sum, int64_t row, int64_t rows, int64_t col, const result_sums *sums) {
    vf bias[2] = {splat(0), splat(0)};
    if (s->bias) bias[0] = load_lanes(s->bias, col, VL, SEPNET_FLOAT32), bias[1] = load_lanes(s->bias, col + VL, VL, SEPNET_FLOAT32);
    const int64_t at = row * s->cols + col;
    uint16_t *to = s->c + at;
    if (s->sums == MOMENTS)
        put_with_moments(sum, bias, to, s->cols, rows, col, sums);
    else if (s->sums == GATED)
        put_gated(sum, to, s->cols, rows, col, sums, &s->gate, s->of + at);
    else
        for (int64_t r = 0; r < rows; r++) *(vfu *)(to + r * s->cols) = narrow_both(sum[r][0] + bias[0], sum[r][1] + bias[1]);
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

/* A tile of pixels through panels [begin, end), while the next one is fetched: as many lines of it with a step as a step reads, dealt out to
 * all panels. */
static void multiply_pixels(const tall_product *s, int64_t row, int64_t begin, int64_t end, uint16_t *room, const result_sums *sums) {
    const int64_t rows = sepnet_min(SQ_ROWS, s->rows - row), panels = end - begin;
    const uint16_t *a = tile_pixels(s, row, rows, room, begin == 0);
    const char *next_pixels = (const char *)(s->a + (row + SQ_ROWS) * s->depth);
    lines_ahead next = {next_pixels, row + 2 * SQ_ROWS <= s->rows ? (SQ_ROWS + panels - 1) / panels : 0};
    for (int64_t p = begin; p < end; p++) {
        square_tile sum;
        multiply_fetching(sum, (const float *)a, s->depth / 2, s->panels + p * panel_units(s), s->depth / 2, &next);
        put_rows(s, sum, row, rows, p * SQ_COLS, sums);
    }
}

static void multiply_band(const tall_product *s, int64_t first, int64_t last, uint16_t *room, result_sums *sums) {
    const int64_t panels = s->cols / SQ_COLS, at_once = sepnet_max(1, PANELS_BYTES / (panel_units(s) * (int64_t)sizeof(float)));
    const int64_t apart = at_once < panels ? s->depth : 0;
    const int fresh = sums->fresh;
    for (int64_t p = 0; p < panels; p += at_once)
        for (int64_t row = first; row < last; row += SQ_ROWS) {
            sums->fresh = fresh && row == first;
            multiply_pixels(s, row, p, sepnet_min(p + at_once, panels), room + (row - first) * apart, sums);
        }
}

/* Pixels [begin, end), a band at a time; begin is a multiple of a tile. `fresh`: the part's first ones. */
static void multiply_bands(const tall_product *s, int64_t begin, int64_t end, int64_t part, int64_t worker, int fresh) {
    char *room = s->scratch + worker * (pixels_bytes(s->depth) + side_bytes(s->cols));
    result_sums sums = {(float *)(room + pixels_bytes(s->depth)), s->part_sums + part * SIDE_ROWS * s->cols, s->cols, 0};
    for (int64_t first = begin; first < end; first += BAND_PIXELS) {
        sums.fresh = fresh && first == begin;
        if (s->sums) begin_sums(&sums);
        multiply_band(s, first, sepnet_min(first + BAND_PIXELS, end), (uint16_t *)room, &sums);
        if (s->sums) keep_sums(&sums, fresh && first == begin);
    }
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
