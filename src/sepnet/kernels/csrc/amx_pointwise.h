/* Pointwise convolution of bfloat16 maps with AMX, forward and dL/dx. Channels come in 32s, as a tile has rows and columns; included after
 * amx_tiles.h.
 *
 * y = x w' and dL/dx = g w take a map's pixels as the rows of a matrix, as they lie. The weights are packed once a call, rounded to
 * bfloat16, to panels of 32 results. A band of pixels goes through as many panels as the L2 cache holds, then through the next ones; what
 * it reads next is fetched meanwhile. */

enum { CHANNELS = SQ_ROWS };             /* of which a number of channels is a multiple */
enum { BAND_TILES = 8 };                 /* tiles of pixels in a task */
enum { PANELS_BYTES = 640 << 10 };       /* gone through together */

/* c (rows, cols) = a (rows, depth) * small (depth, cols) + bias. `transposed`: small lies as (cols, depth). */
typedef struct {
    int64_t rows, depth, cols;
    const uint16_t *a;
    const float *small, *bias;
    int transposed;
    uint16_t *c;
    float *panels;  /* [panel][unit][SQ_COLS] */
    uint16_t *rest; /* a tile's pixels, for the last ones */
} tall_product;

static int64_t panel_units(const tall_product *s) { return s->depth / 2 * SQ_COLS; }

static int64_t tall_bytes(int64_t depth, int64_t cols) {
    return aligned(depth / 2 * cols * (int64_t)sizeof(float)) + aligned(SQ_ROWS * depth * (int64_t)sizeof(uint16_t));
}

static void place_tall(tall_product *s, void *workspace) {
    s->panels = (float *)aligned((int64_t)(intptr_t)workspace);
    s->rest = (uint16_t *)((char *)s->panels + aligned(s->depth / 2 * s->cols * (int64_t)sizeof(float)));
}

/* --- weights ------------------------------------------------------------------------------------------------------------------ */

/* Two vectors of floats, rounded, one after the other. */
INLINE vf narrow_both(vf first, vf second) { return (vf)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

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

/* Writes so many rows of a tile, a cache line each. */
INLINE void put_rows(const tall_product *s, square_tile sum, int64_t row, int64_t rows, int64_t col) {
    const vf first = s->bias ? load_lanes(s->bias, col, VL, SEPNET_FLOAT32) : splat(0);
    const vf second = s->bias ? load_lanes(s->bias, col + VL, VL, SEPNET_FLOAT32) : splat(0);
    uint16_t *to = s->c + row * s->cols + col;
    for (int64_t r = 0; r < rows; r++) *(vfu *)(to + r * s->cols) = narrow_both(sum[r][0] + first, sum[r][1] + second);
}

/* A tile of pixels through panels [begin, end), while the next one is fetched: as many lines of it with a step as a step reads, dealt out to
 * all panels. */
static void multiply_pixels(const tall_product *s, int64_t row, int64_t begin, int64_t end) {
    const int64_t rows = sepnet_min(SQ_ROWS, s->rows - row), panels = end - begin;
    const uint16_t *a = s->a + row * s->depth;
    lines_ahead next = {(const char *)(a + SQ_ROWS * s->depth), row + 2 * SQ_ROWS <= s->rows ? (SQ_ROWS + panels - 1) / panels : 0};
    if (rows < SQ_ROWS) a = memcpy(s->rest, a, (size_t)(rows * s->depth) * sizeof *a);
    for (int64_t p = begin; p < end; p++) {
        square_tile sum;
        multiply_fetching(sum, (const float *)a, s->depth / 2, s->panels + p * panel_units(s), s->depth / 2, &next);
        put_rows(s, sum, row, rows, p * SQ_COLS);
    }
}

static void tall_part(void *context, int64_t band, sepnet_worker worker) {
    (void)worker;
    const tall_product own = *(const tall_product *)context, *s = &own; /* which no store can alias */
    const int64_t panels = s->cols / SQ_COLS, at_once = sepnet_max(1, PANELS_BYTES / (panel_units(s) * (int64_t)sizeof(float)));
    const int64_t first = band * BAND_TILES * SQ_ROWS, last = sepnet_min(first + BAND_TILES * SQ_ROWS, s->rows);
    set_up_tiles();
    for (int64_t p = 0; p < panels; p += at_once)
        for (int64_t row = first; row < last; row += SQ_ROWS) multiply_pixels(s, row, p, sepnet_min(p + at_once, panels));
    give_tiles_back();
}

static void run_tall(tall_product s, void *workspace, int threads) {
    place_tall(&s, workspace);
    sepnet_run_parts(pack_weight_part, &s, s.cols / SQ_COLS, threads);
    sepnet_run_parts(tall_part, &s, (s.rows + BAND_TILES * SQ_ROWS - 1) / (BAND_TILES * SQ_ROWS), threads);
}
