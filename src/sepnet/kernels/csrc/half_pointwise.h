/* Pointwise convolution of bfloat16 maps, forward and dL/dx, by AMX or by vectors that multiply pairs. Channels come in 32s; included
 * after half_sides.h.
 *
 * y = x w' and dL/dx = g w take a map's pixels as the rows of a matrix, as they lie. The weights are packed once a call, rounded to
 * bfloat16, to panels of 32 results. A band of pixels goes through as many panels as the L2 cache holds, then through the next ones; what
 * it reads next is fetched meanwhile. A block is 32 pixels by a panel. */

enum { PIXELS = 32, CHANNELS = 32 };     /* of a block; CHANNELS: of which a number of channels is a multiple */
enum { UNITS = CHANNELS / 2 };           /* pairs of values, which lie in a float's place */
enum { BAND_PIXELS = 8 * PIXELS };       /* that go through some panels together, at most */
enum { PANELS_BYTES = 640 << 10 };       /* gone through together */
enum { SUM_PARTS = 4 };                  /* of a thread, which each have sums of their own, where dL/dx is not made with dL/dweight */

/* c (rows, cols) = a (rows, depth) * small (depth, cols) + bias. `transposed`: small lies as (cols, depth). */
typedef struct {
    int64_t rows, depth, cols, band, parts; /* band: pixels */
    const uint16_t *a;
    const float *small, *bias;
    int transposed, threads;
    uint16_t *c;
    side enters;        /* of a */
    int streams, sums;  /* streams: results go past the caches */
    side gate;          /* GATED: of the map that c is the gradient of, in the order of registers */
    const uint16_t *of; /* that map */
    double *part_sums;  /* [part][SIDE_ROWS][cols] */
    float *panels;      /* [panel][unit][CHANNELS] */
    char *scratch;      /* a worker: pixels as they enter, or the last ones; floats of sums */
} tall_product;

static int64_t panel_units(const tall_product *s) { return s->depth / 2 * CHANNELS; }

static int64_t weights_panels_bytes(int64_t depth, int64_t cols) { return aligned(depth / 2 * cols * (int64_t)sizeof(float)); }
static int64_t pixels_bytes(int64_t depth) { return aligned(BAND_PIXELS * depth * (int64_t)sizeof(uint16_t)); }
static int64_t side_bytes(int64_t cols) { return aligned(SIDE_ROWS * cols * (int64_t)sizeof(float)); }

static int64_t tall_bytes(int64_t depth, int64_t cols, int64_t threads) {
    const int64_t part_sums = SUM_PARTS * threads * SIDE_ROWS * cols * (int64_t)sizeof(double);
    return weights_panels_bytes(depth, cols) + side_bytes(cols) + threads * (pixels_bytes(depth) + side_bytes(cols)) + part_sums;
}

/* As many pixels for each thread, as far as that comes out even. */
static int64_t band_pixels(const tall_product *s) {
    const int64_t bands = sepnet_round_up((s->rows + BAND_PIXELS - 1) / BAND_PIXELS, s->threads);
    return sepnet_round_up((s->rows + bands - 1) / bands, PIXELS);
}

static int64_t bands_of(const tall_product *s) { return (s->rows + s->band - 1) / s->band; }

static int streams_results(const tall_product *s) {
    const int64_t bytes = s->rows * s->cols * (int64_t)sizeof *s->c;
    return bytes >= sepnet_stream_bytes(0) && (intptr_t)s->c % CACHE_LINE == 0;
}

static void place_tall(tall_product *s, void *workspace) {
    s->panels = (float *)aligned((int64_t)(intptr_t)workspace);
    float *constants = (float *)((char *)s->panels + weights_panels_bytes(s->depth, s->cols));
    if (s->sums == GATED) s->gate = in_register_order(&s->gate, s->cols, constants);
    s->scratch = (char *)constants + side_bytes(s->cols);
    s->part_sums = (double *)(s->scratch + s->threads * (pixels_bytes(s->depth) + side_bytes(s->cols)));
    s->streams = streams_results(s);
    s->band = band_pixels(s);
    s->parts = s->sums ? sepnet_min(bands_of(s), SUM_PARTS * s->threads) : bands_of(s);
}

/* --- weights ------------------------------------------------------------------------------------------------------------------ */

/* 32 rows of small are a panel's columns; 32 values of them at a time are 16 units. */
static void pack_weight_rows(const float *small, int64_t depth, float *to) {
    for (int64_t k = 0; k < depth; k += 2 * VL, to += VL * CHANNELS)
        for (int v = 0; v < CHANNELS / VL; v++) {
            vf line[VL];
#pragma GCC unroll 16
            for (int n = 0; n < VL; n++) {
                const float *from = small + (v * VL + n) * depth + k;
                line[n] = narrow_both(load_lanes(from, 0, VL, SEPNET_FLOAT32), load_lanes(from, VL, VL, SEPNET_FLOAT32));
            }
            turn_units(line);
#pragma GCC unroll 16
            for (int u = 0; u < VL; u++) *(vf *)(to + u * CHANNELS + v * VL) = line[u];
        }
}

static void pack_weight_columns(const float *small, int64_t depth, int64_t cols, float *to) {
    for (int64_t k = 0; k < depth; k += 2, small += 2 * cols, to += CHANNELS)
        for (int v = 0; v < CHANNELS / VL; v++) {
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
        pack_weight_rows(s->small + panel * CHANNELS * s->depth, s->depth, to);
    else
        pack_weight_columns(s->small + panel * CHANNELS, s->depth, s->cols, to);
}

/* --- products ----------------------------------------------------------------------------------------------------------------- */

/* The next lines that are asked of the memory, so many with each step of 32 channels; 0: none. */
typedef struct {
    const char *at;
    int64_t lines;
} lines_ahead;

/* A block of the results. `fresh`: its first row is the part's, which sums are about; rows 0: there is none. */
typedef struct {
    int64_t row, rows, col;
    int fresh;
} place;

INLINE void write_block_row(const tall_product *s, writer *w, place to, int64_t row, const vf sum[2], const int kind) {
    const int64_t at = (to.row + row) * s->cols + to.col;
    write_row(w, sum, s->c + at, kind == GATED ? s->of + at : NULL, PIXELS * s->cols, kind);
}

/* What multiplies a block, and `results`, which a band has: multiply_block, finish_blocks. */
#ifdef HAVE_AMX
#include "amx_blocks.h"
#else
#include "vector_blocks.h"
#endif

/* Where a block's pixels are read: where they lie, or, as they enter and for the last ones, in `room`, whither the first group of panels
 * brings them; there is room for a band, if other groups follow. */
INLINE const uint16_t *block_pixels(const tall_product *s, int64_t row, int64_t rows, uint16_t *room, int first) {
    const uint16_t *a = s->a + row * s->depth;
    if (!s->enters.scale && rows == PIXELS) return a;
    if (first && s->enters.scale)
        enter_pixels(&s->enters, a, rows, s->depth, room);
    else if (first)
        memcpy(room, a, (size_t)(rows * s->depth) * sizeof *a);
    return room;
}

/* A block of pixels through panels [begin, end), to which what is fetched of the next one is dealt out. */
INLINE void multiply_pixels(const tall_product *s, int64_t row, int64_t begin, int64_t end, uint16_t *room, results *r, int fresh,
                            const int kind) {
    const int64_t rows = sepnet_min(PIXELS, s->rows - row), panels = end - begin;
    const uint16_t *a = block_pixels(s, row, rows, room, begin == 0);
    const char *next_pixels = (const char *)(s->a + (row + PIXELS) * s->depth);
    lines_ahead next = {next_pixels, row + 2 * PIXELS <= s->rows ? (PIXELS + panels - 1) / panels : 0};
    for (int64_t p = begin; p < end; p++) {
        const place to = {row, rows, p * CHANNELS, fresh};
        multiply_block(s, r, to, (const float *)a, s->panels + p * panel_units(s), &next, kind);
    }
}

/* Pixels [first, last) of at most a band, all panels. `fresh`: a part's first ones. */
INLINE void multiply_band(const tall_product *s, int64_t first, int64_t last, uint16_t *room, results *r, int fresh, const int kind) {
    const int64_t panels = s->cols / CHANNELS, at_once = sepnet_max(1, PANELS_BYTES / (panel_units(s) * (int64_t)sizeof(float)));
    const int64_t apart = at_once < panels ? s->depth : 0;
    if (kind != NO_SUMS) begin_sums(&r->sums);
    for (int64_t p = 0; p < panels; p += at_once)
        for (int64_t row = first; row < last; row += PIXELS)
            multiply_pixels(s, row, p, sepnet_min(p + at_once, panels), room + (row - first) * apart, r, fresh && row == first, kind);
    finish_blocks(s, r, kind);
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

/* Pixels [begin, end), a band at a time; begin is a multiple of a block. `fresh`: the part's first ones. */
static void multiply_bands(const tall_product *s, int64_t begin, int64_t end, int64_t part, int64_t worker, int fresh) {
    char *room = s->scratch + worker * (pixels_bytes(s->depth) + side_bytes(s->cols));
    void (*band)(const tall_product *, int64_t, int64_t, uint16_t *, results *, int) = s->sums == MOMENTS ? moments_band
                                                                                     : s->sums == GATED   ? gated_band
                                                                                                          : plain_band;
    results r; /* the sums are not cleared */
    begin_blocks(&r);
    r.sums = (result_sums){(float *)(room + pixels_bytes(s->depth)), s->part_sums + part * SIDE_ROWS * s->cols, s->cols};
    for (int64_t first = begin; first < end; first += s->band)
        band(s, first, sepnet_min(first + s->band, end), (uint16_t *)room, &r, fresh && first == begin);
    if (s->streams) stream_fence();
}

static void tall_part(void *context, int64_t part, sepnet_worker worker) {
    const tall_product own = *(const tall_product *)context, *s = &own; /* which no store can alias */
    const int64_t begin = first_pixel(s->rows, s->band, s->parts, part), end = first_pixel(s->rows, s->band, s->parts, part + 1);
    set_up_tiles();
    multiply_bands(s, begin, end, part, worker.index, 1);
    give_tiles_back();
}

static void reduce_result_sums(const tall_product *s, double *rows) {
    add_parts(&(parts_sums){s->part_sums, s->cols, s->cols, s->parts, s->rows, s->band, s->sums, place_of}, rows);
}

static void prepare_tall(tall_product *s, void *workspace) {
    place_tall(s, workspace);
    sepnet_run_parts(pack_weight_part, s, s->cols / CHANNELS, s->threads);
}

/* sums: rows as sepnet_joined says, or NULL. */
static void run_tall(tall_product s, double *sums, void *workspace) {
    prepare_tall(&s, workspace);
    sepnet_run_parts(tall_part, &s, s.parts, s.threads);
    if (s.sums) reduce_result_sums(&s, sums);
}
