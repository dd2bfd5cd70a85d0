/* Gradients of the weights and the bias of a pointwise convolution of float32 maps, and its passes altogether. Included after pointwise.h.
 *
 * dL/dw = g' x sums over the pixels: both matrices are copied, some pixels at a time, into what a tile reads one after the other. The
 * next pixels are fetched meanwhile. */

enum { MOST_PIXELS = VL == 16 ? 128 : 144, MOST_OUTPUTS = 43 * TILE_ROWS }; /* what is copied at once, for the L2 cache */
enum { LEAST_OUTPUTS = 8 * TILE_ROWS }; /* that are worth a copy of the inputs of their own */
enum { LEAST_SHARE = 256 };             /* pixels that are worth a gradient of their own, to be added */

/* A task is a block of outputs and a share of the pixels; the first share writes to the result, the others beside it. */
typedef struct {
    const sepnet_pointwise *conv;
    const float *x, *grad;
    side enters;                      /* of x */
    float *grad_weight, *more_weight; /* (out, in): of the first share, and of the others one after the other */
    double *bias_sums;                /* [task][bias_stride]; NULL if nobody asks */
    float *scratch;                   /* a worker: outputs of some pixels, tile by tile; inputs of some panels */
    int64_t block, blocks, shares, bias_stride, scratch_floats;
} weight_job;

static int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

static weight_job make_weight_job(const sepnet_pointwise *conv) {
    weight_job s = {.conv = conv};
    const int64_t most_shares = sepnet_max(1, conv->rows / LEAST_SHARE);
    s.blocks = sepnet_min((conv->threads + most_shares - 1) / most_shares, conv->out / LEAST_OUTPUTS); /* a task for each thread */
    s.blocks = sepnet_max(s.blocks, (conv->out + MOST_OUTPUTS - 1) / MOST_OUTPUTS);
    s.block = sepnet_round_up((conv->out + s.blocks - 1) / s.blocks, TILE_ROWS);
    s.blocks = (conv->out + s.block - 1) / s.block;
    s.shares = conv->threads / gcd(conv->threads, s.blocks); /* as many tasks for each thread */
    s.shares = sepnet_min(s.shares, most_shares);
    s.bias_stride = sepnet_round_up(s.block, VL);
    s.scratch_floats = MOST_PIXELS * (s.block + NEAR_PANELS * TILE_COLS);
    return s;
}

static int64_t bias_doubles(const weight_job *s) { return s->blocks * s->shares * s->bias_stride; }

static int64_t weight_job_bytes(const weight_job *s) {
    int64_t floats = s->conv->threads * s->scratch_floats + (s->shares - 1) * s->conv->in * s->conv->out;
    return ALIGN + floats * (int64_t)sizeof(float) + bias_doubles(s) * (int64_t)sizeof(double);
}

/* Adds the outputs of pixels [first, last), eight in float32 first. */
INLINE void add_outputs(const weight_job *s, int64_t begin, int64_t end, int64_t first, int64_t last, double *sums) {
    for (; first < last; first += 8) {
        int64_t pixels = sepnet_min(8, last - first);
        for (int64_t n = begin; n < end; n += VL) {
            const int lanes = (int)sepnet_min(VL, end - n);
            vf sum = splat(0);
            for (int64_t i = 0; i < pixels; i++)
                sum += lanes == VL ? load_lanes(s->grad, (first + i) * s->conv->out + n, VL, SEPNET_FLOAT32)
                                   : load_lanes(s->grad, (first + i) * s->conv->out + n, lanes, SEPNET_FLOAT32);
            add_doubles(sums + n - begin, sum);
        }
    }
}

/* Inputs [begin, end) of pixels [first, last) as they enter. Beyond the last one there are zeros. */
static void pack_entering(const weight_job *s, int64_t first, int64_t last, int64_t begin, int64_t end, float *to) {
    const side e = s->enters; /* which no store can alias */
    const float *x = s->x + first * s->conv->in;
    for (; first < last; first++, x += s->conv->in, to += TILE_COLS) {
        float *at = to;
        for (int64_t c = begin; c < end; c += TILE_COLS, at += TILE_COLS * MOST_PIXELS)
            for (int v = 0; v < TILE_COLS; v += VL) {
                const int lanes = (int)sepnet_max(0, sepnet_min(VL, end - c - v));
                *(vfu *)(at + v) = lanes == VL ? enter_value(&e, c + v, load_lanes(x, c + v, VL, SEPNET_FLOAT32))
                                   : lanes     ? enter_lanes(&e, c + v, lanes, load_lanes(x, c + v, lanes, SEPNET_FLOAT32))
                                               : splat(0);
            }
    }
}

static void pack_inputs(const weight_job *s, int64_t first, int64_t last, int64_t begin, int64_t end, float *panels) {
    const int64_t in = s->conv->in;
    if (s->enters.scale)
        pack_entering(s, first, last, begin, end, panels);
    else
        pack_columns(s->x + first * in, in, last - first, begin, end, TILE_COLS, panels, TILE_COLS * MOST_PIXELS);
}

/* Adds some pixels' products to a block of the gradient, or writes them if they are the first; the next pixels are fetched. */
INLINE void correlate_pixels(const weight_job *s, int64_t begin, int64_t end, int64_t first, int64_t last, const float *outputs,
                             float *panels, float *to, int add) {
    int64_t in = s->conv->in, out = s->conv->out, tiles = panels_of(in) * ((end - begin + TILE_ROWS - 1) / TILE_ROWS);
    const char *next_x = (const char *)(s->x + last * in), *next_grad = (const char *)(s->grad + last * out);
    size_t share_x = (size_t)((last - first) * in * 4 / tiles), share_grad = (size_t)((last - first) * out * 4 / tiles);
    for (int64_t left = 0, near = 0; left < in; left += TILE_COLS, near = (near + 1) % NEAR_PANELS) {
        int cols = (int)sepnet_min(TILE_COLS, in - left);
        int64_t right = sepnet_min(left + NEAR_PANELS * TILE_COLS, in);
        if (!near) pack_inputs(s, first, last, left, right, panels);
        const float *inputs = panels + near * TILE_COLS * MOST_PIXELS;
        for (int64_t n = begin; n < end; n += TILE_ROWS) {
            next_x = fetch(next_x, share_x), next_grad = fetch(next_grad, share_grad);
            const float *a[TILE_ROWS];
#pragma GCC unroll 16
            for (int r = 0; r < TILE_ROWS; r++) {
                a[r] = outputs + (n - begin) * MOST_PIXELS + r;
                __builtin_prefetch(to + (n + r) * in + left, 1);
            }
            tile sum;
            clear_tile(sum);
            add_products(sum, a, TILE_ROWS, inputs, last - first);
            put_tile(sum, to + n * in + left, in, (int)sepnet_min(TILE_ROWS, end - n), cols, NULL, add);
        }
    }
}

static void weight_part(void *context, int64_t task, sepnet_worker worker) {
    const weight_job *s = context;
    int64_t in = s->conv->in, out = s->conv->out, rows = s->conv->rows, share = task / s->blocks;
    int64_t begin = task % s->blocks * s->block, end = sepnet_min(begin + s->block, out);
    int64_t from = sepnet_part_begin(rows, s->shares, share), stop = sepnet_part_begin(rows, s->shares, share + 1);
    float *outputs = s->scratch + worker.index * s->scratch_floats, *panels = outputs + s->block * MOST_PIXELS;
    float *weight = share ? s->more_weight + (share - 1) * in * out : s->grad_weight;
    double *sums = s->bias_sums ? s->bias_sums + task * s->bias_stride : NULL;
    if (sums) memset(sums, 0, (size_t)s->bias_stride * sizeof *sums);
    for (int64_t first = from; first < stop; first += MOST_PIXELS) {
        int64_t last = sepnet_min(first + MOST_PIXELS, stop);
        if (sums) add_outputs(s, begin, end, first, last, sums);
        if (!s->grad_weight) continue;
        pack_columns(s->grad + first * out, out, last - first, begin, end, TILE_ROWS, outputs, TILE_ROWS * MOST_PIXELS);
        correlate_pixels(s, begin, end, first, last, outputs, panels, weight, first > from);
    }
}

static void add_shares(const weight_job *s, float *grad_bias) {
    int64_t count = s->conv->in * s->conv->out;
    const float *more = s->more_weight;
    for (int64_t share = 1; s->grad_weight && share < s->shares; share++, more += count)
        for (int64_t i = 0; i < count; i++) s->grad_weight[i] += more[i];
    for (int64_t n = 0; grad_bias && n < s->conv->out; n++) {
        double sum = 0;
        for (int64_t share = 0; share < s->shares; share++)
            sum += s->bias_sums[(share * s->blocks + n / s->block) * s->bias_stride + n % s->block];
        grad_bias[n] = (float)sum;
    }
}

static void gradients_of_weights(const sepnet_pointwise *conv, side enters, const float *x, const float *grad, float *grad_weight,
                                 float *grad_bias, void *workspace) {
    weight_job s = make_weight_job(conv);
    double *sums = (double *)aligned((int64_t)(intptr_t)workspace);
    s.x = x, s.enters = enters, s.grad = grad, s.grad_weight = grad_weight, s.bias_sums = grad_bias ? sums : NULL;
    s.scratch = (float *)(sums + bias_doubles(&s));
    s.more_weight = s.scratch + conv->threads * s.scratch_floats;
    sepnet_run_parts(weight_part, &s, s.blocks * s.shares, conv->threads);
    add_shares(&s, grad_bias);
}

/* --- altogether --------------------------------------------------------------------------------------------------------------- */

static int64_t pointwise_workspace(const sepnet_pointwise *conv, int backward) {
    if (!backward) return product_bytes(conv->in, conv->out, conv->threads);
    const weight_job s = make_weight_job(conv);
    return sepnet_max(product_bytes(conv->out, conv->in, conv->threads), weight_job_bytes(&s));
}

static void pointwise_forward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const float *bias, void *y, void *workspace) {
    product s = {.rows = conv->rows, .depth = conv->in, .cols = conv->out, .threads = conv->threads, .a = x, .small = weight, .bias = bias,
                 .transposed = 1, .c = y};
    if (joined) s.enters = open_side(joined->before, conv->in, joined->before_relu), s.sums = joined->sums ? MOMENTS : NO_SUMS;
    run_product(s, joined ? joined->sums : NULL, workspace);
}

static void pointwise_backward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                               const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    const side before = open_side(joined ? joined->before : NULL, conv->in, joined && joined->before_relu);
    if (grad_x) {
        product s = {.rows = conv->rows, .depth = conv->out, .cols = conv->in, .threads = conv->threads, .a = grad, .small = weight,
                     .c = grad_x};
        if (before.scale && joined->sums) s.sums = GATED, s.gate = before, s.of = x;
        run_product(s, joined ? joined->sums : NULL, workspace);
    }
    if (grad_weight || grad_bias) gradients_of_weights(conv, before, x, grad, grad_weight, grad_bias, workspace);
}
