/* Results from rows of K taps side by side, S taps from one result to the next; included by tiles.h for each K and S there is. */
#define NAME__(name, k, s) name##_##k##_##s
#define NAME_(name, k, s) NAME__(name, k, s)
#define NAME(name) NAME_(name, K, S)

/* C results from one row. */
#define DEFINE_ROW(name, c_)                                                             \
    INLINE void name(vf *sum, const float *from, ptrdiff_t spacing, const vf *w) {       \
        enum { C = c_ };                                                                 \
        VALUES                                                                           \
    }
#if VL >= 16
DEFINE_ROW(NAME(row_16), 16)
#endif
DEFINE_ROW(NAME(row_8), 8)
DEFINE_ROW(NAME(row_4), 4)
#undef DEFINE_ROW

INLINE void NAME(add_row)(vf *sum, const float *from, ptrdiff_t spacing, const vf *w, const int columns) {
#if VL >= 16
    if (columns == 16) NAME(row_16)(sum, from, spacing, w);
#endif
    if (columns == 8) NAME(row_8)(sum, from, spacing, w);
    if (columns == 4) NAME(row_4)(sum, from, spacing, w);
}

INLINE void NAME(add_rows)(vf *sum, const float *at, const patch *p, const taps *t, const float *weights, const int rows,
                           const int columns) {
    const segment *in = &t->segment[p->segment];
    const ptrdiff_t *offset = t->offset + p->first_tap, *weight = t->weight + p->first_tap, spacing = in->spacing;
    for (int64_t k = 0; k < in->rows; k++, offset += K, weight += K) {
        const float *from = at + *offset;
        vf w[K];
#define WEIGHT(i) \
    if (i < K) w[i % K] = *(const vf *)(weights + weight[i]);
        TIMES_8(WEIGHT)
#undef WEIGHT
        NAME(add_row)(sum, from, spacing, w, columns);
        if (rows > 1) NAME(add_row)(sum + columns, from + p->row, spacing, w, columns);
        if (rows > 2) NAME(add_row)(sum + 2 * columns, from + 2 * p->row, spacing, w, columns);
        if (rows > 3) NAME(add_row)(sum + 3 * columns, from + 3 * p->row, spacing, w, columns);
    }
}

INLINE void NAME(tile)(const patch *p, const taps *t, int64_t r, int64_t c, const int rows, const int columns) {
    FOR_BLOCKS(p, r, c, rows, columns, NAME(add_rows)(sum, at, p, t, weights, rows, columns));
}

static __attribute__((noinline)) void NAME(columns)(const patch *p, const taps *t) {
    int64_t c = 0;
    WIDE_COLUMNS(NAME(tile));
    narrow_columns(p, t, c);
}

#undef NAME
#undef NAME_
#undef NAME__
#undef K
#undef S
