/* dL/dweight: the correlation of a plane of x with one of dL/dy. */

/* dL/dweight of a filter: sums over a rectangle of x times dL/dy. Distances are in floats. */
typedef struct {
    const float *x, *grad;
    int64_t rows, cols, blocks;
    ptrdiff_t x_row, x_col, grad_row, grad_col, tap_row, tap_col, sums_step; /* sums_step: from block to block */
    float *sums;
} correlation;

/* Any columns: R filter rows by K filter columns of one block, kept in R * K registers. */
INLINE void correlate_strip(const correlation *c, int64_t first, const int R, const int K) {
    const ptrdiff_t tap_row = c->tap_row, tap_col = c->tap_col, x_col = c->x_col, grad_col = c->grad_col;
    vf sum[16];
    vf *to = (vf *)(c->sums + first * K * VL);
    for (int i = 0; i < R * K; i++) sum[i] = to[i];
    for (int64_t row = 0; row < c->rows; row++) {
        const float *from = c->x + first * tap_row + row * c->x_row, *g = c->grad + row * c->grad_row;
        for (int64_t col = 0; col < c->cols; col++, from += x_col, g += grad_col) {
            vf value = *(const vf *)g;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int k = 0; k < K; k++) sum[r * K + k] += *(const vf *)(from + r * tap_row + k * tap_col) * value;
        }
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
#define PRODUCT(k, at) \
    if (k < K && at >= k && (at - k) % S == 0 && (at - k) / S < C) sum[r * K + k] += x * g[(at - k) / S % C];
#define PRODUCTS(at) PRODUCT(0, at) PRODUCT(1, at) PRODUCT(2, at) PRODUCT(3, at) PRODUCT(4, at) PRODUCT(5, at) PRODUCT(6, at)
#define FILTER_ROW(r_, at)                                  \
    if (r_ < R) {                                           \
        enum { r = r_ };                                    \
        const vf x = *(const vf *)(from + r_ * c->tap_row); \
        PRODUCTS(at)                                        \
    }
#define CROSS(at)                                                                                  \
    if (at < S * (C - 1) + K) {                                                                    \
        if (at % S == 0 && at / S < C) g[at / S % C] = *(const vf *)(grad + at / S * c->grad_col); \
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

/* All blocks: a few columns at a time, whose values stay in the L1 cache for all filter rows and for the other half of a line. */
static void correlate(const correlation *whole, int64_t height, int64_t width) {
    typedef void (*kernel)(const correlation *, int64_t);
    static const kernel strips[] = {NULL, strip_1, strip_2, strip_3, strip_4, strip_5, strip_6, strip_7};
    static const kernel rows[2][2][8] = {
        {{[3] = rows_4_3_1, [5] = rows_4_5_1, [7] = rows_4_7_1}, {[3] = rows_8_3_1, [5] = rows_8_5_1, [7] = rows_8_7_1}},
        {{[3] = rows_4_3_2, [5] = rows_4_5_2, [7] = rows_4_7_2}, {[3] = rows_8_3_2, [5] = rows_8_5_2, [7] = rows_8_7_2}},
    };
    const int stride = whole->x_col == whole->tap_col ? 0 : whole->x_col == 2 * whole->tap_col ? 1 : -1;
    for (int64_t col = 0, step; col < whole->cols; col += step) {
        const int64_t left = whole->cols - col;
        const kernel run = stride < 0 || left < 4 ? NULL : rows[stride][left >= 8][width];
        step = left >= 8 ? 8 : run ? 4 : left;
        correlation c = *whole;
        c.cols = step;
        c.x += col * c.x_col, c.grad += col * c.grad_col;
        for (int64_t b = 0; b < whole->blocks; b++) {
            (run ? run : strips[width])(&c, height);
            c.x += VL, c.grad += VL, c.sums += c.sums_step;
        }
    }
}
