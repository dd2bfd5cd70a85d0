/* The arithmetic of 3x3 and 5x5 filters in float32 where the map lies in memory, without planes.
 *
 * A tile is a few neighbouring pixels of a row, for one block of channels after the other. Each value of the rows that its taps see is
 * loaded once for all results that it goes to; backward it goes to dL/dx and to dL/dweight. Where taps lie beyond the map's border they
 * are left out: above and below a whole row of them, at the sides those of a tile's outermost pixels, which is known when it is compiled,
 * as are the filter's side K and the stride S, 1 or 2. */

enum { WIDEST = 5, FARTHEST = WIDEST / 2 };  /* of a filter: columns, and how far they are from the middle */
enum { WIDE_TILE = 8, NARROW_TILE = 4 };     /* pixels, with AVX2's 16 registers: forward without stride, of near pixels; else */
enum { LINE_BLOCKS = CACHE_LINE / (VL * (int)sizeof(float)) }; /* that are a cache line */
/* Pixels that are farther apart share few sets of the L1 cache, where a line would not be kept from its first block to its second: tiles
 * are of both then, and narrow. (Wide ones take up to 1.5 times as long with 512 channels and more; narrow ones up to 1.3 times with
 * 32 to 256, where values are normalised.) */
enum { FAR_PIXEL = (1 << 10) / sizeof(float) };
enum { RUN = 256 }; /* values that are added up in float32 at least, and as many as the task has with which there are so many */

/* Pixels of a row of results, `dilation` apart from each other, as their taps are. First pixels, and floats from one to the next. */
typedef struct {
    const float *row[WIDEST]; /* that the filters' rows see, the middle one's in the middle; NULL: beyond the map, between two steps */
    const float *next;        /* of what is fetched meanwhile, forward as many rows as the stride, next_row apart; NULL: nothing */
    const float *x, *next_x;  /* backward: of the input, at the results' place, and of what is fetched of it */
    float *to;                /* NULL: they are not wanted */
    ptrdiff_t pixel, next_pixel, next_row, x_pixel, next_x_pixel, to_pixel;
    int64_t cols;
    int begins, ends; /* whether the first result's taps before the middle are beyond the map, the last one's behind it */
} strip;

/* A branch's filters: their side, floats from a block's first weight (of all branches) and sum to theirs, and from a pixel's first
 * channel of dL/dy. */
typedef struct {
    int64_t side;
    ptrdiff_t weights, channels;
} filters;

/* What the strips of a part share; blocks lie side by side in a pixel, their weights, sums and moments one behind the other. */
typedef struct {
    const float *weight;
    const float *start; /* forward: what is added to; one branch's, as are its moments */
    filters branch[SEPNET_MAX_BRANCHES];
    int64_t branches, blocks, stride, weight_step, sums_step;
    entry before;    /* of the input */
    patch to;        /* how results are written */
    float *sums;     /* backward: of dL/dweight, then of dL/dbias */
    moments *output; /* forward: of the results since `count` was 0; NULL: nobody asks */
    vf *bias;        /* backward: one a block and branch, of what dL/dbias gets; likewise */
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

/* The lines of C pixels of a row, to be fetched block by block: each block's share with those blocks with which lines begin, in the order
 * of memory where no gap is between pixels. (To each pixel's own line forward passes 1.07 to 1.6 times as fast, backward ones 0.97 to
 * 1.2, 7 shapes.) */
typedef struct {
    const float *at;      /* NULL: nothing */
    ptrdiff_t step, block; /* floats from line to line, from one block's to the next's */
} share;

INLINE share share_of(const float *at, ptrdiff_t pixel, int64_t blocks, int64_t pixels) {
    const int dense = pixel == blocks * VL;
    return (share){at, dense ? CACHE_LINE / (int)sizeof(float) : pixel, dense ? VL * pixels : VL};
}

INLINE void fetch_share(const share *of, int64_t block, int64_t first, const int pixels) {
    if (!of->at || block % LINE_BLOCKS) return;
    const float *at = of->at + block * of->block + first * of->step;
#pragma GCC unroll 8
    for (int i = 0; i < pixels; i++) __builtin_prefetch(at + i * of->step);
}

/* --- forward -------------------------------------------------------------------------------------------------------- */

/* What one row gives to the C results below, above or beside it, the first of which is seen from the row's pixel `from`. */
INLINE void add_map_row(vf *sum, const float *from, ptrdiff_t pixel, const vf *w, const block_norm *n, const int C, const int B,
                        const int K, const int S, const int left, const int right, const int way) {
#pragma GCC unroll 12
    for (int i = -(K / 2); i <= S * (C - 1) + K / 2; i++) {
        if ((i < 0 && left) || (i > S * (C - 1) && right)) continue;
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
            const vf value = enter_normalised(n + b, *(const vfu *)(from + i * pixel + b * VL), way);
#pragma GCC unroll 5
            for (int t = K - 1; t >= 0; t--) {
                const int result = (i + K / 2 - t + S) / S - 1;
                if (result >= 0 && result < C && result * S + t == i + K / 2) sum[b * WIDE_TILE + result] += value * w[b * K + t];
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

/* Results [c, c + C) of a strip, B blocks at once; left, right: the first one's taps before the middle, the last one's behind it are beyond
 * the map. */
INLINE void forward_tile(strip_work *w, const strip *s, int64_t c, const int C, const int B, const int K, const int S, const int left,
                         const int right, const int way) {
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
        for (int k = 0; s->next && k < S; k++) { /* (found before the loop, forward passes took up to 1.1 times as long, 5 shapes) */
            const share next = share_of(s->next + k * s->next_row + c * S * s->next_pixel, s->next_pixel, w->blocks, S * C);
            fetch_share(&next, first, 0, S * C);
        }
#pragma GCC unroll 5
        for (int k = 0; k < K; k++) {
            if (!s->row[FARTHEST - K / 2 + k]) continue;
            vf row[LINE_BLOCKS * WIDEST];
#pragma GCC unroll 20
            for (int i = 0; i < B * K; i++)
                row[i] = *(const vf *)(w->weight + (first + i / K) * w->weight_step + (k * K + i % K) * VL);
            add_map_row(sum, s->row[FARTHEST - K / 2 + k] + c * S * s->pixel + at, s->pixel, row, n, C, B, K, S, left, right, way);
        }
        write_tile(w, sum, s->to + c * s->to_pixel + at, s->to_pixel, first, C, B);
        if (w->output)
            for (int b = 0; b < B; b++) add_results(w->output + first + b, sum + b * WIDE_TILE, w->count, C);
    }
    w->count += C;
}

INLINE void near_tile(strip_work *w, const strip *s, int64_t c, const int C, const int K, const int S, const int left, const int right,
                      const int way) {
    forward_tile(w, s, c, C, 1, K, S, left, right, way);
}

INLINE void far_tile(strip_work *w, const strip *s, int64_t c, const int C, const int K, const int S, const int left, const int right,
                     const int way) {
    forward_tile(w, s, c, C, LINE_BLOCKS, K, S, left, right, way);
}

/* --- backward ------------------------------------------------------------------------------------------------------- */

enum { MIXED = 0 }; /* in place of a filter's side: several branches, each with its own */

/* What one row of dL/dy gives to C pixels of dL/dx and, with these pixels' x, to the sums of the taps that see it. Its first pixel is
 * seen by the middle tap of the place-th of the C before. Returns the sum of those of its pixels whose middle tap sees one of the C. */
INLINE vf add_gradient_row(vf *sum, vf *taps_sum, const float *from, ptrdiff_t pixel, const vf *w, const vf *x, const int C, const int K,
                           const int S, const int place, const int left, const int right) {
    enum { FAR = FARTHEST };
    vf all = splat(0);
#pragma GCC unroll 8
    for (int i = -FAR; i < NARROW_TILE + FAR; i++) {
        const int middle = i * S - place;
        if (middle < -(K / 2) || middle > C - 1 + K / 2 || (i < 0 && (left || S > 1)) || (middle >= C && right)) continue;
        const vf value = *(const vfu *)(from + i * pixel);
#pragma GCC unroll 5
        for (int t = K - 1; t >= 0; t--) {
            const int to = middle + t - K / 2;
            if (to < 0 || to >= C) continue;
            sum[to] += value * w[t], taps_sum[t] += value * x[to];
            if (t == K / 2) all += value;
        }
    }
    return all;
}

/* What a branch's rows of dL/dy give, which begin so many floats behind the strip's. Returns as of a row. */
INLINE vf add_gradients(vf *sum, float *sums, const strip *s, ptrdiff_t seen, const float *weight, const vf *x, const int C, const int K,
                        const int S, const int place, const int left, const int right) {
    vf all = splat(0);
#pragma GCC unroll 5
    for (int k = 0; k < K; k++) {
        const float *from = s->row[FARTHEST - K / 2 + k];
        if (!from) continue;
        vf row[WIDEST], taps_sum[WIDEST], *sums_row = (vf *)(sums + k * K * VL);
#pragma GCC unroll 5
        for (int t = 0; t < K; t++) row[t] = *(const vf *)(weight + (k * K + t) * VL), taps_sum[t] = sums_row[t];
        const vf of_row = add_gradient_row(sum, taps_sum, from + seen, s->pixel, row, x, C, K, S, place, left, right);
#pragma GCC unroll 5
        for (int t = 0; t < K; t++) sums_row[t] = taps_sum[t];
        if (k == K / 2) all = of_row;
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

/* Adds to what dL/dbias of a block's branch gets. */
INLINE void add_bias(strip_work *w, int64_t index, vf sum) {
    if (!w->bias) return;
    if (w->count == 0) w->bias[index] = splat(0);
    w->bias[index] += sum;
}

/* C pixels of a strip from the c-th on, a multiple of the stride; with `place` -1 the one before that. */
INLINE void gradient_tile(strip_work *w, const strip *s, int64_t c, const int C, const int K, const int S, const int place,
                          const int left, const int right, const int way) {
    const int pixels = (C + S - 1) / S; /* of dL/dy */
    const int64_t branches = K == MIXED ? w->branches : 1;
    const share next_x = share_of(s->next_x + c * s->next_x_pixel, s->next_x_pixel, w->blocks, C);
    const share next = share_of(s->next ? s->next + c / S * s->next_pixel : NULL, s->next_pixel / branches, w->blocks, branches * pixels);
    const float *map = s->x + (c + place) * s->x_pixel;
    for (int64_t b = 0; b < w->blocks; b++, map += VL) {
        const int64_t seen = c / S * s->pixel + b * VL;
        const float *weight = w->weight + b * w->weight_step;
        float *sums = w->sums + b * w->sums_step;
        const block_norm n = load_norm(&w->before, b * VL, way);
        vf sum[TILE], x[NARROW_TILE];
        fetch_share(&next_x, b, 0, C);
        for (int64_t j = 0; j < branches; j++) fetch_share(&next, b, j * pixels, pixels);
#pragma GCC unroll 4
        for (int i = 0; i < C; i++) sum[i] = splat(0), x[i] = enter_normalised(&n, *(const vfu *)(map + i * s->x_pixel), way);
        if (K != MIXED) add_bias(w, b, add_gradients(sum, sums, s, seen, weight, x, C, K, S, place, left, right));
        for (int64_t j = 0; K == MIXED && j < branches; j++) {
            const filters *f = w->branch + j;
            float *sums_j = sums + f->weights;
            const float *weight_j = weight + f->weights;
            if (f->side == 3)
                add_bias(w, b * branches + j, add_gradients(sum, sums_j, s, seen + f->channels, weight_j, x, C, 3, S, place, left, right));
            else
                add_bias(w, b * branches + j, add_gradients(sum, sums_j, s, seen + f->channels, weight_j, x, C, 5, S, place, left, right));
        }
        if (w->input) add_input_sums(w->input + 2 * b, sum, map, s->x_pixel, &n, w->count, C);
        if (!s->to) continue;
        finish_tile(sum, &w->to, (char *)(s->to + (c + place) * s->to_pixel + b * VL), w->lines, b, 1, C, SEPNET_FLOAT32);
    }
    w->count += C;
}

INLINE void backward_tile(strip_work *w, const strip *s, int64_t c, const int C, const int K, const int S, const int left,
                          const int right, const int way) {
    gradient_tile(w, s, c, C, K, S, 0, left, right, way);
}
