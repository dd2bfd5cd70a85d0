/* Sums of filter rows of K taps, ROWS of them at once, S taps from one result to the next; included by correlate.h for each K and S. */
#define NAME__(name, k, s) name##_##k##_##s
#define NAME_(name, k, s) NAME__(name, k, s)
#define NAME(name) NAME_(name, K, S)

/* C columns, R filter rows from row `first` on: a value of x is loaded once for all sums that it goes to, one of dL/dy once for R
 * filter rows. */
#define DEFINE_TILE(name, r_, c_)                                                                                        \
    INLINE void name(const correlation *c, int64_t first) {                                                              \
        enum { R = r_, C = c_ };                                                                                         \
        vf sum[R * K], g[C], *to = (vf *)(c->sums + first * K * VL);                                                     \
        TIMES_16(FETCH)                                                                                                  \
        for (int64_t row = 0; row < c->rows; row++) {                                                                    \
            const float *from = c->x + first * c->tap_row + row * c->x_row, *grad = c->grad + row * c->grad_row;         \
            CROSS(0) CROSS(1) CROSS(2) CROSS(3) CROSS(4) CROSS(5) CROSS(6) CROSS(7) CROSS(8) CROSS(9) CROSS(10)          \
            CROSS(11) CROSS(12) CROSS(13) CROSS(14) CROSS(15) CROSS(16) CROSS(17) CROSS(18) CROSS(19) CROSS(20)          \
        }                                                                                                                \
        TIMES_16(KEEP)                                                                                                   \
    }
#define FETCH(i) \
    if (i < R * K) sum[i % (R * K)] = to[i];
#define KEEP(i) \
    if (i < R * K) to[i] = sum[i % (R * K)];
#define DEFINE_ROWS(name, many, one, columns)                  \
    DEFINE_TILE(many, ROWS, columns)                           \
    DEFINE_TILE(one, 1, columns)                               \
    static void name(const correlation *c, int64_t height) {   \
        int64_t r = 0;                                         \
        for (; r + ROWS <= height; r += ROWS) many(c, r);      \
        for (; ROWS > 1 && r < height; r++) one(c, r);         \
    }
DEFINE_ROWS(NAME(rows_8), NAME(many_8), NAME(one_8), 8)
DEFINE_ROWS(NAME(rows_4), NAME(many_4), NAME(one_4), 4)

#undef DEFINE_ROWS
#undef DEFINE_TILE
#undef FETCH
#undef KEEP
#undef NAME
#undef NAME_
#undef NAME__
#undef K
#undef ROWS
#undef S
