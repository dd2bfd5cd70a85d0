/* The arithmetic of outputs and of dL/dx: results of a rectangle of pixels from planes.
 *
 * A tile of results is in registers while the taps are gone through. Taps that stand side by side are taken a row at a time: the
 * row's weights are in registers too, and each value of a plane is loaded once for all results that it goes to. A processor loads
 * two vectors a cycle at most, and multiplies two: with a load for each product, neither would reach that. */

/* A rectangle of results of neighbouring blocks of channels: planes at `at`, `row` and `col` floats from one result to the next;
 * memory at `to`, `to_row` and `to_col` elements from one to the next. A block's weights lie `weight_step` floats behind those of
 * the one before, the values that its sums start from `start_step`. One segment of the taps is gone through; where an earlier one
 * has been, its sums lie in `to` as floats (resume). Results that fill cache lines may be written past the caches (stream). With each
 * tile something is fetched (ahead; may be NULL). */
typedef struct {
    const float *at, *weight, *start;
    ptrdiff_t row, col, weight_step, start_step;
    char *to;
    int64_t to_row, to_col, rows, cols, blocks;
    int64_t segment, first_tap;
    int dtype, resume, stream;
    ahead *ahead;
} patch;

enum { TILE = VL >= 16 ? 16 : 8 }; /* results; AVX-512 has 32 registers, AVX2 16 */

#define TIMES_8(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define TIMES_16(M) TIMES_8(M) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#if VL >= 16
#define TIMES_TILE TIMES_16
#else
#define TIMES_TILE TIMES_8
#endif

/* --- the beginning and the end of a tile of R rows by C columns ---------------------------------------------------- */

/* Sizes that are constants after inlining; sums lie in an array, which becomes registers as no index of it is a variable. */
INLINE void begin_tile(vf *sum, const patch *p, const char *to, const float *start, const int R, const int C) {
#define RESUME(i) \
    if (i < R * C) sum[i] = load_lanes(to, (i / C) * p->to_row + (i % C) * p->to_col, VL, SEPNET_FLOAT32);
#define START(i) \
    if (i < R * C) sum[i] = *(const vf *)start;
    if (p->resume) {
        TIMES_TILE(RESUME)
    } else {
        TIMES_TILE(START)
    }
}

/* The next tile's lines are fetched for writing. */
INLINE void end_tile(const vf *sum, const patch *p, char *to, const int R, const int C, const int dtype) {
    const int64_t size = (int64_t)element_size(dtype), to_row = p->to_row, to_col = p->to_col;
#define STORE(i)                                                                      \
    if (i < R * C) {                                                                  \
        __builtin_prefetch(to + ((i / C) * to_row + (i % C + C) * to_col) * size, 1); \
        store_lanes(to, (i / C) * to_row + (i % C) * to_col, VL, dtype, sum[i]);      \
    }
    TIMES_TILE(STORE)
}

/* The same past the caches. Half-written lines would go to memory as halves: the blocks that make a line are gathered in `lines`, one
 * a result, and written with the last of them. */
INLINE void stream_tile(const vf *sum, const patch *p, char *to, char *lines, int64_t block, const int R, const int C, const int dtype) {
    const int64_t size = (int64_t)element_size(dtype), vectors = line_vectors(dtype), place = block % vectors * VL * size;
    char *line = to - place;
#define GATHER(i) \
    if (i < R * C) store_lanes(lines + i * CACHE_LINE + place, 0, VL, dtype, sum[i]);
#define STREAM(i) \
    if (i < R * C) stream_results(line + ((i / C) * p->to_row + (i % C) * p->to_col) * size, lines + i * CACHE_LINE, sum[i], dtype);
    if (place + VL * size < CACHE_LINE) {
        TIMES_TILE(GATHER)
    } else {
        TIMES_TILE(STREAM)
    }
}

INLINE void finish_tile(const vf *sum, const patch *p, char *to, char *lines, int64_t block, const int R, const int C, const int dtype) {
    if (line_vectors(dtype) > 0 && p->stream)
        stream_tile(sum, p, to, lines, block, R, C, dtype);
    else
        end_tile(sum, p, to, R, C, dtype);
}

/* The tile at row r, column c of a patch, block by block; `products` goes through the taps: from `at`, `weights` to `sum`. */
#define FOR_BLOCKS(p, r, c, R, C, products)                                                                      \
    do {                                                                                                         \
        const float *at = p->at + (r) * p->row + (c) * p->col, *weights = p->weight, *start = p->start;          \
        const int64_t size = (int64_t)element_size(p->dtype);                                                    \
        char *to = p->to + ((r) * p->to_row + (c) * p->to_col) * size;                                           \
        char lines[TILE * CACHE_LINE] __attribute__((aligned(CACHE_LINE)));                                      \
        for (int64_t b = 0; b < p->blocks; b++) {                                                                \
            vf sum[TILE];                                                                                        \
            begin_tile(sum, p, to, start, R, C);                                                                 \
            if (p->ahead) fetch_ahead(p->ahead);                                                                 \
            products;                                                                                            \
            if (p->dtype == SEPNET_BFLOAT16)                                                                     \
                finish_tile(sum, p, to, lines, b, R, C, SEPNET_BFLOAT16);                                        \
            else                                                                                                 \
                finish_tile(sum, p, to, lines, b, R, C, SEPNET_FLOAT32);                                         \
            at += VL, weights += p->weight_step, start += p->start_step, to += VL * size;                        \
        }                                                                                                        \
    } while (0)

/* --- any taps: a load for each product ----------------------------------------------------------------------------- */

/* The distances d of the results from the first one are opaque to the compiler, which would make one pointer of the one before, in
 * a chain longer than the arithmetic; those of results 8 to 15 are the first 8's from a second pointer. */
INLINE void add_taps(vf *sum, const float *at, const patch *p, const taps *t, int64_t first, int64_t last, const float *weights,
                     const int R, const int C, const int mode) {
    const ptrdiff_t half = 8 / C * p->row + 8 % C * p->col;
#define DISTANCE(i)                                                       \
    ptrdiff_t d##i = i < R * C ? (i / C) * p->row + (i % C) * p->col : 0; \
    __asm__("" : "+r"(d##i));
#define ADD(i) \
    if (i < R * C) sum[i] = add_product(sum[i], load_factor(from + d##i, mode), w, mode);
#define ADD_MORE(i) \
    if (i + 8 < R * C) sum[i + 8] = add_product(sum[i + 8], load_factor(more + d##i, mode), w, mode);
    TIMES_8(DISTANCE)
    for (int64_t k = first; k < last; k++) {
        const float *from = at + t->offset[k], *more = from + half;
        const vf w = *(const vf *)(weights + t->weight[k]);
        TIMES_8(ADD)
        if (R * C > 8) {
            TIMES_8(ADD_MORE)
        }
    }
}

/* Columns [c, c + C) of all rows, R rows at once. Where half a tile or more is left over, the last one goes back over rows that are
 * there already (unless it would add to them): fewer results at a time would wait for one another's products. */
#define COLUMNS(tile, R, C)                                                      \
    do {                                                                         \
        int64_t r = 0;                                                           \
        for (; r + R <= p->rows; r += R) tile(p, t, r, c, R, C);                 \
        if (R > 2 && 2 * (p->rows - r) >= R && p->rows > R && !p->resume)        \
            tile(p, t, p->rows - R, c, R, C), r = p->rows;                       \
        for (; R > 1 && r < p->rows; r++) tile(p, t, r, c, 1, C);                \
        c += C;                                                                  \
    } while (0)
/* As many columns as fill a tile, or half or a quarter of one, which then has as many rows more; three that are left over are
 * computed as four, likewise. */
#define WIDE_COLUMNS(tile)                                                       \
    do {                                                                         \
        while (p->cols - c >= TILE) COLUMNS(tile, 1, TILE);                      \
        if (TILE == 16 && p->cols - c >= 8) COLUMNS(tile, TILE / 8, 8);          \
        if (p->cols - c >= 4) COLUMNS(tile, TILE / 4, 4);                        \
        if (p->cols - c == 3 && c > 0 && !p->resume) {                           \
            c = p->cols - 4;                                                     \
            COLUMNS(tile, TILE / 4, 4);                                          \
        }                                                                        \
    } while (0)

INLINE void tile_floats(const patch *p, const taps *t, int64_t r, int64_t c, const int R, const int C) {
    const segment *in = &t->segment[p->segment];
    const int64_t first = p->first_tap, last = first + in->rows * in->width;
    FOR_BLOCKS(p, r, c, R, C, add_taps(sum, at, p, t, first, last, weights, R, C, FLOATS));
}

INLINE void tile_pairs(const patch *p, const taps *t, int64_t r, int64_t c, const int R, const int C) {
    const segment *in = &t->segment[p->segment];
    const int64_t first = p->first_tap, last = first + in->rows * in->width, odd = last - in->odd * in->width;
    FOR_BLOCKS(p, r, c, R, C, {
        add_taps(sum, at, p, t, first, odd, weights, R, C, PAIRS);
        add_taps(sum, at, p, t, odd, last, weights, R, C, FIRST_HALF);
    });
}

#define NARROW_COLUMNS(tile)                          \
    do {                                              \
        if (p->cols - c >= 2) COLUMNS(tile, 4, 2);    \
        if (p->cols - c >= 1) COLUMNS(tile, 8, 1);    \
    } while (0)

static __attribute__((noinline)) void narrow_columns(const patch *p, const taps *t, int64_t c) {
    if (HAVE_PAIRS && t->paired)
        NARROW_COLUMNS(tile_pairs);
    else
        NARROW_COLUMNS(tile_floats);
}

static void any_columns(const patch *p, const taps *t) {
    int64_t c = 0;
    if (HAVE_PAIRS && t->paired)
        WIDE_COLUMNS(tile_pairs);
    else
        WIDE_COLUMNS(tile_floats);
    narrow_columns(p, t, c);
}

/* --- rows of taps side by side: a load for each value -------------------------------------------------------------- */

/* Result i's share of the value at position `at` of a row. K, S and C are constants to the compiler's front end (see rows.h), so
 * that of all these conditions only the K * C products are left. */
#define TERM(i, at) \
    if (i < C && at - S * i >= 0 && at - S * i < K) sum[i] = add_product(sum[i], x, w[(at - S * i) % K], mode);
#define TERMS_8(at) TERM(0, at) TERM(1, at) TERM(2, at) TERM(3, at) TERM(4, at) TERM(5, at) TERM(6, at) TERM(7, at)
#if VL >= 16
#define TERMS(at) \
    TERMS_8(at) TERM(8, at) TERM(9, at) TERM(10, at) TERM(11, at) TERM(12, at) TERM(13, at) TERM(14, at) TERM(15, at)
#else
#define TERMS TERMS_8
#endif
#define VALUE(at)                             \
    if (at < S * (C - 1) + K) {               \
        const vf x = load_factor(from, mode); \
        from += spacing;                      \
        TERMS(at)                             \
    }
#define VALUES_7(a, b, c, d, e, f, g) VALUE(a) VALUE(b) VALUE(c) VALUE(d) VALUE(e) VALUE(f) VALUE(g)
#define VALUES_21 VALUES_7(0, 1, 2, 3, 4, 5, 6) VALUES_7(7, 8, 9, 10, 11, 12, 13) VALUES_7(14, 15, 16, 17, 18, 19, 20)
#if VL >= 16
#define VALUES VALUES_21 VALUES_7(21, 22, 23, 24, 25, 26, 27) VALUES_7(28, 29, 30, 31, 32, 33, 34) VALUE(35) VALUE(36)
#else
#define VALUES VALUES_21
#endif

#define K 2
#define S 1
#include "rows.h"
#define K 3
#define S 1
#include "rows.h"
#define K 4
#define S 1
#include "rows.h"
#define K 5
#define S 1
#include "rows.h"
#define K 7
#define S 1
#include "rows.h"
#define K 3
#define S 2
#include "rows.h"
#define K 5
#define S 2
#include "rows.h"
#define K 7
#define S 2
#include "rows.h"

static void compute_segment(const patch *p, const taps *t) {
    typedef void (*const kernel)(const patch *, const taps *);
    static kernel floats[2][8] = {
        {NULL, NULL, columns_2_1, columns_3_1, columns_4_1, columns_5_1, NULL, columns_7_1},
        {NULL, NULL, NULL, columns_3_2, NULL, columns_5_2, NULL, columns_7_2},
    };
#ifdef HAVE_AVX512_BF16
    static kernel pairs[2][8] = {
        {NULL, NULL, pair_columns_2_1, pair_columns_3_1, pair_columns_4_1, pair_columns_5_1, NULL, pair_columns_7_1},
        {NULL, NULL, NULL, pair_columns_3_2, NULL, pair_columns_5_2, NULL, pair_columns_7_2},
    };
    kernel(*rows)[8] = t->paired ? pairs : floats;
#else
    kernel(*rows)[8] = floats;
#endif
    const segment *in = &t->segment[p->segment];
    const int stride = p->col == in->spacing ? 0 : p->col == 2 * in->spacing ? 1 : -1;
    (stride >= 0 && rows[stride][in->width] ? rows[stride][in->width] : any_columns)(p, t);
}
