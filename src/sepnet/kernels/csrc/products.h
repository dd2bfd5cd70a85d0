/* Products of matrices whose result is symmetric, and others of the same operands: what orthogonal.h is made of. One vector length;
 * included after geometry.h and pack.h.
 *
 * A matrix lies in rows of "units" of four bytes: a float, or a pair of bfloat16 values that follow one another. A tile of results,
 * SQ_ROWS by SQ_COLS, stays in registers while the sum runs: for each unit of its rows of the left matrix, spread to a vector, there is a
 * row of a panel of the right one. Of a symmetric result only what is on and below the diagonal is computed; it is copied across. Zeros
 * lie beyond a matrix's last row and column, as far as tiles and panels go. A thread takes whole panels, as far as that comes out even,
 * and packs them itself: between the threads' caches goes what other threads have computed, and nothing else. */

enum { SQ_ROWS = 6, SQ_VECTORS = VL == 16 ? 4 : 2, SQ_COLS = SQ_VECTORS * VL };

typedef vf square_tile[SQ_ROWS][SQ_VECTORS];

/* A matrix of elements of `dtype`, `step` of them from row to row. */
typedef struct {
    char *at;
    int64_t rows, cols, step;
    int dtype;
} matrix;

INLINE int64_t values_a_unit(int dtype) { return dtype == SEPNET_BFLOAT16 ? 2 : 1; }

/* A line is left between rows, as powers of two would share few sets of the L1 cache. */
static matrix shape_matrix(int64_t rows, int64_t cols, int dtype) {
    const int64_t gap = CACHE_LINE / (int64_t)element_size(dtype);
    return (matrix){NULL, rows, cols, sepnet_round_up(cols, SQ_COLS) + gap, dtype};
}

static int64_t matrix_bytes(matrix m) {
    return aligned(sepnet_round_up(m.rows, SQ_ROWS) * m.step * (int64_t)element_size(m.dtype));
}

INLINE char *element(matrix m, int64_t row, int64_t col) { return m.at + (row * m.step + col) * (int64_t)element_size(m.dtype); }

INLINE const float *units_of(matrix m, int64_t row) { return (const float *)element(m, row, 0); }

INLINE int64_t row_units(matrix m) { return m.step / values_a_unit(m.dtype); }

/* The zeros around it. */
static void clear_around(matrix m) {
    const size_t size = element_size(m.dtype);
    for (int64_t r = 0; r < m.rows; r++) memset(element(m, r, m.cols), 0, (size_t)(m.step - m.cols) * size);
    memset(element(m, m.rows, 0), 0, (size_t)((sepnet_round_up(m.rows, SQ_ROWS) - m.rows) * m.step) * size);
}

/* --- a panel of the right matrix: [unit][SQ_COLS] -------------------------------------------------------------------------- */

typedef struct {
    matrix from;
    int across; /* of the transposed matrix, whose columns are the rows */
} right_matrix;

static int64_t depth_of(right_matrix r) {
    const int64_t values = values_a_unit(r.from.dtype);
    return ((r.across ? r.from.cols : r.from.rows) + values - 1) / values;
}

static int64_t count_panels(right_matrix r) { return ((r.across ? r.from.rows : r.from.cols) + SQ_COLS - 1) / SQ_COLS; }

static int64_t panel_bytes(right_matrix r) { return aligned(depth_of(r) * SQ_COLS * (int64_t)sizeof(float)); }

/* The rows that are the panel's columns. */
static void pack_across(right_matrix right, int64_t panel, float *to) {
    const int64_t depth = depth_of(right), top = panel * SQ_COLS, rows = sepnet_min(SQ_COLS, right.from.rows - top);
    if (rows < SQ_COLS) memset(to, 0, (size_t)(depth * SQ_COLS) * sizeof *to);
    turn_rows(units_of(right.from, top), row_units(right.from), rows, depth, to, SQ_COLS);
}

static void pack_down(right_matrix right, int64_t panel, float *to) {
    const int64_t depth = depth_of(right);
    for (int64_t u = 0; u < depth; u++, to += SQ_COLS) {
        if (right.from.dtype == SEPNET_FLOAT32) {
            memcpy(to, element(right.from, u, panel * SQ_COLS), SQ_COLS * sizeof *to);
            continue;
        }
        const uint16_t *first = (const uint16_t *)element(right.from, 2 * u, panel * SQ_COLS), *second = first + right.from.step;
        for (int v = 0; v < SQ_VECTORS; v++) *(vf *)(to + v * VL) = load_pairs(first + v * VL, second + v * VL);
    }
}

/* --- products ---------------------------------------------------------------------------------------------------------------- */

/* alpha * left * right + beta * (add + more): symmetric, to `to`; or, where there is a `weight`, keep * weight + that to it, which lies
 * in rows of `cols` values without gaps, or (transposed) in columns. `more`, and both, may be none. */
typedef struct {
    matrix left, add, more, to;
    int64_t cols;
    float alpha, beta, keep, *weight;
    int transposed;
} product_of;

/* One product, or two, of the same right matrix and of equal shapes. */
typedef struct {
    product_of one, other;
    int products;
    right_matrix right;
    char *panels; /* one a worker */
    int64_t parts;
} multiplication;

INLINE void multiply_tile(square_tile sum, const float *left, int64_t step, const float *panel, int64_t depth, const int mode) {
#pragma GCC unroll 8
    for (int r = 0; r < SQ_ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < SQ_VECTORS; v++) sum[r][v] = splat(0);
    for (int64_t u = 0; u < depth; u++, panel += SQ_COLS) {
        vf right[SQ_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < SQ_VECTORS; v++) right[v] = *(const vf *)(panel + v * VL);
#pragma GCC unroll 8
        for (int r = 0; r < SQ_ROWS; r++) {
            const vf value = splat(left[r * step + u]);
#pragma GCC unroll 4
            for (int v = 0; v < SQ_VECTORS; v++) sum[r][v] = add_product(sum[r][v], value, right[v], mode);
        }
    }
}

/* A vector of the result, from element (row, col) on. */
INLINE vf finish_product(const product_of *s, vf sum, int64_t row, int64_t col, int dtype) {
    vf value = sum * s->alpha;
    if (s->add.at) value += load_lanes(s->add.at, row * s->add.step + col, VL, dtype) * s->beta;
    if (s->more.at) value += load_lanes(s->more.at, row * s->more.step + col, VL, dtype) * s->beta;
    return value;
}

/* Rows [row, row + rows) of the columns [first, end), below the diagonal, to the place across it. */
INLINE void copy_across(matrix m, int64_t row, int64_t rows, int64_t first, int64_t end, int dtype) {
    for (int64_t c = first; c < end; c++)
        for (int64_t r = sepnet_max(row, c + 1); r < row + rows; r++)
            if (dtype == SEPNET_BFLOAT16)
                *(uint16_t *)element(m, c, r) = *(const uint16_t *)element(m, r, c);
            else
                *(float *)element(m, c, r) = *(const float *)element(m, r, c);
}

/* A tile of a symmetric result: what is on the diagonal and below, and its copy. */
INLINE void put_symmetric(const product_of *s, square_tile sum, int64_t row, int64_t col, int dtype) {
    matrix to = s->to;
    to.dtype = dtype; /* a constant */
    const int64_t rows = sepnet_min(SQ_ROWS, to.rows - row);
    for (int r = 0; r < rows; r++) {
        char line[SQ_COLS * sizeof(float)] __attribute__((aligned(CACHE_LINE)));
        const int64_t cols = sepnet_min(SQ_COLS, row + r + 1 - col);
        char *out = cols == SQ_COLS ? element(to, row + r, col) : line;
        for (int v = 0; v < SQ_VECTORS; v++)
            store_lanes(out, v * VL, VL, dtype, finish_product(s, sum[r][v], row + r, col + v * VL, dtype));
        if (out == line && cols > 0) memcpy(element(to, row + r, col), line, (size_t)cols * element_size(dtype));
    }
    if (rows == SQ_ROWS && col + SQ_COLS <= row)
        copy_across(to, row, SQ_ROWS, col, col + SQ_COLS, dtype);
    else
        copy_across(to, row, rows, col, sepnet_min(col + SQ_COLS, row + rows - 1), dtype);
}

/* keep * weight + values; with keep == 0 whatever the weight is. */
INLINE void blend(const product_of *s, float *weight, float value) { *weight = s->keep == 0 ? value : s->keep * *weight + value; }

INLINE void put_weight(const product_of *s, square_tile sum, int64_t row, int64_t col, int dtype) {
    const int64_t rows = sepnet_min(SQ_ROWS, s->left.rows - row), cols = sepnet_min(SQ_COLS, s->cols - col), all = s->left.rows;
    float line[SQ_ROWS][SQ_COLS] __attribute__((aligned(CACHE_LINE)));
    for (int r = 0; r < SQ_ROWS; r++)
        for (int v = 0; v < SQ_VECTORS; v++) *(vf *)(line[r] + v * VL) = finish_product(s, sum[r][v], row + r, col + v * VL, dtype);
    if (s->transposed)
        for (int64_t c = 0; c < cols; c++)
            for (int64_t r = 0; r < rows; r++) blend(s, s->weight + (col + c) * all + row + r, line[r][c]);
    else
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < cols; c++) blend(s, s->weight + (row + r) * s->cols + col + c, line[r][c]);
}

INLINE void put_product(const product_of *s, int64_t row, int64_t col, const float *panel, int64_t depth, int dtype) {
    square_tile sum;
    multiply_tile(sum, units_of(s->left, row), row_units(s->left), panel, depth, dtype == SEPNET_BFLOAT16 ? PAIRS : FLOATS);
    if (s->weight)
        put_weight(s, sum, row, col, dtype);
    else
        put_symmetric(s, sum, row, col, dtype);
}

/* Tiles of a panel, of all rows from `row` to `last`. */
INLINE void multiply_panel(const product_of *s, int64_t row, int64_t last, int64_t col, const float *panel, int64_t depth) {
    const product_of own = *s; /* which no store can alias */
    for (; row < last; row += SQ_ROWS)
        if (HAVE_PAIRS && own.left.dtype == SEPNET_BFLOAT16)
            put_product(&own, row, col, panel, depth, SEPNET_BFLOAT16);
        else
            put_product(&own, row, col, panel, depth, SEPNET_FLOAT32);
}

/* The first tile of a panel that is needed, and how many are. */
static int64_t first_tile(const multiplication *m, int64_t panel) { return m->one.weight ? 0 : panel * SQ_COLS / SQ_ROWS; }

static int64_t count_tiles(const multiplication *m, int64_t panel) {
    return (m->one.left.rows + SQ_ROWS - 1) / SQ_ROWS - first_tile(m, panel);
}

static void multiply_part(void *context, int64_t part, sepnet_worker worker) {
    const multiplication *m = context;
    const int64_t panels = count_panels(m->right), depth = depth_of(m->right);
    float *packed = (float *)(m->panels + worker.index * panel_bytes(m->right));
    int64_t tiles = 0, before = 0;
    for (int64_t p = 0; p < panels; p++) tiles += count_tiles(m, p);
    const int64_t begin = sepnet_part_begin(tiles, m->parts, part), end = sepnet_part_begin(tiles, m->parts, part + 1);
    for (int64_t p = 0; p < panels; before += count_tiles(m, p), p++) {
        const int64_t first = sepnet_max(0, begin - before), last = sepnet_min(count_tiles(m, p), end - before);
        if (first >= last) continue;
        (m->right.across ? pack_across : pack_down)(m->right, p, packed);
        const int64_t row = (first_tile(m, p) + first) * SQ_ROWS, stop = (first_tile(m, p) + last) * SQ_ROWS;
        multiply_panel(&m->one, row, stop, p * SQ_COLS, packed, depth);
        if (m->products > 1) multiply_panel(&m->other, row, stop, p * SQ_COLS, packed, depth);
    }
}

static void multiply(multiplication m, int threads) {
    m.parts = threads;
    sepnet_run_parts(multiply_part, &m, m.parts, threads);
}
