/* dL/dweight: the correlation of a plane of x with one of dL/dy. */

/* dL/dweight of a filter: sums over a rectangle of x times dL/dy. Distances are in floats. */
typedef struct {
    const float *x, *grad;
    int64_t rows, cols, blocks;
    ptrdiff_t x_row, x_col, grad_row, grad_col, tap_row, tap_col, sums_step; /* sums_step: from block to block */
    float *sums;
    ahead *ahead;    /* what is fetched meanwhile; may be NULL */
    int paired, odd; /* the planes hold pairs, and `rows` counts pairs of rows; after them comes a row that is alone */
} correlation;

/* Any columns: what rows [begin, end) give to R filter rows by K filter columns of one block. */
INLINE void correlate_some(const correlation *c, vf *sum, int64_t begin, int64_t end, int64_t first, const int R, const int K,
                           const int mode) {
    const ptrdiff_t tap_row = c->tap_row, tap_col = c->tap_col, x_col = c->x_col, grad_col = c->grad_col;
    for (int64_t row = begin; row < end; row++) {
        const float *from = c->x + first * tap_row + row * c->x_row, *g = c->grad + row * c->grad_row;
        for (int64_t col = 0; col < c->cols; col++, from += x_col, g += grad_col) {
            const vf value = load_factor(g, mode);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int k = 0; k < K; k++)
                    sum[r * K + k] = add_product(sum[r * K + k], load_factor(from + r * tap_row + k * tap_col, mode), value, mode);
        }
    }
}

/* The sums are kept in R * K registers. */
INLINE void correlate_strip(const correlation *c, int64_t first, const int R, const int K) {
    vf sum[16];
    vf *to = (vf *)(c->sums + first * K * VL);
    for (int i = 0; i < R * K; i++) sum[i] = to[i];
    if (HAVE_PAIRS && c->paired) {
        correlate_some(c, sum, 0, c->rows, first, R, K, PAIRS);
        correlate_some(c, sum, c->rows, c->rows + c->odd, first, R, K, FIRST_HALF);
    } else {
        correlate_some(c, sum, 0, c->rows, first, R, K, FLOATS);
    }
    for (int i = 0; i < R * K; i++) to[i] = sum[i];
}

/* Registers allow about 12 sums (16 of them in all with AVX2), and 8 hide the latency of the additions. */
#define DEFINE_STRIP(K, R)                                           \
    static void strip_##K(const correlation *c, int64_t height) {    \
        int64_t r = 0;                                               \
        for (; r + R <= height; r += R) correlate_strip(c, r, R, K); \
        for (; r < height; r++) correlate_strip(c, r, 1, K);         \
    }
DEFINE_STRIP(1, 4)
DEFINE_STRIP(2, 4)
DEFINE_STRIP(3, 3)
DEFINE_STRIP(4, 2)
DEFINE_STRIP(5, 2)
DEFINE_STRIP(6, 1)
DEFINE_STRIP(7, 1)

/* --- columns S taps apart: a load for each value ------------------------------------------------------------------- */

/* What the value at position `at` of a filter row's x gives to the sums. Constants to the compiler's front end as in tiles.h. */
#define PRODUCT(k, at)                                             \
    if (k < K && at >= k && (at - k) % S == 0 && (at - k) / S < C) \
        sum[r * K + k] = add_product(sum[r * K + k], x, g[(at - k) / S % C], mode);
#define PRODUCTS(at) PRODUCT(0, at) PRODUCT(1, at) PRODUCT(2, at) PRODUCT(3, at) PRODUCT(4, at) PRODUCT(5, at) PRODUCT(6, at)
#define FILTER_ROW(r_, at)                                      \
    if (r_ < R) {                                               \
        enum { r = r_ };                                        \
        const vf x = load_factor(from + r_ * c->tap_row, mode); \
        PRODUCTS(at)                                            \
    }
#define CROSS(at)                                                                                  \
    if (at < S * (C - 1) + K) {                                                                    \
        if (at % S == 0 && at / S < C) g[at / S % C] = load_factor(grad + at / S * c->grad_col, mode); \
        FILTER_ROW(0, at) FILTER_ROW(1, at) FILTER_ROW(2, at)                                      \
        from += c->tap_col;                                                                        \
    }

#define K 3
#define ROWS 3
#define S 1
#include "correlate_rows.h"
#define K 5
#define ROWS 2
#define S 1
#include "correlate_rows.h"
#define K 7
#define ROWS 1
#define S 1
#include "correlate_rows.h"
#define K 3
#define ROWS 3
#define S 2
#include "correlate_rows.h"
#define K 5
#define ROWS 2
#define S 2
#include "correlate_rows.h"
#define K 7
#define ROWS 1
#define S 2
#include "correlate_rows.h"

typedef void (*correlate_kernel)(const correlation *, int64_t);

/* For so many columns of a filter so wide, that stand so many apart; NULL where there is none. */
static correlate_kernel rows_kernel(int paired, int64_t columns, int64_t stride, int64_t width) {
    static const correlate_kernel floats[2][2][8] = {
        {{[3] = rows_4_3_1, [5] = rows_4_5_1, [7] = rows_4_7_1}, {[3] = rows_8_3_1, [5] = rows_8_5_1, [7] = rows_8_7_1}},
        {{[3] = rows_4_3_2, [5] = rows_4_5_2, [7] = rows_4_7_2}, {[3] = rows_8_3_2, [5] = rows_8_5_2, [7] = rows_8_7_2}},
    };
#ifdef HAVE_AVX512_BF16
    static const correlate_kernel pairs[2][2][8] = {
        {{[3] = pairs_4_3_1, [5] = pairs_4_5_1, [7] = pairs_4_7_1}, {[3] = pairs_8_3_1, [5] = pairs_8_5_1, [7] = pairs_8_7_1}},
        {{[3] = pairs_4_3_2, [5] = pairs_4_5_2, [7] = pairs_4_7_2}, {[3] = pairs_8_3_2, [5] = pairs_8_5_2, [7] = pairs_8_7_2}},
    };
    if (paired) return pairs[stride - 1][columns == 8][width];
#else
    (void)paired;
#endif
    return floats[stride - 1][columns == 8][width];
}

/* All blocks: a few columns at a time, whose values stay in the L1 cache for all filter rows and for the other half of a line. */
static void correlate(const correlation *whole, int64_t height, int64_t width) {
    static const correlate_kernel strips[] = {NULL, strip_1, strip_2, strip_3, strip_4, strip_5, strip_6, strip_7};
    const int64_t stride = whole->x_col == whole->tap_col ? 1 : whole->x_col == 2 * whole->tap_col ? 2 : 0;
    for (int64_t col = 0, step; col < whole->cols; col += step) {
        const int64_t left = whole->cols - col, many = left >= 8 ? 8 : 4;
        const correlate_kernel run = stride == 0 || left < 4 ? NULL : rows_kernel(whole->paired, many, stride, width);
        step = left >= 8 ? 8 : run ? 4 : left;
        correlation c = *whole;
        c.cols = step;
        c.x += col * c.x_col, c.grad += col * c.grad_col;
        for (int64_t b = 0; b < whole->blocks; b++) {
            for (int64_t i = 0; c.ahead && i < c.rows * (1 + c.paired) * step; i += TILE) fetch_ahead(c.ahead);
            (run ? run : strips[width])(&c, height);
            c.x += VL, c.grad += VL, c.sums += c.sums_step;
        }
    }
}
