/* The tiles of product_tiles.h by AMX's instructions, of bfloat16. */

/* Compilers do not all know what AMX's instructions read. */
INLINE void compiler_stores_all(const void *at) { __asm__ volatile("" ::"r"(at) : "memory"); }

/* A thread's tile registers, each of 16 rows of 16 units. */
static void set_up_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
    compiler_stores_all(&config);
    _tile_loadconfig(&config);
}

static void give_tiles_back(void) { _tile_release(); }

INLINE void clear_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* 32 rows of 16 units (those of `lower` are the last 16) times as many rows of a panel. The steps are bytes from row to row. */
INLINE void multiply_step(const float *upper, const float *lower, int64_t step, const float *panel) {
    enum { PANEL_STEP = SQ_COLS * sizeof(float) };
    _tile_loadd(6, panel, PANEL_STEP);
    _tile_loadd(7, panel + VL, PANEL_STEP);
    _tile_loadd(4, upper, step);
    _tile_loadd(5, lower, step);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* To 32 rows of 32 floats. */
INLINE void store_sums(float *to) {
    enum { STEP = SQ_COLS * sizeof(float) };
    _tile_stored(0, to, STEP);
    _tile_stored(1, to + VL, STEP);
    _tile_stored(2, to + VL * SQ_COLS, STEP);
    _tile_stored(3, to + VL * SQ_COLS + VL, STEP);
}

INLINE void multiply_tile(square_tile sum, const float *left, int64_t step, const float *panel, int64_t depth, const int mode) {
    (void)mode;
    clear_sums();
    compiler_stores_all(panel);
    for (int64_t u = 0; u < depth; u += SQ_UNITS, panel += SQ_UNITS * SQ_COLS)
        multiply_step(left + u, left + u + VL * step, step * (int64_t)sizeof(float), panel);
    store_sums((float *)sum);
}

/* All of a tile's results, and the same with columns for rows. */
typedef struct {
    square_tile line, turned;
} finished;

INLINE void finish_results(const product_of *s, square_tile sum, int64_t row, int64_t col, int turned, int dtype, finished *out) {
    for (int r = 0; r < SQ_ROWS; r++)
        for (int v = 0; v < SQ_VECTORS; v++) out->line[r][v] = finish_product(s, sum[r][v], row + r, col + v * VL, dtype);
    if (turned) turn_block((const float *)out->line, SQ_ROWS, SQ_COLS, (float *)out->turned);
}

/* A tile below the diagonal and its copy, of which pairs of rows become units of columns. Beyond the last row and column these are zeros,
 * as they are to be. */
INLINE void put_below(const product_of *s, square_tile sum, int64_t row, int64_t col, int dtype) {
    enum { PAIRS_OF_ROWS = SQ_ROWS / 2 };
    const matrix to = s->to;
    float units[PAIRS_OF_ROWS][SQ_COLS] __attribute__((aligned(CACHE_LINE)));
    for (int r = 0; r < SQ_ROWS; r++)
        for (int v = 0; v < SQ_VECTORS; v++)
            store_lanes(element(to, row + r, col), v * VL, VL, dtype, finish_product(s, sum[r][v], row + r, col + v * VL, dtype));
    for (int r = 0; r < PAIRS_OF_ROWS; r++)
        for (int v = 0; v < SQ_VECTORS; v++) {
            const uint16_t *first = (const uint16_t *)element(to, row + 2 * r, col + v * VL);
            *(vf *)(units[r] + v * VL) = load_pairs(first, first + to.step);
        }
    for (int r = 0; r < PAIRS_OF_ROWS; r += 8)
        for (int c = 0; c < SQ_COLS; c += 8)
            turn_square(units[r] + c, SQ_COLS, (float *)element(to, col + c, row + 2 * r), row_units(to));
}

/* A tile on the diagonal, of which what is below counts. */
INLINE void put_diagonal(const product_of *s, square_tile sum, int64_t row, int dtype) {
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    finished tile;
    finish_results(s, sum, row, row, 1, dtype, &tile);
    for (int r = 0; r < SQ_ROWS; r++)
        for (int v = 0; v < SQ_VECTORS; v++)
            store_lanes(element(s->to, row + r, row), v * VL, VL, dtype, choose(lane + v * VL <= r, tile.line[r][v], tile.turned[r][v]));
}

/* A tile of a symmetric result: what is on the diagonal and below, and its copy above. */
INLINE void put_symmetric(const product_of *s, square_tile sum, int64_t row, int64_t col, int dtype) {
    if (col < row)
        put_below(s, sum, row, col, dtype);
    else
        put_diagonal(s, sum, row, dtype);
}

/* keep * weight + values; with keep == 0 whatever the weight is. */
INLINE void blend(const product_of *s, float *weight, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i += VL) {
        const int lanes = (int)sepnet_min(VL, count - i);
        vf value = load_lanes(values, i, lanes, SEPNET_FLOAT32);
        if (s->keep != 0) value += s->keep * load_lanes(weight, i, lanes, SEPNET_FLOAT32);
        store_lanes(weight, i, lanes, SEPNET_FLOAT32, value);
    }
}

INLINE void put_weight(const product_of *s, square_tile sum, int64_t row, int64_t col, int dtype) {
    finished tile;
    const int64_t rows = sepnet_min(SQ_ROWS, s->left.rows - row), cols = sepnet_min(SQ_COLS, s->cols - col), all = s->left.rows;
    finish_results(s, sum, row, col, s->transposed, dtype, &tile);
    if (s->transposed)
        for (int64_t c = 0; c < cols; c++) blend(s, s->weight + (col + c) * all + row, (const float *)tile.turned[c], rows);
    else
        for (int64_t r = 0; r < rows; r++) blend(s, s->weight + (row + r) * s->cols + col, (const float *)tile.line[r], cols);
}
