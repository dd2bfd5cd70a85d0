/* The tiles of product_tiles.h by vectors. */

static void set_up_tiles(void) {}

static void give_tiles_back(void) {}

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
