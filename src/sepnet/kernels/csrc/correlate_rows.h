/* Sums of filter rows of K taps, ROWS of them at once, S taps from one result to the next; included by correlate.h for each K and S. */
#define NAME__(name, k, s) name##_##k##_##s
#define NAME_(name, k, s) NAME__(name, k, s)
#define NAME(name) NAME_(name, K, S)

/* C columns, R filter rows from row `first` on: a value of x is loaded once for all sums that it goes to, one of dL/dy once for R
 * filter rows. */
#define DEFINE_SOME(name, r_, c_)                                                                                        \
    INLINE void name(const correlation *c, vf *sum, int64_t begin, int64_t end, int64_t first, const int mode) {         \
        enum { R = r_, C = c_ };                                                                                         \
        vf g[C];                                                                                                         \
        for (int64_t row = begin; row < end; row++) {                                                                    \
            const float *from = c->x + first * c->tap_row + row * c->x_row, *grad = c->grad + row * c->grad_row;         \
            CROSS(0) CROSS(1) CROSS(2) CROSS(3) CROSS(4) CROSS(5) CROSS(6) CROSS(7) CROSS(8) CROSS(9) CROSS(10)          \
            CROSS(11) CROSS(12) CROSS(13) CROSS(14) CROSS(15) CROSS(16) CROSS(17) CROSS(18) CROSS(19) CROSS(20)          \
        }                                                                                                                \
    }
DEFINE_SOME(NAME(many_8), ROWS, 8)
DEFINE_SOME(NAME(many_4), ROWS, 4)
DEFINE_SOME(NAME(one_8), 1, 8)
DEFINE_SOME(NAME(one_4), 1, 4)

#define FETCH(i) \
    if (i < R * K) sum[i % (R * K)] = to[i];
#define KEEP(i) \
    if (i < R * K) to[i] = sum[i % (R * K)];
#define TILE_OF(r_, some, mode)                                                                        \
    do {                                                                                               \
        enum { R = r_ };                                                                               \
        vf sum[R * K], *to = (vf *)(c->sums + r * K * VL);                                             \
        TIMES_16(FETCH)                                                                                \
        some(c, sum, 0, c->rows, r, mode);                                                             \
        if (mode == PAIRS) some(c, sum, c->rows, c->rows + c->odd, r, FIRST_HALF);                     \
        TIMES_16(KEEP)                                                                                 \
    } while (0)
#define DEFINE_ROWS(name, many, one, mode)                                 \
    static void name(const correlation *c, int64_t height) {               \
        int64_t r = 0;                                                     \
        for (; r + ROWS <= height; r += ROWS) TILE_OF(ROWS, many, mode);   \
        for (; ROWS > 1 && r < height; r++) TILE_OF(1, one, mode);         \
    }
DEFINE_ROWS(NAME(rows_8), NAME(many_8), NAME(one_8), FLOATS)
DEFINE_ROWS(NAME(rows_4), NAME(many_4), NAME(one_4), FLOATS)
#ifdef HAVE_AVX512_BF16
DEFINE_ROWS(NAME(pairs_8), NAME(many_8), NAME(one_8), PAIRS)
DEFINE_ROWS(NAME(pairs_4), NAME(many_4), NAME(one_4), PAIRS)
#endif

#undef DEFINE_ROWS
#undef TILE_OF
#undef DEFINE_SOME
#undef FETCH
#undef KEEP
#undef NAME
#undef NAME_
#undef NAME__
#undef K
#undef ROWS
#undef S
