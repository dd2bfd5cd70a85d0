/* The arithmetic of 3x3 filters in float32 where the map lies in memory, without planes.
 *
 * A tile is a few neighbouring pixels of a row, for one block of channels after the other. Each value of the rows that its taps see is
 * loaded once for all results that it goes to; backward it goes to dL/dx and to dL/dweight. Where taps lie beyond the map's border they
 * are left out: above and below a whole row of them, at the sides those of a tile's outermost pixels, which is known when it is compiled,
 * as is the stride S, 1 or 2. */

enum { TAPS = 3 }; /* rows of a filter, and columns */
enum { WIDE_TILE = 8, NARROW_TILE = 4 }; /* pixels, with AVX2's 16 registers: forward without stride, of near pixels; else */
enum { LINE_BLOCKS = CACHE_LINE / (VL * (int)sizeof(float)) }; /* that are a cache line */
/* Pixels that are farther apart share few sets of the L1 cache, where a line would not be kept from its first block to its second: tiles
 * are of both then, and narrow. (Wide ones take up to 1.5 times as long with 512 channels and more; narrow ones up to 1.3 times with
 * 32 to 256, where values are normalised.) */
enum { FAR_PIXEL = (1 << 10) / sizeof(float) };
enum { RUN = 256 }; /* values that are added up in float32 at least, and as many as the task has with which there are so many */

/* Pixels of a row of results, `dilation` apart from each other, as their taps are. First pixels, and floats from one to the next. */
typedef struct {
    const float *row[TAPS]; /* that the filter's rows see; NULL: beyond the map, or between two steps of the stride */
    const float *next;      /* of what is fetched meanwhile, forward as many rows as the stride, next_row apart; NULL: nothing */
    const float *x;         /* backward: of the input, at the results' place */
    float *to;              /* NULL: they are not wanted */
    ptrdiff_t pixel, next_row, x_pixel, to_pixel;
    int64_t cols;
    int beyond; /* whether the last result's last tap is beyond the map */
} strip;

/* What the strips of a part share; blocks lie side by side in a pixel, their weights, sums and moments one behind the other. */
typedef struct {
    const float *weight, *start;
    int64_t blocks, stride, weight_step, sums_step;
    entry before;    /* of the input */
    patch to;        /* how results are written */
    float *sums;     /* backward: of dL/dweight, then of dL/dbias */
    moments *output; /* forward: of the results since `count` was 0; NULL: nobody asks */
    vf *bias;        /* backward: one a block, of what dL/dbias gets; likewise */
    vf *input;       /* backward: two a block, of dL/dz and its product with x - mean; likewise */
    int64_t count;
    char lines[WIDE_TILE * CACHE_LINE] __attribute__((aligned(CACHE_LINE))); /* of results that are about to be written */
} strip_work;

/* A block's constants of the normalisation before. */
typedef struct {
    vf scale, shift, mean;
    vu passes;
    float least;
} block_norm;

INLINE block_norm load_norm(const entry *e, int64_t channel, const int way) {
    if (way == AS_IS) return (block_norm){0};
    return (block_norm){*(const vfu *)(e->scale + channel), *(const vfu *)(e->shift + channel), *(const vfu *)(e->mean + channel),
                        e->passes, e->least};
}

INLINE vf enter_normalised(const block_norm *n, vf value, const int way) {
    if (way == AS_IS) return value;
    return at_least(n->least, value * n->scale + n->shift);
}

/* A block's share of the lines of C pixels, with those blocks with which lines begin: in the order of memory, where no gap is between
 * pixels. (To each pixel's own line forward passes 1.07 to 1.6 times as fast, backward ones 0.97 to 1.2, 7 shapes.) */
INLINE void fetch_share(const float *at, ptrdiff_t pixel, int64_t block, int64_t blocks, const int C) {
    enum { LINE = CACHE_LINE / (int)sizeof(float) };
    if (block * VL % LINE) return;
    const int dense = pixel == blocks * VL;
    const ptrdiff_t step = dense ? LINE : pixel;
    at += block * VL * (dense ? C : 1);
#pragma GCC unroll 8
    for (int i = 0; i < C; i++) __builtin_prefetch(at + i * step);
}

/* --- forward -------------------------------------------------------------------------------------------------------- */

/* What one row gives to the C results below, above or beside it, the first of which is seen from the row's pixel `from`. */
INLINE void add_map_row(vf *sum, const float *from, ptrdiff_t pixel, const vf *w, const block_norm *n, const int C, const int B,
                        const int S, const int left, const int right, const int way) {
#pragma GCC unroll 10
    for (int i = -1; i <= S * (C - 1) + 1; i++) {
        if ((i < 0 && left) || (i > S * (C - 1) && right)) continue;
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
            const vf value = enter_normalised(n + b, *(const vfu *)(from + i * pixel + b * VL), way);
#pragma GCC unroll 3
            for (int t = TAPS - 1; t >= 0; t--) {
                const int result = (i + 1 - t + S) / S - 1;
                if (result >= 0 && result < C && result * S + t == i + 1) sum[b * WIDE_TILE + result] += value * w[b * TAPS + t];
            }
        }
    }
}

/* Adds C results to a block's moments. */
INLINE void add_results(moments *m, const vf *sum, int64_t count, const int C) {
    if (count == 0) *m = (moments){.origin = sum[0]};
    vf first = splat(0), second = splat(0);
#pragma GCC unroll 8
    for (int i = 0; i < C; i++) {
        const vf shifted = sum[i] - m->origin;
        first += shifted, second += shifted * shifted;
    }
    m->sum += first, m->square += second;
}

/* C results of B blocks. Whole lines of them, where they go past the caches, go from their registers. */
INLINE void write_tile(strip_work *w, const vf *sum, float *to, ptrdiff_t pixel, int64_t first, const int C, const int B) {
    if (B == LINE_BLOCKS && w->to.stream) {
#pragma GCC unroll 8
        for (int i = 0; i < C; i++, to += pixel) {
            vf line[LINE_BLOCKS];
#pragma GCC unroll 4
            for (int b = 0; b < LINE_BLOCKS; b++) line[b] = sum[b * WIDE_TILE + i];
            stream_line(to, line);
        }
        return;
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; b++)
        finish_tile(sum + b * WIDE_TILE, &w->to, (char *)(to + b * VL), w->lines, first + b, 1, C, SEPNET_FLOAT32);
}

/* Results [c, c + C) of a strip, B blocks at once; left, right: the first one's first tap, the last one's last are beyond the map. */
INLINE void forward_tile(strip_work *w, const strip *s, int64_t c, const int C, const int B, const int S, const int left, const int right,
                         const int way) {
    for (int64_t first = 0; first < w->blocks; first += B) {
        const int64_t at = first * VL;
        block_norm n[LINE_BLOCKS];
        vf sum[LINE_BLOCKS * WIDE_TILE];
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
            n[b] = load_norm(&w->before, at + b * VL, way);
#pragma GCC unroll 8
            for (int i = 0; i < C; i++) sum[b * WIDE_TILE + i] = *(const vf *)(w->start + at + b * VL);
        }
        for (int k = 0; s->next && k < S; k++) fetch_share(s->next + k * s->next_row + c * S * s->pixel, s->pixel, first, w->blocks, S * C);
#pragma GCC unroll 3
        for (int k = 0; k < TAPS; k++) {
            if (!s->row[k]) continue;
            vf row[LINE_BLOCKS * TAPS];
#pragma GCC unroll 12
            for (int i = 0; i < B * TAPS; i++)
                row[i] = *(const vf *)(w->weight + (first + i / TAPS) * w->weight_step + (k * TAPS + i % TAPS) * VL);
            add_map_row(sum, s->row[k] + c * S * s->pixel + at, s->pixel, row, n, C, B, S, left, right, way);
        }
        write_tile(w, sum, s->to + c * s->to_pixel + at, s->to_pixel, first, C, B);
        if (w->output)
            for (int b = 0; b < B; b++) add_results(w->output + first + b, sum + b * WIDE_TILE, w->count, C);
    }
    w->count += C;
}

INLINE void near_tile(strip_work *w, const strip *s, int64_t c, const int C, const int S, const int left, const int right, const int way) {
    forward_tile(w, s, c, C, 1, S, left, right, way);
}

INLINE void far_tile(strip_work *w, const strip *s, int64_t c, const int C, const int S, const int left, const int right, const int way) {
    forward_tile(w, s, c, C, LINE_BLOCKS, S, left, right, way);
}

/* --- backward ------------------------------------------------------------------------------------------------------- */

/* What one row of dL/dy gives to C pixels of dL/dx and, with these pixels' x, to the sums of the taps that see it. Returns the sum of
 * those of its pixels whose middle tap sees one of the C. */
INLINE vf add_gradient_row(vf *sum, vf *taps_sum, const float *from, ptrdiff_t pixel, const vf *w, const vf *x, const int C, const int S,
                           const int left, const int right) {
    vf all = splat(0);
#pragma GCC unroll 6
    for (int i = S == 1 ? -1 : 0; i * S <= C; i++) {
        if ((i < 0 && left) || (i * S >= C && right) || i * S - 1 >= C) continue;
        const vf value = *(const vfu *)(from + i * pixel);
#pragma GCC unroll 3
        for (int t = TAPS - 1; t >= 0; t--) {
            const int place = i * S + t - 1;
            if (place < 0 || place >= C) continue;
            sum[place] += value * w[t], taps_sum[t] += value * x[place];
            if (t == 1) all += value;
        }
    }
    return all;
}

/* Adds what the gradient of the normalisation before needs: of dL/dz where its ReLU let z pass, and of its product with x - mean. */
INLINE void add_input_sums(vf *to, const vf *sum, const float *x, ptrdiff_t pixel, const block_norm *n, int64_t count, const int C) {
    vf first = splat(0), second = splat(0);
#pragma GCC unroll 4
    for (int i = 0; i < C; i++) {
        const vf value = *(const vfu *)(x + i * pixel);
        const vf grad = (vf)((vu)sum[i] & ((vu)(value * n->scale + n->shift > 0) | n->passes));
        first += grad, second += grad * (value - n->mean);
    }
    if (count == 0) to[0] = to[1] = splat(0);
    to[0] += first, to[1] += second;
}

/* Pixels [c, c + C) of a strip, c a multiple of the stride. */
INLINE void backward_tile(strip_work *w, const strip *s, int64_t c, const int C, const int S, const int left, const int right,
                          const int way) {
    for (int64_t b = 0; b < w->blocks; b++) {
        const int64_t at = b * VL, seen = c / S * s->pixel + at;
        const float *weight = w->weight + b * w->weight_step, *from = s->x + c * s->x_pixel + at;
        float *sums = w->sums + b * w->sums_step;
        const block_norm n = load_norm(&w->before, at, way);
        vf sum[TILE], x[NARROW_TILE], all = splat(0);
        fetch_share(from - at + C * s->x_pixel, s->x_pixel, b, w->blocks, C);
        if (s->next) fetch_share(s->next + seen - at, s->pixel, b, w->blocks, (C + S - 1) / S);
#pragma GCC unroll 4
        for (int i = 0; i < C; i++) sum[i] = splat(0), x[i] = enter_normalised(&n, *(const vfu *)(from + i * s->x_pixel), way);
#pragma GCC unroll 3
        for (int k = 0; k < TAPS; k++) {
            if (!s->row[k]) continue;
            const vf *taps_row = (const vf *)(weight + k * TAPS * VL);
            vf *sums_row = (vf *)(sums + k * TAPS * VL);
            const vf row[TAPS] = {taps_row[0], taps_row[1], taps_row[2]};
            vf taps_sum[TAPS] = {sums_row[0], sums_row[1], sums_row[2]};
            const vf of_row = add_gradient_row(sum, taps_sum, s->row[k] + seen, s->pixel, row, x, C, S, left, right);
            sums_row[0] = taps_sum[0], sums_row[1] = taps_sum[1], sums_row[2] = taps_sum[2];
            if (k == 1) all = of_row;
        }
        if (w->bias && w->count == 0) w->bias[b] = splat(0);
        if (w->bias) w->bias[b] += all;
        if (w->input) add_input_sums(w->input + 2 * b, sum, from, s->x_pixel, &n, w->count, C);
        if (s->to) finish_tile(sum, &w->to, (char *)(s->to + c * s->to_pixel + at), w->lines, b, 1, C, SEPNET_FLOAT32);
    }
    w->count += C;
}

/* --- a strip, tile by tile ------------------------------------------------------------------------------------------ */

#define LAST_TILE(tile, C, S, way)          \
    case C:                                 \
        if (c == 0 && s->beyond)            \
            tile(w, s, 0, C, S, 1, 1, way); \
        else if (s->beyond)                 \
            tile(w, s, c, C, S, 0, 1, way); \
        else if (S > 1 && c == 0)           \
            tile(w, s, 0, C, S, 1, 0, way); \
        else if (S > 1)                     \
            tile(w, s, c, C, S, 0, 0, way); \
        break;
#define LAST_4(tile, S, way) LAST_TILE(tile, 1, S, way) LAST_TILE(tile, 2, S, way) LAST_TILE(tile, 3, S, way) LAST_TILE(tile, 4, S, way)
#define LAST_8(tile, S, way) \
    LAST_4(tile, S, way) LAST_TILE(tile, 5, S, way) LAST_TILE(tile, 6, S, way) LAST_TILE(tile, 7, S, way) LAST_TILE(tile, 8, S, way)

/* Tiles of so many pixels, and of those that are left over. */
#define TILES(tile, width, S, last, way)                                            \
    do {                                                                            \
        int64_t c = 0;                                                              \
        if (s->cols > width) tile(w, s, 0, width, S, 1, 0, way), c = width;         \
        for (; s->cols - c > width; c += width) tile(w, s, c, width, S, 0, 0, way); \
        switch (s->cols - c) { last(tile, S, way) }                                 \
    } while (0)
#define EACH_WAY(tile, width, S, last)               \
    do {                                             \
        if (w->before.way == AS_IS)                  \
            TILES(tile, width, S, last, AS_IS);      \
        else                                         \
            TILES(tile, width, S, last, NORMALISED); \
    } while (0)

static __attribute__((noinline)) void forward_strip(strip_work *w, const strip *s) {
    const int far = s->pixel > FAR_PIXEL && w->blocks % LINE_BLOCKS == 0;
    if (w->stride == 1 && far)
        EACH_WAY(far_tile, NARROW_TILE, 1, LAST_4);
    else if (w->stride == 1)
        EACH_WAY(near_tile, WIDE_TILE, 1, LAST_8);
    else if (far)
        EACH_WAY(far_tile, NARROW_TILE, 2, LAST_4);
    else
        EACH_WAY(near_tile, NARROW_TILE, 2, LAST_4);
}

static __attribute__((noinline)) void backward_strip(strip_work *w, const strip *s) {
    if (w->stride == 1)
        EACH_WAY(backward_tile, NARROW_TILE, 1, LAST_4);
    else
        EACH_WAY(backward_tile, NARROW_TILE, 2, LAST_4);
}
