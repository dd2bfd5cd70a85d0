/* A tile of a product's results: multiplied, and put where it belongs. One vector length; included after matrices.h.
 *
 * A tile of SQ_ROWS by SQ_COLS stays in registers while the sum runs, over SQ_UNITS at a time: for each unit of its rows of the left matrix
 * there is a row of a panel of the right one. */

/* alpha * left * right + beta * (add + more): symmetric, to `to`; or, where there is a `weight`, keep * weight + that to it, which lies
 * in rows of `cols` values without gaps, or (transposed) in columns. `more`, and both, may be none. */
typedef struct {
    matrix left, add, more, to;
    int64_t cols;
    float alpha, beta, keep, *weight;
    int transposed;
} product_of;

/* A vector of the result, from element (row, col) on. */
INLINE vf finish_product(const product_of *s, vf sum, int64_t row, int64_t col, int dtype) {
    vf value = sum * s->alpha;
    if (s->add.at) value += load_lanes(s->add.at, row * s->add.step + col, VL, dtype) * s->beta;
    if (s->more.at) value += load_lanes(s->more.at, row * s->more.step + col, VL, dtype) * s->beta;
    return value;
}

#ifdef HAVE_AMX
#include "amx_tiles.h"
#else
#include "vector_tiles.h"
#endif

INLINE void put_product(const product_of *s, int64_t row, int64_t col, const float *panel, int64_t depth, int dtype) {
    square_tile sum;
    multiply_tile(sum, units_of(s->left, row), row_units(s->left), panel, depth, dtype == SEPNET_BFLOAT16 ? PAIRS : FLOATS);
    if (s->weight)
        put_weight(s, sum, row, col, dtype);
    else
        put_symmetric(s, sum, row, col, dtype);
}
