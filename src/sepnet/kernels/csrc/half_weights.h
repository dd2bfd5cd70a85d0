/* Gradients of the weights and the bias of a pointwise convolution of bfloat16 maps: g' x, a sum over all pixels. Included after
 * half_pointwise.h.
 *
 * Pixels are packed in pairs, as what multiplies wants two values at a time. Of one of the two maps AMX needs them as columns, which takes
 * longer than to pack the other: it is the one of fewer channels, "left" here. Some pixels at a time are packed and added to a sum of
 * floats for all of the weights, block by block. Threads share the pixels, or, where the weights are too many or the
 * pixels too few for that, the left channels. The bias' gradient is a product with ones. */

enum { STEP_PIXELS = 2 * UNITS };          /* of a step */
enum { STEP_FLOATS = UNITS * CHANNELS };   /* 32 channels of them, packed */
enum { MOST_STEPS = 16, LEAST_STEPS = 8 }; /* packed at once */
enum { PACKED_BYTES = 512 << 10 };
enum { SHARED_WEIGHTS = 1 << 18 };         /* up to which each thread may have a sum of its own */
enum { LEAST_SHARE = 8 * STEP_PIXELS };    /* pixels that are worth one */

typedef struct {
    int64_t rows, left, right; /* channels */
    const uint16_t *l, *r;
    side enters;         /* of x */
    int bias_of_left;    /* g is the left one */
    int64_t steps;       /* of pixels, packed at once */
    int64_t blocks, shares, block; /* of left channels; of pixels */
    float *grad_weight, *grad_bias; /* (out, in); NULL if nobody asks */
    const tall_product *tall; /* dL/dx, which is computed of the same pixels while they are in cache, or NULL */
    uint16_t *zeros;     /* a pixel */
    char *scratch;       /* a task: sums of the weights, of the bias, packed maps */
    int64_t scratch_bytes;
} weights_job;

static int64_t left_bytes(const weights_job *s) { return s->steps * (s->block / CHANNELS) * STEP_FLOATS * (int64_t)sizeof(float); }
static int64_t right_bytes(const weights_job *s) { return s->steps * (s->right / CHANNELS) * STEP_FLOATS * (int64_t)sizeof(float); }
static int64_t sums_of_weights(const weights_job *s) { return s->block * s->right * (int64_t)sizeof(float); }
static int64_t sums_of_bias(const weights_job *s) { return aligned(sepnet_max(s->block, s->right) * (int64_t)sizeof(double)); }

static weights_job make_weights_job(const sepnet_pointwise *conv) {
    weights_job s = {.rows = conv->rows, .bias_of_left = conv->out < conv->in};
    s.left = sepnet_min(conv->in, conv->out), s.right = sepnet_max(conv->in, conv->out);
    const int64_t most_shares = sepnet_max(1, conv->rows / LEAST_SHARE);
    const int64_t wanted = s.left * s.right > SHARED_WEIGHTS ? conv->threads : sepnet_max(1, conv->threads / most_shares);
    s.blocks = sepnet_min(wanted, s.left / CHANNELS);
    s.block = sepnet_round_up((s.left + s.blocks - 1) / s.blocks, CHANNELS);
    s.blocks = (s.left + s.block - 1) / s.block;
    s.shares = sepnet_max(1, sepnet_min(conv->threads / s.blocks, most_shares));
    const int64_t fit = PACKED_BYTES / ((s.block + s.right) * STEP_PIXELS * (int64_t)sizeof(uint16_t));
    s.steps = sepnet_max(LEAST_STEPS, sepnet_min(MOST_STEPS, fit));
    s.scratch_bytes = sums_of_weights(&s) + sums_of_bias(&s) + left_bytes(&s) + right_bytes(&s);
    return s;
}

static int64_t weights_bytes(const weights_job *s) {
    return aligned(s->right * (int64_t)sizeof *s->zeros) + s->blocks * s->shares * s->scratch_bytes;
}

/* --- packing ------------------------------------------------------------------------------------------------------------------ */

/* The pixels of a step; beyond the last one of all there are zeros. */
INLINE const uint16_t *pixel_at(const uint16_t *map, int64_t channels, int64_t row, int64_t end, const uint16_t *zeros) {
    return row < end ? map + row * channels : zeros;
}

/* Of 16 channels. */
INLINE vf two_pixels(const weights_job *s, const uint16_t *first, const uint16_t *second, int64_t c, const int entering) {
    return entering ? load_entering(&s->enters, first, second, c) : load_pairs(first + c, second + c);
}

/* Channels [begin, end) of two pixels to panels, `apart` floats from one to the next. */
INLINE void pack_pair(const weights_job *s, const uint16_t *first, const uint16_t *second, int64_t begin, int64_t end, float *to,
                      int64_t apart, const int entering) {
    for (int64_t c = begin; c < end; c += CHANNELS, to += apart)
        for (int v = 0; v < CHANNELS; v += VL) *(vf *)(to + v) = two_pixels(s, first, second, c + v, entering);
}

/* What packs on the left and multiplies: pack_left, add_block, add_bias_of_left, add_bias_of_panel. */
#ifdef HAVE_AMX
#include "amx_sums.h"
#else
#include "vector_sums.h"
#endif

/* All channels of 32 pixels to panels, `apart` floats from one to the next. Those of the next 32 are fetched meanwhile. */
INLINE void pack_right(const weights_job *s, int64_t row, int64_t stop, float *to, int64_t apart, const int entering) {
    const char *next_left = (const char *)(s->l + (row + STEP_PIXELS) * s->left);
    const char *next_right = (const char *)(s->r + (row + STEP_PIXELS) * s->right);
    for (int64_t i = 0; i < STEP_PIXELS; i += 2, to += CHANNELS) {
        next_left = fetch(next_left, (size_t)(2 * s->left) * sizeof *s->l);
        next_right = fetch(next_right, (size_t)(2 * s->right) * sizeof *s->r);
        const uint16_t *first = pixel_at(s->r, s->right, row + i, stop, s->zeros);
        const uint16_t *second = pixel_at(s->r, s->right, row + i + 1, stop, s->zeros);
        pack_pair(s, first, second, 0, s->right, to, apart, entering);
    }
}

/* --- products ----------------------------------------------------------------------------------------------------------------- */

/* Where the parts of a task's scratch are. */
typedef struct {
    float *sums, *left, *right; /* sums: [left block][panel][32][32] */
    double *bias;
} task_scratch;

static task_scratch scratch_of(const weights_job *s, int64_t task) {
    char *at = s->scratch + task * s->scratch_bytes;
    task_scratch t = {.sums = (float *)at, .bias = (double *)(at + sums_of_weights(s))};
    t.left = (float *)((char *)t.bias + sums_of_bias(s));
    t.right = (float *)((char *)t.left + left_bytes(s));
    return t;
}

/* Channels [begin, end) on the left, and so many packed steps. */
static void add_steps(const weights_job *s, task_scratch t, int64_t begin, int64_t end, int64_t steps, int first) {
    const int64_t apart = s->steps * STEP_FLOATS;
    const float *left = t.left;
    float *sums = t.sums;
    for (int64_t c = 0; c < end - begin; c += CHANNELS, left += apart) {
        const float *panel = t.right;
        if (s->grad_bias && s->bias_of_left) add_bias_of_left(t.bias + c, left, apart, steps);
        for (int64_t n = 0; n < s->right; n += CHANNELS, panel += apart, sums += CHANNELS * CHANNELS) {
            if (s->grad_bias && !s->bias_of_left && begin + c == 0) /* the same in every block */
                add_bias_of_panel(t.bias + n, panel, steps);
            if (s->grad_weight) add_block(sums, left, apart, panel, steps, first);
        }
    }
}

/* The packed step `steps`, of the pixels from `row` on. */
static void pack_step(const weights_job *s, int64_t begin, int64_t end, int64_t row, int64_t stop, const task_scratch *t, int64_t steps) {
    const int64_t apart = s->steps * STEP_FLOATS;
    const int entering = s->enters.scale != NULL;
    if (entering && !s->bias_of_left)
        pack_left(s, begin, end, row, stop, t->left, apart, steps, 1);
    else
        pack_left(s, begin, end, row, stop, t->left, apart, steps, 0);
    if (entering && s->bias_of_left)
        pack_right(s, row, stop, t->right + steps * STEP_FLOATS, apart, 1);
    else
        pack_right(s, row, stop, t->right + steps * STEP_FLOATS, apart, 0);
}

/* The first pixel of a share: of a step. */
static int64_t share_begin(const weights_job *s, int64_t share) {
    return sepnet_min(sepnet_part_begin((s->rows + STEP_PIXELS - 1) / STEP_PIXELS, s->shares, share) * STEP_PIXELS, s->rows);
}

static void weights_part(void *context, int64_t task, sepnet_worker worker) {
    const weights_job own = *(const weights_job *)context, *s = &own;
    const int64_t begin = task % s->blocks * s->block, end = sepnet_min(begin + s->block, s->left), share = task / s->blocks;
    const int64_t stop = share_begin(s, share + 1);
    const task_scratch t = scratch_of(s, task);
    memset(t.bias, 0, (size_t)sums_of_bias(s));
    set_up_tiles();
    int first = 1;
    for (int64_t row = share_begin(s, share); row < stop; first = 0) {
        int64_t steps = 0;
        if (s->tall) multiply_bands(s->tall, row, sepnet_min(row + s->steps * STEP_PIXELS, stop), share, worker.index, first);
        for (; steps < s->steps && row < stop; steps++, row += STEP_PIXELS) pack_step(s, begin, end, row, stop, &t, steps);
        add_steps(s, t, begin, end, steps, first);
    }
    give_tiles_back();
}

/* --- the result --------------------------------------------------------------------------------------------------------------- */

/* A row of blocks: 32 left channels. */
static void put_weights(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const weights_job *s = context;
    const int64_t channel = part * CHANNELS, block = channel / s->block, from = (channel - block * s->block) * s->right;
    for (int64_t n = 0; n < s->right; n += CHANNELS) {
        vf sum[CHANNELS][CHANNELS / VL], turned[CHANNELS][CHANNELS / VL];
        memcpy(sum, scratch_of(s, block).sums + from + n * CHANNELS, sizeof sum);
        for (int64_t share = 1; share < s->shares; share++) {
            const vf *more = (const vf *)(scratch_of(s, share * s->blocks + block).sums + from + n * CHANNELS);
            for (int i = 0; i < CHANNELS; i++)
                for (int v = 0; v < CHANNELS / VL; v++) sum[i][v] += *more++;
        }
        if (s->bias_of_left) {
            for (int r = 0; r < CHANNELS; r++) memcpy(s->grad_weight + (channel + r) * s->right + n, sum[r], sizeof sum[r]);
            continue;
        }
        turn_block((const float *)sum, CHANNELS, CHANNELS, (float *)turned);
        for (int c = 0; c < CHANNELS; c++) memcpy(s->grad_weight + (n + c) * s->left + channel, turned[c], sizeof turned[c]);
    }
}

static void put_bias(const weights_job *s) {
    const int64_t channels = s->bias_of_left ? s->left : s->right;
    for (int64_t n = 0; n < channels; n++) {
        const int64_t block = s->bias_of_left ? n / s->block : 0, at = s->bias_of_left ? n % s->block : n;
        double sum = 0;
        for (int64_t share = 0; share < s->shares; share++) sum += scratch_of(s, share * s->blocks + block).bias[at];
        s->grad_bias[n] = (float)sum;
    }
}

static void gradients_of_weights(const sepnet_pointwise *conv, side enters, const tall_product *tall, const uint16_t *x,
                                 const uint16_t *grad, float *grad_weight, float *grad_bias, void *workspace) {
    weights_job s = make_weights_job(conv);
    s.enters = enters, s.tall = tall;
    s.l = s.bias_of_left ? grad : x, s.r = s.bias_of_left ? x : grad;
    s.grad_weight = grad_weight, s.grad_bias = grad_bias;
    s.zeros = (uint16_t *)aligned((int64_t)(intptr_t)workspace);
    memset(s.zeros, 0, (size_t)s.right * sizeof *s.zeros);
    s.scratch = (char *)s.zeros + aligned(s.right * (int64_t)sizeof *s.zeros);
    sepnet_run_parts(weights_part, &s, s.blocks * s.shares, conv->threads);
    if (grad_weight) sepnet_run_parts(put_weights, &s, s.left / CHANNELS, conv->threads);
    if (grad_bias) put_bias(&s);
}

/* --- altogether --------------------------------------------------------------------------------------------------------------- */

static int64_t pointwise_workspace(const sepnet_pointwise *conv, int backward) {
    if (conv->in % CHANNELS || conv->out % CHANNELS) return -1;
    if (!backward) return ALIGN + tall_bytes(conv->in, conv->out, conv->threads);
    const weights_job s = make_weights_job(conv);
    return 2 * ALIGN + tall_bytes(conv->out, conv->in, conv->threads) + weights_bytes(&s);
}

static void pointwise_forward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const float *bias, void *y, void *workspace) {
    tall_product s = {.rows = conv->rows, .depth = conv->in, .cols = conv->out, .threads = conv->threads, .a = x, .small = weight,
                      .bias = bias, .transposed = 1, .c = y};
    if (joined) s.enters = open_side(joined->before, conv->in, joined->before_relu), s.sums = joined->sums ? MOMENTS : NO_SUMS;
    run_tall(s, joined ? joined->sums : NULL, workspace);
}

static void pointwise_backward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                               const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    tall_product s = {.rows = conv->rows, .depth = conv->out, .cols = conv->in, .threads = conv->threads, .a = grad, .small = weight,
                      .c = grad_x};
    const side before = open_side(joined ? joined->before : NULL, conv->in, joined && joined->before_relu);
    if (before.scale && joined->sums) s.sums = GATED, s.gate = before, s.of = x;
    const weights_job weights = make_weights_job(conv);
    const int together = grad_x && grad_weight && weights.blocks == 1;
    if (together) {
        prepare_tall(&s, workspace);
        s.parts = weights.shares;
    } else if (grad_x) {
        run_tall(s, joined ? joined->sums : NULL, workspace);
    }
    char *rest = (char *)workspace + tall_bytes(conv->out, conv->in, conv->threads) + ALIGN;
    if (grad_weight || grad_bias) gradients_of_weights(conv, before, together ? &s : NULL, x, grad, grad_weight, grad_bias, rest);
    if (together && s.sums) reduce_result_sums(&s, joined->sums);
}
