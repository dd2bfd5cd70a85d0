/* The arithmetic: results of a rectangle of pixels from a plane, and the correlation of two planes. */

/* A rectangle of results: planes at `at`, `row` and `col` floats from one result to the next; memory at `to`, `to_row` and
 * `to_col` elements from one to the next. */
typedef struct {
    const float *at, *weight;
    ptrdiff_t row, col;
    char *to;
    int64_t to_row, to_col, rows, cols;
    vf start;
} patch;

#define TIMES_1(M, n) M(0, n)
#define TIMES_2(M, n) TIMES_1(M, n) M(1, n)
#define TIMES_4(M, n) TIMES_2(M, n) M(2, n) M(3, n)
#define TIMES_8(M, n) TIMES_4(M, n) M(4, n) M(5, n) M(6, n) M(7, n)
#define TIMES_16(M, n) TIMES_8(M, n) M(8, n) M(9, n) M(10, n) M(11, n) M(12, n) M(13, n) M(14, n) M(15, n)

/* Result i of a tile of n columns stands in row i / n, column i % n. */
#define START(i, n) vf sum##i = p->start;
#define MULTIPLY_ADD(i, n) sum##i += *(const vf *)(from + (i / n) * row + (i % n) * col) * w;
#define STORE(i, n)                                                                      \
    __builtin_prefetch(to + ((i / n) * to_row + (i % n + PREFETCH) * to_col) * size, 1); \
    store_lanes(to, (i / n) * to_row + (i % n) * to_col, VL, dtype, sum##i);

/* size = rows * cols results in as many registers, tap by tap. `col`, `dtype`: constants after inlining. */
#define DEFINE_TILE(size_, cols_)                                                                                            \
    INLINE void tile_##size_##_##cols_(const patch *p, const taps *t, int64_t r, int64_t c, ptrdiff_t col, int dtype) {      \
        const int64_t size = (int64_t)element_size(dtype), row = p->row, to_row = p->to_row, to_col = p->to_col;             \
        const float *at = p->at + r * row + c * col;                                                                         \
        TIMES_##size_(START, cols_) for (int64_t k = 0; k < t->count; k++) {                                                 \
            const float *from = at + t->offset[k];                                                                           \
            vf w = *(const vf *)(p->weight + t->weight[k]);                                                                  \
            TIMES_##size_(MULTIPLY_ADD, cols_)                                                                               \
        }                                                                                                                    \
        char *to = p->to + (r * to_row + c * to_col) * size;                                                                 \
        TIMES_##size_(STORE, cols_)                                                                                          \
    }
DEFINE_TILE(16, 16)
DEFINE_TILE(16, 8)
DEFINE_TILE(16, 4)
DEFINE_TILE(8, 8)
DEFINE_TILE(8, 4)
DEFINE_TILE(8, 2)
DEFINE_TILE(8, 1)
DEFINE_TILE(4, 4)
DEFINE_TILE(2, 2)
DEFINE_TILE(1, 1)

/* Columns [c, c + n) of all rows, as many rows at once as the registers take. */
#define COLUMNS(big, small, n)                                                                   \
    do {                                                                                         \
        int64_t r = 0;                                                                           \
        for (; r + big / n <= p->rows; r += big / n) tile_##big##_##n(p, t, r, c, col, dtype);   \
        for (; r < p->rows; r += small / n) tile_##small##_##n(p, t, r, c, col, dtype);          \
        c += n;                                                                                  \
    } while (0)

INLINE void compute_patch(const patch *p, const taps *t, ptrdiff_t col, int dtype) {
    int64_t c = 0;
    if (VL >= 16) { /* 32 registers */
        while (p->cols - c >= 16) COLUMNS(16, 16, 16);
        if (p->cols - c >= 8) COLUMNS(16, 8, 8);
        if (p->cols - c >= 4) COLUMNS(16, 4, 4);
    } else {
        while (p->cols - c >= 8) COLUMNS(8, 8, 8);
        if (p->cols - c >= 4) COLUMNS(8, 4, 4);
    }
    if (p->cols - c >= 2) COLUMNS(8, 2, 2);
    if (p->cols - c >= 1) COLUMNS(8, 1, 1);
}

#define DEFINE_PATCH(name, col, dtype)                                                      \
    static __attribute__((noinline)) void name(const patch *p, const taps *t) {             \
        compute_patch(p, t, col, dtype);                                                    \
    }
DEFINE_PATCH(patch_f32_1, VL, SEPNET_FLOAT32)
DEFINE_PATCH(patch_f32_2, 2 * VL, SEPNET_FLOAT32)
DEFINE_PATCH(patch_f32_n, p->col, SEPNET_FLOAT32)
DEFINE_PATCH(patch_bf16_1, VL, SEPNET_BFLOAT16)
DEFINE_PATCH(patch_bf16_2, 2 * VL, SEPNET_BFLOAT16)
DEFINE_PATCH(patch_bf16_n, p->col, SEPNET_BFLOAT16)

/* Where results go: channels channel, channel + step, ... of a map, of an image or of several that share a vector. */
typedef struct {
    void *map;
    int64_t index, row, col, step; /* element of the first result; elements from row to row, pixel to pixel, channel to channel */
    int lanes, dtype;
    int64_t images, image; /* how many; elements from one to the next */
} destination;

/* The images' shares of a row of vectors. */
INLINE void deal_row(const destination *to, int64_t index, const vf *from, int64_t cols, int lanes, int dtype) {
    for (int64_t c = 0; c < cols; c++, index += to->col) {
        uint16_t half[VL];
        *(vhu *)half = narrow(from[c]);
        for (int64_t i = 0; i < to->images; i++)
            for (int k = 0; k < lanes; k++) {
                int64_t at = index + i * to->image + k * to->step, lane = i * lanes + k;
                if (dtype == SEPNET_BFLOAT16)
                    ((uint16_t *)to->map)[at] = half[lane];
                else
                    ((float *)to->map)[at] = ((const float *)(from + c))[lane];
            }
    }
}

static void deal_by_kind(const destination *to, int64_t index, const vf *from, int64_t cols) {
    switch (2 * to->lanes + (to->dtype == SEPNET_BFLOAT16)) {
        case 2 * 1: deal_row(to, index, from, cols, 1, SEPNET_FLOAT32); break;
        case 2 * 1 + 1: deal_row(to, index, from, cols, 1, SEPNET_BFLOAT16); break;
        case 2 * 2: deal_row(to, index, from, cols, 2, SEPNET_FLOAT32); break;
        case 2 * 2 + 1: deal_row(to, index, from, cols, 2, SEPNET_BFLOAT16); break;
        case 2 * 3: deal_row(to, index, from, cols, 3, SEPNET_FLOAT32); break;
        case 2 * 3 + 1: deal_row(to, index, from, cols, 3, SEPNET_BFLOAT16); break;
        case 2 * 4: deal_row(to, index, from, cols, 4, SEPNET_FLOAT32); break;
        case 2 * 4 + 1: deal_row(to, index, from, cols, 4, SEPNET_BFLOAT16); break;
    }
}

/* `spare` holds the patch as float vectors where results are not whole vectors of neighbouring channels. */
static void compute(patch p, const taps *t, const destination *to, float *spare) {
    static void (*const by_type[2][3])(const patch *, const taps *) = {{patch_f32_1, patch_f32_2, patch_f32_n},
                                                                       {patch_bf16_1, patch_bf16_2, patch_bf16_n}};
    int by_stride = p.col == VL ? 0 : p.col == 2 * VL ? 1 : 2;
    if (to->lanes == VL && to->step == 1) {
        p.to = (char *)to->map + to->index * (int64_t)element_size(to->dtype);
        p.to_row = to->row, p.to_col = to->col;
        by_type[to->dtype == SEPNET_BFLOAT16][by_stride](&p, t);
        return;
    }
    p.to = (char *)spare, p.to_row = p.cols * VL, p.to_col = VL;
    by_type[0][by_stride](&p, t);
    if (to->images > 1) {
        for (int64_t r = 0; r < p.rows; r++)
            deal_by_kind(to, to->index + r * to->row, (const vf *)(spare + r * p.cols * VL), p.cols);
        return;
    }
    for (int64_t r = 0; r < p.rows; r++)
        for (int64_t c = 0; c < p.cols; c++)
            store_strided(to->map, to->index + r * to->row + c * to->col, to->step, to->lanes, to->dtype,
                          *(const vf *)(spare + (r * p.cols + c) * VL));
}

/* dL/dweight of a filter: sums over a rectangle of x times dL/dy. Distances are in floats. */
typedef struct {
    const float *x, *grad;
    int64_t rows, cols;
    ptrdiff_t x_row, x_col, grad_row, tap_row, tap_col;
    float *sums;
} correlation;

/* R filter rows by K filter columns, kept in R * K registers. */
INLINE void correlate_strip(const correlation *c, int64_t first, const int R, const int K) {
    const ptrdiff_t tap_row = c->tap_row, tap_col = c->tap_col, x_col = c->x_col;
    vf sum[R * K];
    for (int i = 0; i < R * K; i++) sum[i] = splat(0);
    for (int64_t row = 0; row < c->rows; row++) {
        const float *from = c->x + first * tap_row + row * c->x_row, *g = c->grad + row * c->grad_row;
        for (int64_t col = 0; col < c->cols; col++, from += x_col, g += VL) {
            vf value = *(const vf *)g;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int k = 0; k < K; k++) sum[r * K + k] += *(const vf *)(from + r * tap_row + k * tap_col) * value;
        }
    }
    vf *to = (vf *)(c->sums + first * K * VL);
    for (int i = 0; i < R * K; i++) to[i] += sum[i];
}

/* Registers allow about 12 sums (16 of them in all with AVX2), and 8 hide the latency of the additions. */
#define DEFINE_CORRELATE(K, R)                                                      \
    static void correlate_##K(const correlation *c, int64_t height) {               \
        int64_t r = 0;                                                              \
        for (; r + R <= height; r += R) correlate_strip(c, r, R, K);                \
        for (; r < height; r++) correlate_strip(c, r, 1, K);                        \
    }
DEFINE_CORRELATE(1, 4)
DEFINE_CORRELATE(2, 4)
DEFINE_CORRELATE(3, 3)
DEFINE_CORRELATE(4, 2)
DEFINE_CORRELATE(5, 2)
DEFINE_CORRELATE(6, 1)
DEFINE_CORRELATE(7, 1)
