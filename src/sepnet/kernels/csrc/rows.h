/* Results from rows of K taps side by side, S taps from one result to the next; included by tiles.h for each K and S there is. */
#define NAME__(name, k, s) name##_##k##_##s
#define NAME_(name, k, s) NAME__(name, k, s)
#define NAME(name) NAME_(name, K, S)

/* C results from one row. */
#define DEFINE_ROW(name, c_)                                                                       \
    INLINE void name(vf *sum, const float *from, ptrdiff_t spacing, const vf *w, const int mode) { \
        enum { C = c_ };                                                                           \
        VALUES                                                                                     \
    }
#if VL >= 16
DEFINE_ROW(NAME(row_16), 16)
#endif
DEFINE_ROW(NAME(row_8), 8)
DEFINE_ROW(NAME(row_4), 4)
#undef DEFINE_ROW

INLINE void NAME(add_row)(vf *sum, const float *from, ptrdiff_t spacing, const vf *w, const int columns, const int mode) {
#if VL >= 16
    if (columns == 16) NAME(row_16)(sum, from, spacing, w, mode);
#endif
    if (columns == 8) NAME(row_8)(sum, from, spacing, w, mode);
    if (columns == 4) NAME(row_4)(sum, from, spacing, w, mode);
}

/* The k-th row of the segment's taps. */
INLINE void NAME(add_tap_row)(vf *sum, const float *at, const patch *p, const taps *t, int64_t k, const float *weights, const int rows,
                              const int columns, const int mode) {
    const ptrdiff_t *weight = t->weight + p->first_tap + k * K, spacing = t->segment[p->segment].spacing;
    const float *from = at + t->offset[p->first_tap + k * K];
    vf w[K];
#define WEIGHT(i) \
    if (i < K) w[i % K] = *(const vf *)(weights + weight[i]);
    TIMES_8(WEIGHT)
#undef WEIGHT
    NAME(add_row)(sum, from, spacing, w, columns, mode);
    if (rows > 1) NAME(add_row)(sum + columns, from + p->row, spacing, w, columns, mode);
    if (rows > 2) NAME(add_row)(sum + 2 * columns, from + 2 * p->row, spacing, w, columns, mode);
    if (rows > 3) NAME(add_row)(sum + 3 * columns, from + 3 * p->row, spacing, w, columns, mode);
}

INLINE void NAME(add_rows)(vf *sum, const float *at, const patch *p, const taps *t, const float *weights, const int rows,
                           const int columns, const int mode) {
    const segment *in = &t->segment[p->segment];
    const int64_t whole = in->rows - (mode == PAIRS ? in->odd : 0);
    for (int64_t k = 0; k < whole; k++) NAME(add_tap_row)(sum, at, p, t, k, weights, rows, columns, mode);
    if (whole < in->rows) NAME(add_tap_row)(sum, at, p, t, whole, weights, rows, columns, FIRST_HALF);
}

#define DEFINE_COLUMNS(name, tile, mode)                                                                                     \
    INLINE void tile(const patch *p, const taps *t, int64_t r, int64_t c, const int rows, const int columns) {               \
        FOR_BLOCKS(p, r, c, rows, columns, NAME(add_rows)(sum, at, p, t, weights, rows, columns, mode));                     \
    }                                                                                                                        \
    static __attribute__((noinline)) void name(const patch *p, const taps *t) {                                              \
        int64_t c = 0;                                                                                                       \
        WIDE_COLUMNS(tile);                                                                                                  \
        narrow_columns(p, t, c);                                                                                             \
    }
DEFINE_COLUMNS(NAME(columns), NAME(tile), FLOATS)
#ifdef HAVE_AVX512_BF16
DEFINE_COLUMNS(NAME(pair_columns), NAME(pair_tile), PAIRS)
#endif
#undef DEFINE_COLUMNS

#undef NAME
#undef NAME_
#undef NAME__
#undef K
#undef S
