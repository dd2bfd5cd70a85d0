/* Calls every function of sepnet_kernels.h on random descriptions and compares with loops written from the definitions, in double.
 *
 * Every buffer and workspace is a block of the heap of exactly the size that it must have, filled with NaN, so that under the address
 * sanitizer whoever reads or writes beyond it is found out, and whoever reads what it has not written computes NaN.
 *
 * usage: kernels_driver ISA THREADS CALLERS CASES
 *     THREADS: of one call. CALLERS: threads that call at once, CASES cases each. Ends with 0 if all agree, 77 if the processor
 *     has not got the instruction set. */
#include "sepnet_kernels.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double FLOAT_UNIT = 1.0 / (1 << 24), BFLOAT_UNIT = 1.0 / (1 << 8);
static int the_threads;

/* --- random numbers, buffers ----------------------------------------------------------------------------------------------- */

static _Thread_local uint64_t state;

static int64_t pick(int64_t low, int64_t high) { /* low to high, both included */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return low + (int64_t)((state >> 11) % (uint64_t)(high - low + 1));
}

static float random_float(void) { return (float)pick(-1000, 1000) / 500.0f; }

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

/* Half of them begin with a cache line, as PyTorch's do, and are written line by line where they are large. */
static void *block(int64_t bytes) {
    void *memory;
    if (posix_memalign(&memory, pick(0, 1) ? 64 : 16, (size_t)bytes)) abort();
    if (bytes) memset(memory, 0xff, (size_t)bytes);
    return memory;
}

static float *floats(int64_t count) {
    float *memory = block(count * 4);
    for (int64_t i = 0; i < count; i++) memory[i] = random_float();
    return memory;
}

static double get(const void *map, int dtype, int64_t index) {
    if (dtype == SEPNET_FLOAT32) return ((const float *)map)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)map)[index] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static int64_t width_of(int dtype) { return dtype == SEPNET_FLOAT32 ? 4 : 2; }

static void *random_map(int64_t count, int dtype) {
    void *map = block(count * width_of(dtype));
    for (int64_t i = 0; i < count; i++) {
        float value = random_float();
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (dtype == SEPNET_FLOAT32)
            ((float *)map)[i] = value;
        else
            ((uint16_t *)map)[i] = (uint16_t)(bits >> 16);
    }
    return map;
}

/* The nearest bfloat16, of two the even one. */
static float to_bfloat(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    memcpy(&value, &bits, 4);
    return value;
}

/* Whether weights are rounded where maps are bfloat16: where pairs of them are multiplied. */
static int rounds_weights(int dtype) { return dtype == SEPNET_BFLOAT16 && strcmp(sepnet_isa(), "avx512_bf16") == 0; }

/* Whether there are instructions for products of bfloat16, of pairs or not in depthwise convolutions. */
static int multiplies_halves(int dtype) { return dtype == SEPNET_BFLOAT16 && strncmp(sepnet_isa(), "avx512_bf16", 11) == 0; }

/* Weights that lose nothing by it. */
static float *filters_of(int64_t count, int dtype) {
    float *weights = floats(count);
    for (int64_t i = 0; rounds_weights(dtype) && i < count; i++) weights[i] = to_bfloat(weights[i]);
    return weights;
}

/* A result must be near `exact`; `slack` is what its sums may have lost. */
static void check(const char *what, double got, double exact, double slack, int dtype) {
    double unit = dtype == SEPNET_FLOAT32 ? FLOAT_UNIT : BFLOAT_UNIT;
    if (fabs(got - exact) <= slack + unit * (fabs(exact) + slack) + 1e-37) return;
    fprintf(stderr, "%s with %d threads: %s is %.9g, not %.9g (+- %.3g)\n", sepnet_isa(), the_threads, what, got, exact, slack);
    abort();
}

static void expect(int condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "%s: %s\n", sepnet_isa(), what);
    abort();
}

static void near_maps(const char *what, const void *got, const void *wanted, int dtype, int64_t count, double size) {
    for (int64_t i = 0; i < count; i++) check(what, get(got, dtype, i), get(wanted, dtype, i), 1e-4 * size, dtype);
}

/* --- depthwise convolution ------------------------------------------------------------------------------------------------- */

static int64_t output_size(int64_t size, int64_t kernel, int64_t pad, int64_t dilation, int64_t stride) {
    int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1;
    return span < 0 ? 0 : span / stride + 1;
}

static int fits(const sepnet_depthwise *d, const sepnet_branch *b) {
    return d->out_h == output_size(d->in_h, b->kernel_h, b->pad_h, b->dilation_h, d->stride_h) &&
           d->out_w == output_size(d->in_w, b->kernel_w, b->pad_w, b->dilation_w, d->stride_w);
}

static sepnet_branch random_branch(void) {
    int64_t pad = pick(0, 3) ? 4 : 12, dilation = pick(0, 2) ? 2 : 6;
    return (sepnet_branch){pick(1, 7), pick(1, 7), pick(0, pad), pick(0, pad), pick(1, dilation), pick(1, dilation)};
}

/* Such as some instruction sets need no planes for: 3x3 and 5x5 of whole vectors, whose padding keeps the map's size, or one 3x3 whose
 * padding halves it. */
static void usual_branches(sepnet_depthwise *d) {
    d->channels = pick(0, 5) ? 8 * pick(1, 6) : 272, d->stride_h = d->stride_w = pick(1, 2);
    if (d->stride_h == 2) d->branches = 1;
    if (pick(0, 1)) d->interleaved = 0;
    const int apart = pick(0, 2) == 0; /* each branch with a dilation of its own */
    int64_t h = pick(1, 6), w;
    if (d->stride_h == 2 && pick(0, 1)) h = 2 * pick(2, 4) + 1; /* wider than half of many a map: a column may be seen by nobody */
    w = pick(0, 2) ? h : pick(1, 6);
    const int64_t unseen = d->stride_h == 2 && h == 2 && w == 2 ? pick(0, 1) : 0; /* rows and columns before the first that taps see */
    for (int j = 0; j < d->branches; j++) {
        const int64_t side = d->stride_h == 1 && pick(0, 1) ? 5 : 3;
        if (apart && j > 0) *(pick(0, 1) ? &h : &w) = pick(1, 3);
        d->branch[j] = (sepnet_branch){side, side, side / 2 * h - unseen, side / 2 * w - unseen, h, w};
    }
}

static sepnet_depthwise random_depthwise(void) {
    sepnet_depthwise d = {.batch = pick(0, 3), .channels = pick(1, 35), .stride_h = pick(1, 3), .stride_w = pick(1, 3)};
    if (pick(0, 3) == 0) d.batch = pick(0, 20), d.channels = pick(1, 4); /* images that share a vector */
    if (pick(0, 3) == 0) d.channels = 16 * pick(1, 4);                                       /* whole cache lines */
    d.branches = (int32_t)pick(1, 4), d.interleaved = (int32_t)pick(0, 1), d.dtype = (int32_t)pick(0, 1), d.threads = the_threads;
    const int usual = pick(0, 2) == 0;
    do {
        if (usual)
            usual_branches(&d);
        else
            d.branch[0] = random_branch();
        d.in_h = pick(1, 14), d.in_w = pick(0, 9) ? pick(1, 22) : pick(60, 90);
        d.out_h = output_size(d.in_h, d.branch[0].kernel_h, d.branch[0].pad_h, d.branch[0].dilation_h, d.stride_h);
        d.out_w = output_size(d.in_w, d.branch[0].kernel_w, d.branch[0].pad_w, d.branch[0].dilation_w, d.stride_w);
    } while (d.out_h < 1 || d.out_w < 1);
    for (int j = 1; j < d.branches; j++) {
        if (!usual || d.interleaved) d.branch[j] = d.branch[0];
        for (int i = 0; i < 300 && !usual && !d.interleaved; i++) {
            sepnet_branch b = random_branch();
            if (fits(&d, &b)) d.branch[j] = b;
        }
    }
    return d;
}

/* Places in the arrays. */
static int64_t in_index(const sepnet_depthwise *d, int64_t n, int64_t h, int64_t w, int64_t c) {
    return ((n * d->in_h + h) * d->in_w + w) * d->channels + c;
}
static int64_t out_channel(const sepnet_depthwise *d, int64_t c, int64_t j) {
    return d->interleaved ? c * d->branches + j : j * d->channels + c;
}
static int64_t out_index(const sepnet_depthwise *d, int64_t n, int64_t h, int64_t w, int64_t c, int64_t j) {
    return ((n * d->out_h + h) * d->out_w + w) * d->channels * d->branches + out_channel(d, c, j);
}
static int64_t weight_index(const sepnet_depthwise *d, int64_t c, int64_t j) {
    int64_t before = 0;
    if (d->interleaved) return out_channel(d, c, j) * d->branch[0].kernel_h * d->branch[0].kernel_w;
    for (int64_t i = 0; i < j; i++) before += d->branch[i].kernel_h * d->branch[i].kernel_w * d->channels;
    return before + c * d->branch[j].kernel_h * d->branch[j].kernel_w;
}

/* A value and the sum of its terms' magnitudes. */
typedef struct {
    double value, size;
} total;

static void add(total *to, double a, double b) { to->value += a * b, to->size += fabs(a * b); }

typedef struct {
    total *y, *grad_x, *grad_weight, *grad_bias;
} answers;

/* All products of the convolution, dealt out to what they are summed into. */
static void deal(const sepnet_depthwise *d, const void *x, const float *weight, const void *grad, answers to, int64_t n, int64_t j,
                 int64_t oh, int64_t ow, int64_t c) {
    const sepnet_branch *b = &d->branch[j];
    int64_t out = out_index(d, n, oh, ow, c, j), first = weight_index(d, c, j);
    double g = get(grad, d->dtype, out);
    add(&to.grad_bias[out_channel(d, c, j)], g, 1);
    for (int64_t r = 0; r < b->kernel_h; r++)
        for (int64_t s = 0; s < b->kernel_w; s++) {
            int64_t h = oh * d->stride_h - b->pad_h + r * b->dilation_h, w = ow * d->stride_w - b->pad_w + s * b->dilation_w;
            if (h < 0 || h >= d->in_h || w < 0 || w >= d->in_w) continue;
            int64_t in = in_index(d, n, h, w, c), tap = first + r * b->kernel_w + s;
            double value = get(x, d->dtype, in);
            add(&to.y[out], value, weight[tap]);
            add(&to.grad_x[in], g, weight[tap]);
            add(&to.grad_weight[tap], g, value);
        }
}

static void compare(const char *what, const void *got, int dtype, const total *exact, int64_t count, int64_t terms) {
    double unit = (double)(terms + 2) * FLOAT_UNIT;
    for (int64_t i = 0; got && i < count; i++) check(what, get(got, dtype, i), exact[i].value, unit * exact[i].size, dtype);
}

static void try_depthwise(void) {
    sepnet_depthwise d = random_depthwise();
    int64_t inputs = d.batch * d.in_h * d.in_w * d.channels, filters = d.channels * d.branches, taps = 0, weights = 0;
    int64_t outputs = d.batch * d.out_h * d.out_w * filters;
    for (int j = 0; j < d.branches; j++) taps += d.branch[j].kernel_h * d.branch[j].kernel_w;
    weights = taps * d.channels;
    void *x = random_map(inputs, d.dtype), *grad = random_map(outputs, d.dtype), *y = block(outputs * width_of(d.dtype));
    float *weight = filters_of(weights, d.dtype), *bias = pick(0, 1) ? floats(filters) : NULL;
    void *grad_x = pick(0, 3) ? block(inputs * width_of(d.dtype)) : NULL;
    float *grad_weight = pick(0, 3) ? block(weights * 4) : NULL, *grad_bias = pick(0, 3) ? block(filters * 4) : NULL;

    int64_t bytes[2] = {sepnet_depthwise_workspace(&d, 0), sepnet_depthwise_workspace(&d, 1)};
    expect(bytes[0] >= 0 && bytes[1] >= 0, "a valid convolution is refused");
    void *workspace = block(bytes[0]);
    expect(sepnet_depthwise_forward(&d, NULL, x, weight, bias, y, workspace) == 0, "forward refuses");
    free(workspace);
    workspace = block(bytes[1]);
    expect(sepnet_depthwise_backward(&d, NULL, x, weight, grad, grad_x, grad_weight, grad_bias, workspace) == 0, "backward refuses");
    free(workspace);

    total *sums = calloc((size_t)(outputs + inputs + weights + filters), sizeof *sums);
    answers to = {sums, sums + outputs, sums + outputs + inputs, sums + outputs + inputs + weights};
    for (int64_t n = 0; n < d.batch; n++)
        for (int64_t j = 0; j < d.branches; j++)
            for (int64_t oh = 0; oh < d.out_h; oh++)
                for (int64_t ow = 0; ow < d.out_w; ow++)
                    for (int64_t c = 0; c < d.channels; c++) {
                        deal(&d, x, weight, grad, to, n, j, oh, ow, c);
                        if (bias) add(&to.y[out_index(&d, n, oh, ow, c, j)], bias[out_channel(&d, c, j)], 1);
                    }
    int64_t pixels = d.batch * d.out_h * d.out_w;
    compare("y", y, d.dtype, to.y, outputs, taps);
    compare("grad_x", grad_x, d.dtype, to.grad_x, inputs, taps);
    compare("grad_weight", grad_weight, SEPNET_FLOAT32, to.grad_weight, weights, pixels);
    compare("grad_bias", grad_bias, SEPNET_FLOAT32, to.grad_bias, filters, pixels);
    void *all[] = {x, grad, y, weight, bias, grad_x, grad_weight, grad_bias, sums};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* --- batch normalisation --------------------------------------------------------------------------------------------------- */

/* One channel of a normalisation. */
typedef struct {
    const sepnet_norm *norm;
    const void *x, *y, *grad;
    const uint8_t *argmax;
    int64_t channel;
    double mean, invstd, scale, shift, count;
} channel_of;

static int64_t rows_of(const sepnet_norm *m) { return m->pool ? m->height / 2 : m->height; }
static int64_t cols_of(const sepnet_norm *m) { return m->pool ? m->width / 2 : m->width; }

static double input(const channel_of *k, int64_t pixel) {
    return get(k->x, k->norm->dtype, pixel * k->norm->channels + k->channel);
}

/* Pixel of the input that window position `at` of an output pixel is. */
static int64_t source(const sepnet_norm *m, int64_t out, int at) {
    if (!m->pool) return out;
    int64_t col = out % cols_of(m), row = out / cols_of(m) % rows_of(m), image = out / cols_of(m) / rows_of(m);
    return (image * m->height + 2 * row + at / 2) * m->width + 2 * col + at % 2;
}

static void measure(channel_of *k, const float *gamma, const float *beta, double eps) {
    double sum = 0, square = 0;
    int64_t pixels = k->norm->batch * k->norm->height * k->norm->width;
    for (int64_t i = 0; i < pixels; i++) sum += input(k, i);
    k->count = (double)pixels, k->mean = sum / k->count;
    for (int64_t i = 0; i < pixels; i++) square += (input(k, i) - k->mean) * (input(k, i) - k->mean);
    k->invstd = 1 / sqrt(square / k->count + eps);
    k->scale = gamma[k->channel] * k->invstd, k->shift = beta[k->channel] - k->mean * k->scale;
}

static const double NEAR = 2e-5; /* float32 sums of some hundred numbers of size 1 */

/* The output is that of the constants; which pixel was kept may be any that is near enough to the largest. */
static void check_output(const channel_of *k, const void *y, const uint8_t *argmax) {
    const sepnet_norm *m = k->norm;
    int64_t outputs = m->batch * rows_of(m) * cols_of(m);
    double slack = NEAR * (1 + fabs(k->scale) * 8 + fabs(k->shift));
    for (int64_t i = 0; i < outputs; i++) {
        double best = -HUGE_VAL;
        for (int at = 0; at < (m->pool ? 4 : 1); at++) best = fmax(best, input(k, source(m, i, at)) * k->scale + k->shift);
        int64_t index = i * m->channels + k->channel;
        check("normalised y", get(y, m->dtype, index), m->relu ? fmax(best, 0) : best, slack, m->dtype);
        if (!argmax) continue;
        expect(argmax[index] < 4, "argmax beyond the window");
        check("kept", input(k, source(m, i, argmax[index])) * k->scale + k->shift, best, 2 * slack, SEPNET_FLOAT32);
    }
}

static void check_gradients(const channel_of *k, const void *grad_x, float grad_gamma, float grad_beta) {
    const sepnet_norm *m = k->norm;
    int64_t outputs = m->batch * rows_of(m) * cols_of(m), pixels = m->batch * m->height * m->width;
    double *reaching = calloc((size_t)pixels, sizeof *reaching), sum = 0, product = 0, size = 0;
    for (int64_t i = 0; i < outputs; i++) {
        int64_t index = i * m->channels + k->channel;
        if (m->relu && !(get(k->y, m->dtype, index) > 0)) continue;
        int64_t pixel = source(m, i, m->pool ? k->argmax[index] : 0);
        double grad = get(k->grad, m->dtype, index), standard = (input(k, pixel) - k->mean) * k->invstd;
        reaching[pixel] = grad, sum += grad, product += grad * standard, size += fabs(grad) * (1 + fabs(standard));
    }
    check("grad_gamma", grad_gamma, product, NEAR * (1 + size), SEPNET_FLOAT32);
    check("grad_beta", grad_beta, sum, NEAR * (1 + size), SEPNET_FLOAT32);
    for (int64_t i = 0; i < pixels; i++) {
        double standard = (input(k, i) - k->mean) * k->invstd;
        double exact = k->scale * (reaching[i] - sum / k->count - standard * product / k->count);
        check("normalised grad_x", get(grad_x, m->dtype, i * m->channels + k->channel), exact, NEAR * (1 + 8 * fabs(k->scale)), m->dtype);
    }
    free(reaching);
}

static sepnet_norm random_norm(void) {
    int32_t pool = (int32_t)pick(0, 1);
    sepnet_norm m = {pick(2, 4), pick(1, 35), pick(1, 9) + pool, pick(1, 9) + pool, pool, (int32_t)pick(0, 1), (int32_t)pick(0, 1), the_threads};
    return m;
}

static void try_norm(void) {
    sepnet_norm m = random_norm();
    int64_t inputs = m.batch * m.height * m.width * m.channels, outputs = m.batch * rows_of(&m) * cols_of(&m) * m.channels;
    void *x = random_map(inputs, m.dtype), *grad = random_map(outputs, m.dtype), *y = block(outputs * width_of(m.dtype));
    void *grad_x = block(inputs * width_of(m.dtype));
    float *gamma = floats(m.channels), *beta = floats(m.channels), *constants = block(SEPNET_CONSTANTS * m.channels * 4);
    float *grad_gamma = block(m.channels * 4), *grad_beta = block(m.channels * 4), *averages = floats(2 * m.channels);
    float *before = block(2 * m.channels * 4);
    uint8_t *argmax = m.pool ? block(outputs) : NULL;
    memcpy(before, averages, (size_t)(2 * m.channels) * 4);
    sepnet_running running = {averages, averages + m.channels, 0.25};
    double eps = 0.1;

    int64_t bytes = sepnet_norm_workspace(&m);
    expect(bytes >= 0, "a valid normalisation is refused");
    void *workspace = block(bytes);
    expect(sepnet_norm_forward(&m, x, NULL, NULL, gamma, beta, eps, &running, constants, y, argmax, workspace) == 0, "forward refuses");
    free(workspace);
    workspace = block(bytes);
    expect(sepnet_norm_backward(&m, x, y, argmax, grad, constants, grad_x, NULL, grad_gamma, grad_beta, workspace) == 0, "backward refuses");
    free(workspace);
    for (int64_t c = 0; c < m.channels; c++) {
        channel_of k = {.norm = &m, .x = x, .y = y, .grad = grad, .argmax = argmax, .channel = c};
        measure(&k, gamma, beta, eps);
        double variance = (1 / (k.invstd * k.invstd) - eps) * k.count / (k.count - 1);
        check("mean", constants[c], k.mean, NEAR, SEPNET_FLOAT32);
        check("invstd", constants[m.channels + c], k.invstd, NEAR * k.invstd, SEPNET_FLOAT32);
        check("average of means", averages[c], 0.75 * before[c] + 0.25 * k.mean, NEAR, SEPNET_FLOAT32);
        check("average of variances", averages[m.channels + c], 0.75 * before[m.channels + c] + 0.25 * variance, NEAR, SEPNET_FLOAT32);
        check_output(&k, y, argmax);
        check_gradients(&k, grad_x, grad_gamma[c], grad_beta[c]);
    }
    uint8_t *kept = argmax && pick(0, 1) ? argmax : NULL; /* need not be asked for */
    expect(sepnet_norm_apply(&m, x, NULL, gamma, beta, y, kept) == 0, "apply refuses");
    for (int64_t c = 0; c < m.channels; c++)
        check_output(&(channel_of){.norm = &m, .x = x, .channel = c, .scale = gamma[c], .shift = beta[c]}, y, kept);
    void *all[] = {x, grad, y, grad_x, gamma, beta, constants, grad_gamma, grad_beta, averages, before, argmax};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* --- a normalisation with a shortcut --------------------------------------------------------------------------------------- */

/* Against the same in separate steps, in float32. */
static void try_shortcut(void) {
    sepnet_norm m = random_norm();
    m.pool = 0, m.relu = 1, m.dtype = SEPNET_FLOAT32;
    int64_t values = m.batch * m.height * m.width * m.channels;
    float *x = random_map(values, m.dtype), *shortcut = random_map(values, m.dtype), *grad = random_map(values, m.dtype);
    float *gamma = floats(m.channels), *beta = floats(m.channels), *constants = block(SEPNET_CONSTANTS * m.channels * 4);
    float *y = block(values * 4), *alone = block(values * 4), *dx[2] = {block(values * 4), block(values * 4)}, *dr = block(values * 4);
    float *dgamma[2] = {block(m.channels * 4), block(m.channels * 4)}, *dbeta[2] = {block(m.channels * 4), block(m.channels * 4)};
    int64_t bytes = sepnet_norm_workspace(&m);
    void *workspace = block(bytes);
    expect(sepnet_norm_forward(&m, x, NULL, shortcut, gamma, beta, 0.1, NULL, constants, y, NULL, workspace) == 0, "shortcut refused");
    sepnet_norm open = m;
    open.relu = 0;
    sepnet_norm_apply(&open, x, NULL, constants + SEPNET_SCALE * m.channels, constants + SEPNET_SHIFT * m.channels, alone, NULL);
    for (int64_t i = 0; i < values; i++) check("y with a shortcut", y[i], fmax((double)alone[i] + shortcut[i], 0), 1e-5, m.dtype);
    float *again = block(SEPNET_CONSTANTS * m.channels * 4);
    memcpy(again, constants, (size_t)(SEPNET_CONSTANTS * m.channels) * 4);
    expect(sepnet_norm_backward(&m, x, y, NULL, grad, constants, dx[0], dr, dgamma[0], dbeta[0], workspace) == 0, "shortcut refused");
    for (int64_t i = 0; i < values; i++) check("the shortcut's gradient", dr[i], y[i] > 0 ? grad[i] : 0, 0, m.dtype);
    sepnet_norm_backward(&open, x, NULL, NULL, dr, again, dx[1], NULL, dgamma[1], dbeta[1], workspace);
    near_maps("dx with a shortcut", dx[0], dx[1], m.dtype, values, 10);
    near_maps("dgamma with a shortcut", dgamma[0], dgamma[1], SEPNET_FLOAT32, m.channels, (double)values);
    near_maps("dbeta with a shortcut", dbeta[0], dbeta[1], SEPNET_FLOAT32, m.channels, (double)values);
    expect(sepnet_norm_apply(&open, x, shortcut, gamma, beta, y, NULL) == -1, "a shortcut without ReLU is taken");
    void *all[] = {x,  shortcut, grad,      gamma,     beta,     constants, y,        alone,
                   dr, dx[0],    dx[1],     dgamma[0], dgamma[1], dbeta[0],  dbeta[1], again, workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* --- the convolution between two normalisations --------------------------------------------------------------------------- */

static float *random_constants(int64_t channels) {
    return floats(SEPNET_CONSTANTS * channels);
}

/* Two rows of sums must be those of `first` and of `second`, over a map's pixels. */
static void check_rows(const char *what, const double *rows, int64_t pixels, int64_t channels, const double *first, const double *second) {
    for (int64_t c = 0; c < channels; c++) {
        total one = {0}, two = {0};
        for (int64_t i = 0; i < pixels; i++) add(&one, first[i * channels + c], 1), add(&two, second[i * channels + c], 1);
        check(what, rows[c], one.value, 1e-4 * (1 + one.size), SEPNET_FLOAT32);
        check(what, rows[channels + c], two.value, 1e-4 * (1 + two.size), SEPNET_FLOAT32);
    }
}

/* Against the same in separate calls, in float32, where nothing is rounded on the way. */
static void try_joined(void) {
    sepnet_depthwise d = random_depthwise();
    d.dtype = SEPNET_FLOAT32;
    if (d.batch == 0 || (d.interleaved && d.branches > 1)) return;
    int64_t filters = d.channels * d.branches, pixels = d.batch * d.in_h * d.in_w, out_pixels = d.batch * d.out_h * d.out_w;
    int64_t inputs = pixels * d.channels, outputs = out_pixels * filters, taps = 0;
    for (int j = 0; j < d.branches; j++) taps += d.branch[j].kernel_h * d.branch[j].kernel_w;
    int32_t relus[2] = {(int32_t)pick(0, 1), (int32_t)pick(0, 1)};
    sepnet_norm in = {d.batch, d.channels, d.in_h, d.in_w, 0, relus[0], d.dtype, the_threads};
    sepnet_norm out = {d.batch, filters, d.out_h, d.out_w, 0, relus[1], d.dtype, the_threads};
    float *x = random_map(inputs, d.dtype), *grad = random_map(outputs, d.dtype), *weight = filters_of(taps * d.channels, d.dtype);
    float *bias = pick(0, 1) ? floats(filters) : NULL, *before = random_constants(d.channels), *after = random_constants(filters);
    float *z = block(inputs * 4), *y[2] = {block(outputs * 4), block(outputs * 4)}, *dy = block(outputs * 4);
    float *dz[2] = {block(inputs * 4), block(inputs * 4)};
    float *dw[2] = {block(taps * d.channels * 4), block(taps * d.channels * 4)}, *db[2] = {block(filters * 4), block(filters * 4)};
    double *rows = block(3 * filters * 8), *sums = block(2 * d.channels * 8);
    double *first = calloc((size_t)largest(inputs, outputs), 8), *second = calloc((size_t)largest(inputs, outputs), 8);

    for (int64_t i = 0; i < inputs; i++) { /* away from ReLU's edge, where rounding decides on which side a value falls */
        const float *of = before + i % d.channels;
        if (fabsf(x[i] * of[SEPNET_SCALE * d.channels] + of[SEPNET_SHIFT * d.channels]) < 1e-5f) x[i] += 0.25f;
    }
    sepnet_norm_apply(&in, x, NULL, before + SEPNET_SCALE * d.channels, before + SEPNET_SHIFT * d.channels, z, NULL);
    void *workspace = block(sepnet_depthwise_workspace(&d, 0));
    sepnet_depthwise_forward(&d, NULL, z, weight, bias, y[0], workspace);
    sepnet_joined joined = {.before = before, .sums = rows, .before_relu = relus[0]};
    expect(sepnet_depthwise_forward(&d, &joined, x, weight, bias, y[1], workspace) == 0, "joined forward refuses");
    free(workspace);
    near_maps("joined y", y[1], y[0], d.dtype, outputs, (double)taps);
    for (int64_t i = 0; i < outputs; i++) {
        double apart = (double)y[1][i] - rows[i % filters];
        first[i] = apart, second[i] = apart * apart;
    }
    check_rows("joined sums", rows + filters, out_pixels, filters, first, second);

    sepnet_norm_input_gradient(&out, y[0], NULL, NULL, grad, after, dy);
    workspace = block(sepnet_depthwise_workspace(&d, 1));
    sepnet_depthwise_backward(&d, NULL, z, weight, dy, dz[0], dw[0], db[0], workspace);
    joined = (sepnet_joined){.before = before, .after = after, .y = y[0], .sums = sums, .before_relu = relus[0], .after_relu = relus[1]};
    expect(sepnet_depthwise_backward(&d, &joined, x, weight, grad, dz[1], dw[1], db[1], workspace) == 0, "joined backward refuses");
    free(workspace);
    near_maps("joined dz", dz[1], dz[0], d.dtype, inputs, 50.0 * (double)taps);
    near_maps("joined dweight", dw[1], dw[0], SEPNET_FLOAT32, taps * d.channels, 50.0 * (double)out_pixels);
    near_maps("joined dbias", db[1], db[0], SEPNET_FLOAT32, filters, 50.0 * (double)out_pixels);
    for (int64_t i = 0; i < inputs; i++) {
        const float *of = before + i % d.channels;
        float value = x[i] * of[SEPNET_SCALE * d.channels] + of[SEPNET_SHIFT * d.channels];
        first[i] = relus[0] && !(value > 0) ? 0 : (double)dz[1][i];
        second[i] = first[i] * ((double)x[i] - of[SEPNET_MEAN * d.channels]);
    }
    check_rows("joined sums of gradients", sums, pixels, d.channels, first, second);
    void *all[] = {x, grad, weight, bias, before, after, z, y[0], y[1], dy, dz[0], dz[1], dw[0], dw[1], db[0], db[1], rows, sums, first, second};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* --- pointwise convolution ------------------------------------------------------------------------------------------------- */

/* got = the sum over i < count of a[i * a_step] * b[i * b_step], and extra. */
static void check_sum(const char *what, double got, const float *a, int64_t a_step, const float *b, int64_t b_step, int64_t count,
                      float extra, int dtype) {
    double sum = (double)extra, size = fabs(sum);
    for (int64_t i = 0; i < count; i++) {
        double product = (double)a[i * a_step] * (b ? (double)b[i * b_step] : 1);
        sum += product, size += fabs(product);
    }
    check(what, got, sum, (double)(count + 2) * FLOAT_UNIT * size, dtype);
}

static float *copy_as_floats(const void *map, int dtype, int64_t count) {
    float *copy = block(count * 4);
    for (int64_t i = 0; i < count; i++) copy[i] = (float)get(map, dtype, i);
    return copy;
}

#if defined(__x86_64__)
/* Whether the calling thread's registers of tiles are in use, which would be saved at every change of threads. */
__attribute__((target("xsave"))) static int holds_tiles(void) {
    enum { TILE_DATA = 1 << 18 };
    return strstr(sepnet_isa(), "_amx") && (__builtin_ia32_xgetbv(1) & TILE_DATA) != 0;
}
#else
static int holds_tiles(void) { return 0; }
#endif

static int takes_bfloat(void) {
    const sepnet_pointwise p = {1, 32, 32, SEPNET_BFLOAT16, 1};
    return sepnet_pointwise_workspace(&p, 0) >= 0;
}

static sepnet_pointwise random_pointwise(void) {
    int deep = pick(0, 5) == 0; /* more than a block of the small matrix */
    sepnet_pointwise p = {pick(1, deep ? 60 : 300), pick(deep ? 250 : 1, deep ? 600 : 70), pick(1, 150), SEPNET_FLOAT32, the_threads};
    if (deep && pick(0, 1)) p.in = pick(1, 40), p.out = pick(250, 600);
    if (pick(0, 9) == 0) p.rows = pick(500, 2000), p.in = pick(1, 20), p.out = pick(1, 20); /* shares */
    if (pick(0, 19) == 0) p.rows = pick(130, 700), p.in = pick(1, 20), p.out = pick(250, 700); /* blocks of outputs, some pixels at a time */
    if (takes_bfloat() && pick(0, 1))
        p.dtype = SEPNET_BFLOAT16, p.in = (p.in + 31) / 32 * 32, p.out = (p.out + 31) / 32 * 32;
    return p;
}

static void check_pointwise(sepnet_pointwise p, const void *x, const float *weight, const float *bias, const void *grad, const void *y,
                            const void *grad_x, const float *grad_weight, const float *grad_bias) {
    float *in = copy_as_floats(x, p.dtype, p.rows * p.in), *out = copy_as_floats(grad, p.dtype, p.rows * p.out);
    for (int64_t m = 0; m < p.rows; m++)
        for (int64_t n = 0; n < p.out; n++) {
            const float extra = bias ? bias[n] : 0;
            check_sum("pointwise y", get(y, p.dtype, m * p.out + n), in + m * p.in, 1, weight + n * p.in, 1, p.in, extra, p.dtype);
        }
    for (int64_t m = 0; grad_x && m < p.rows; m++)
        for (int64_t c = 0; c < p.in; c++)
            check_sum("pointwise grad_x", get(grad_x, p.dtype, m * p.in + c), out + m * p.out, 1, weight + c, p.in, p.out, 0, p.dtype);
    for (int64_t n = 0; grad_weight && n < p.out; n++)
        for (int64_t c = 0; c < p.in; c++)
            check_sum("pointwise grad_weight", grad_weight[n * p.in + c], out + n, p.out, in + c, p.in, p.rows, 0, SEPNET_FLOAT32);
    for (int64_t n = 0; grad_bias && n < p.out; n++)
        check_sum("pointwise grad_bias", grad_bias[n], out + n, p.out, NULL, 0, p.rows, 0, SEPNET_FLOAT32);
    free(in), free(out);
}

/* What a normalisation makes of x: scales are powers of two, so that a sum rounds as a fused one does. */
static void *normalised_map(const sepnet_pointwise *p, const void *x, const sepnet_joined *joined) {
    const float *scale = joined->before + SEPNET_SCALE * p->in, *shift = joined->before + SEPNET_SHIFT * p->in;
    const int half = p->dtype == SEPNET_BFLOAT16;
    char *z = block(p->rows * p->in * width_of(p->dtype));
    for (int64_t i = 0; i < p->rows * p->in; i++) {
        const float sum = (float)get(x, p->dtype, i) * scale[i % p->in] + shift[i % p->in];
        const float cut = joined->before_relu && sum < 0 ? 0 : sum, value = half ? to_bfloat(cut) : cut;
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (half)
            ((uint16_t *)z)[i] = (uint16_t)(bits >> 16);
        else
            ((uint32_t *)z)[i] = bits;
    }
    return z;
}

static void check_moments(const sepnet_pointwise *p, const double *rows, const void *y) {
    double *from = calloc((size_t)(p->rows * p->out), sizeof *from), *square = calloc((size_t)(p->rows * p->out), sizeof *square);
    for (int64_t i = 0; i < p->rows * p->out; i++) from[i] = get(y, p->dtype, i) - rows[i % p->out], square[i] = from[i] * from[i];
    for (int64_t n = 0; n < p->out; n++) expect(rows[n] == get(y, p->dtype, n), "the origin is not the first value");
    check_rows("pointwise moments", rows + p->out, p->rows, p->out, from, square);
    free(from), free(square);
}

static void check_gated(const sepnet_pointwise *p, const sepnet_joined *joined, const void *x, const void *grad_x) {
    const float *mean = joined->before, *scale = mean + SEPNET_SCALE * p->in, *shift = mean + SEPNET_SHIFT * p->in;
    double *passed = calloc((size_t)(p->rows * p->in), sizeof *passed), *product = calloc((size_t)(p->rows * p->in), sizeof *product);
    for (int64_t i = 0; i < p->rows * p->in; i++) {
        const int64_t c = i % p->in;
        const float value = (float)get(x, p->dtype, i);
        if (!joined->before_relu || value * scale[c] + shift[c] > 0) passed[i] = get(grad_x, p->dtype, i);
        product[i] = passed[i] * ((double)value - (double)mean[c]);
    }
    check_rows("pointwise gated sums", joined->sums, p->rows, p->in, passed, product);
    free(passed), free(product);
}

static float *power_constants(int64_t channels) {
    float *constants = floats(SEPNET_CONSTANTS * channels);
    for (int64_t c = 0; c < channels; c++) constants[SEPNET_SCALE * channels + c] = ldexpf(pick(0, 1) ? 1 : -1, (int)pick(-2, 1));
    return constants;
}

static void try_pointwise(void) {
    const sepnet_pointwise p = random_pointwise();
    const int64_t width = width_of(p.dtype);
    void *x = random_map(p.rows * p.in, p.dtype), *grad = random_map(p.rows * p.out, p.dtype);
    float *weight = floats(p.out * p.in), *bias = pick(0, 1) ? floats(p.out) : NULL;
    for (int64_t i = 0; p.dtype == SEPNET_BFLOAT16 && i < p.out * p.in; i++) weight[i] = to_bfloat(weight[i]);
    void *y = block(p.rows * p.out * width), *grad_x = pick(0, 3) ? block(p.rows * p.in * width) : NULL;
    float *grad_weight = pick(0, 3) ? block(p.out * p.in * 4) : NULL, *grad_bias = pick(0, 1) ? block(p.out * 4) : NULL;
    const int joins = (int)pick(0, 1);
    float *constants = joins && pick(0, 3) ? power_constants(p.in) : NULL;
    sepnet_joined sides = {.before = constants, .before_relu = (int32_t)pick(0, 1), .sums = joins && pick(0, 3) ? block(3 * p.out * 8) : NULL};
    void *entering = constants ? normalised_map(&p, x, &sides) : x, *workspace = block(sepnet_pointwise_workspace(&p, 0));
    expect(sepnet_pointwise_forward(&p, joins ? &sides : NULL, x, weight, bias, y, workspace) == 0, "pointwise forward refuses");
    if (sides.sums) check_moments(&p, sides.sums, y);
    free(workspace), free(sides.sums);
    sides.sums = constants && pick(0, 3) ? block(2 * p.in * 8) : NULL;
    workspace = block(sepnet_pointwise_workspace(&p, 1));
    expect(sepnet_pointwise_backward(&p, joins ? &sides : NULL, x, weight, grad, grad_x, grad_weight, grad_bias, workspace) == 0,
           "pointwise backward refuses");
    if (sides.sums && grad_x) check_gated(&p, &sides, x, grad_x);
    free(workspace), free(sides.sums);
    check_pointwise(p, entering, weight, bias, grad, y, grad_x, grad_weight, grad_bias);
    if (entering != x) free(entering);
    free(constants), free(x), free(weight), free(bias), free(grad), free(y), free(grad_x), free(grad_weight), free(grad_bias);
}

/* --- filters of stacked layers ----------------------------------------------------------------------------------------------- */

/* The element of `second` that moves element `j` of `first` to element `at` of 5x5, or -1. */
static int mover(int at, int j) {
    int row = at / 5 - j / 3, column = at % 5 - j % 3;
    return row < 0 || row > 2 || column < 0 || column > 2 ? -1 : row * 3 + column;
}

static void try_filters(void) {
    sepnet_multiscale unit = {pick(1, 40), (int32_t)pick(0, 1), (int32_t)pick(0, 1)};
    int64_t n = unit.channels, wide = unit.add ? 0 : 9 * n, all = wide + 25 * n;
    float *small = floats(9 * n), *first = floats(9 * n), *second = floats(9 * n), *filters = block(all * 4), *grad = floats(all);
    float *grad_small = pick(0, 3) ? block(9 * n * 4) : NULL, *grad_first = pick(0, 3) ? block(9 * n * 4) : NULL;
    float *grad_second = pick(0, 3) ? block(9 * n * 4) : NULL;
    expect(sepnet_multiscale_filters(&unit, small, first, second, filters) == 0, "filters refuse");
    expect(sepnet_multiscale_gradients(&unit, first, second, grad, grad_small, grad_first, grad_second) == 0, "their gradients refuse");
    for (int64_t c = 0; c < n; c++) {
        float *a = first + 9 * c, *b = second + 9 * c, *g = grad + wide + 25 * c;
        for (int at = 0; at < 25; at++) {
            int inner = at / 5 % 4 && at % 5 % 4 ? (at / 5 - 1) * 3 + at % 5 - 1 : -1; /* of 3x3 in the middle of 5x5 */
            double sum = (at == 12 && unit.residual) + (unit.add && inner >= 0 ? (double)small[9 * c + inner] : 0);
            for (int j = 0; j < 9; j++)
                if (mover(at, j) >= 0) sum += (double)a[j] * (double)b[mover(at, j)];
            check("filters 5x5", filters[wide + 25 * c + at], sum, 40 * FLOAT_UNIT, SEPNET_FLOAT32);
            if (inner < 0) continue;
            if (!unit.add)
                check("filters 3x3", filters[9 * c + inner], (double)small[9 * c + inner] + (inner == 4 && unit.residual), FLOAT_UNIT * 4, SEPNET_FLOAT32);
            if (grad_small) expect(grad_small[9 * c + inner] == (unit.add ? g[at] : grad[9 * c + inner]), "the small filter's gradient");
        }
        for (int j = 0; j < 9; j++) {
            double of_first = 0, of_second = 0;
            for (int at = 0; at < 25; at++) {
                if (mover(at, j) >= 0) of_first += (double)g[at] * (double)b[mover(at, j)], of_second += (double)g[at] * (double)a[mover(at, j)];
            }
            if (grad_first) check("the first filter's gradient", grad_first[9 * c + j], of_first, 40 * FLOAT_UNIT, SEPNET_FLOAT32);
            if (grad_second) check("the second filter's gradient", grad_second[9 * c + j], of_second, 40 * FLOAT_UNIT, SEPNET_FLOAT32);
        }
    }
    free(small), free(first), free(second), free(filters), free(grad), free(grad_small), free(grad_first), free(grad_second);
}

/* --- a step of Muon ---------------------------------------------------------------------------------------------------------- */

/* to (n, m) = a (n, n) * x (n, m) */
static void times(double *to, const double *a, const double *x, int64_t n, int64_t m) {
    memset(to, 0, (size_t)(n * m) * sizeof *to);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < m; j++) to[i * m + j] += a[i * n + k] * x[k * m + j];
}

/* The iterations of the (rows, cols) matrix x, in its place. */
static void iterate_exactly(const sepnet_muon *s, double *x) {
    const int64_t n = s->rows, m = s->cols, values = n * m;
    double *gram = block(n * n * 8), *once = block(values * 8), *twice = block(values * 8), norm = 0;
    for (int64_t i = 0; i < values; i++) norm += x[i] * x[i];
    for (int64_t i = 0; i < values; i++) x[i] /= fmax(sqrt(norm), 1e-7);
    for (int step = 0; step < s->steps; step++) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                gram[i * n + j] = 0;
                for (int64_t k = 0; k < m; k++) gram[i * n + j] += x[i * m + k] * x[j * m + k];
            }
        times(once, gram, x, n, m), times(twice, gram, once, n, m);
        for (int64_t i = 0; i < values; i++) x[i] = s->a * x[i] + s->b * once[i] + s->c * twice[i];
    }
    free(gram), free(once), free(twice);
}

/* A weight, what it was, and where its mean and direction must come to. */
typedef struct {
    float *before, *moved;
    double *direction;
} expected_step;

static sepnet_muon random_muon(int steps, int dtype, float keep, expected_step *e) {
    const int wide = (int)pick(0, 3);
    sepnet_muon s = {.rows = pick(1, wide == 1 ? 20 : 90), .cols = pick(1, wide == 2 ? 20 : 90), .steps = steps, .dtype = dtype,
                     .a = 3.4445, .b = -4.7750, .c = 2.0315, .momentum = 0.9, .keep = keep, .rate = -0.5};
    const int64_t values = s.rows * s.cols;
    float *grad = floats(values);
    s.grad = grad, s.mean = pick(0, 1) ? floats(values) : NULL, s.weight = keep == 0 ? block(values * 4) : floats(values);
    e->before = block(values * 4), e->moved = block(values * 4), e->direction = block(values * 8);
    memcpy(e->before, s.weight, (size_t)values * 4);
    for (int64_t i = 0; i < values; i++) {
        e->moved[i] = s.mean ? (float)(0.9 * (double)s.mean[i] + 0.1 * (double)grad[i]) : grad[i];
        e->direction[i] = s.mean ? 0.9 * (double)e->moved[i] + 0.1 * (double)grad[i] : (double)grad[i];
    }
    iterate_exactly(&s, e->direction);
    return s;
}

/* Rounding is a matter of the whole matrix: of its size, which the iterations may make less than the sum of their terms. */
static void check_muon(const sepnet_muon *s, expected_step e) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < s->rows * s->cols; i++) {
        if (s->mean) check("the gradient's mean", s->mean[i], e.moved[i], 1e-6, SEPNET_FLOAT32);
        const double got = (s->weight[i] - (s->keep == 0 ? 0 : s->keep * e.before[i])) / s->rate;
        error += (got - e.direction[i]) * (got - e.direction[i]), size += e.direction[i] * e.direction[i];
    }
    check("Muon's direction", sqrt(error / size), 0, s->dtype == SEPNET_BFLOAT16 ? 0.25 : 1e-4, SEPNET_FLOAT32);
    free((void *)s->grad), free(s->mean), free(s->weight), free(e.before), free(e.moved), free(e.direction);
}

static void try_muon(void) {
    enum { MOST = 5 };
    sepnet_muon weights[MOST];
    expected_step expected[MOST];
    const int count = (int)pick(1, MOST), steps = (int)pick(1, 3);
    const float keep = (float)pick(0, 1) * 0.75f;
    int dtype = (int)pick(0, 1);
    if (dtype == SEPNET_BFLOAT16 && !multiplies_halves(dtype)) {
        sepnet_muon halves = {.rows = 2, .cols = 3, .steps = 1, .dtype = dtype};
        expect(sepnet_muon_workspace(&halves, 1, 1) == -1, "products of bfloat16 are promised");
        dtype = SEPNET_FLOAT32;
    }
    for (int i = 0; i < count; i++) weights[i] = random_muon(steps, dtype, keep, expected + i);
    void *workspace = block(sepnet_muon_workspace(weights, count, the_threads));
    expect(sepnet_muon_step(weights, count, the_threads, workspace) == 0, "a step of Muon is refused");
    for (int i = 0; i < count; i++) check_muon(weights + i, expected[i]);
    free(workspace);
}

/* --- a pointwise convolution that is pooled --------------------------------------------------------------------------------- */

static float *widened(const void *map, int dtype, int64_t count) {
    float *to = block(count * 4);
    for (int64_t i = 0; i < count; i++) to[i] = (float)get(map, dtype, i);
    return to;
}

/* A map of `dtype` against one in float32. */
static void near_floats(const char *what, const void *got, const float *wanted, int dtype, int64_t count, double size) {
    for (int64_t i = 0; i < count; i++) check(what, get(got, dtype, i), wanted[i], 1e-4 * size, dtype);
}

/* Against convolution and normalisation one after the other, in float32; the gradients are those of the pixels that were kept. */
static void try_pooled(void) {
    sepnet_norm m = random_norm();
    m.pool = 1, m.height += m.height < 2, m.width = pick(0, 9) ? m.width + (m.width < 2) : pick(60, 150);
    int64_t inputs = pick(1, SEPNET_MAX_FEW), pixels = m.batch * m.height * m.width, results = m.batch * rows_of(&m) * cols_of(&m) * m.channels;
    void *x = random_map(pixels * inputs, m.dtype), *grad = random_map(results, m.dtype);
    float *weight = floats(m.channels * inputs), *gamma = floats(m.channels), *beta = floats(m.channels), *averages = floats(2 * m.channels);
    float *constants = block(SEPNET_CONSTANTS * m.channels * 4), *other = block(2 * m.channels * 4);
    double *moments = block(SEPNET_FEW_MOMENTS * 8);
    void *y = block(results * width_of(m.dtype)), *dx = pick(0, 3) ? block(pixels * inputs * width_of(m.dtype)) : NULL;
    uint8_t *kept = block(results), *argmax = block(results);
    float *dw = pick(0, 3) ? block(m.channels * inputs * 4) : NULL, *dgamma = block(m.channels * 4), *dbeta = block(m.channels * 4);
    memcpy(other, averages, (size_t)(2 * m.channels) * 4);
    sepnet_running running = {averages, averages + m.channels, 0.25}, others = {other, other + m.channels, 0.25};

    void *workspace = block(sepnet_pooled_pointwise_workspace(&m, inputs, 0));
    expect(sepnet_pooled_pointwise_forward(&m, inputs, x, weight, gamma, beta, 0.1, &running, constants, moments, y, kept, workspace) == 0,
           "pooled forward refuses");
    free(workspace);
    workspace = block(sepnet_pooled_pointwise_workspace(&m, inputs, 1));
    expect(sepnet_pooled_pointwise_backward(&m, inputs, x, weight, kept, grad, constants, moments, dx, dw, dgamma, dbeta, workspace) == 0,
           "pooled backward refuses");
    free(workspace);

    sepnet_pointwise conv = {pixels, inputs, m.channels, SEPNET_FLOAT32, the_threads};
    sepnet_norm n = m;
    n.dtype = SEPNET_FLOAT32;
    float *x32 = widened(x, m.dtype, pixels * inputs), *grad32 = widened(grad, m.dtype, results), *u = block(pixels * m.channels * 4);
    float *y32 = block(results * 4), *again = block(SEPNET_CONSTANTS * m.channels * 4), *du = block(pixels * m.channels * 4);
    float *dx32 = block(pixels * inputs * 4), *dw32 = block(m.channels * inputs * 4), *dgamma32 = block(m.channels * 4), *dbeta32 = block(m.channels * 4);
    workspace = block(sepnet_pointwise_workspace(&conv, 0));
    sepnet_pointwise_forward(&conv, NULL, x32, weight, NULL, u, workspace);
    free(workspace);
    workspace = block(sepnet_norm_workspace(&n));
    sepnet_norm_forward(&n, u, NULL, NULL, gamma, beta, 0.1, &others, again, y32, argmax, workspace);
    near_floats("pooled y", y, y32, m.dtype, results, 10);
    near_maps("pooled averages", averages, other, SEPNET_FLOAT32, 2 * m.channels, 100);
    for (int64_t i = 0; i < results; i++) {
        expect(kept[i] <= (m.relu ? SEPNET_CUT : 3), "kept beyond the window");
        expect(kept[i] < SEPNET_CUT || y32[i] < 1e-3f, "cut what passes ReLU");
        argmax[i] = kept[i] == SEPNET_CUT ? 0 : kept[i], y32[i] = kept[i] == SEPNET_CUT ? 0 : 1;
    }
    n.relu = 1;
    sepnet_norm_backward(&n, u, y32, argmax, grad32, again, du, NULL, dgamma32, dbeta32, workspace);
    free(workspace);
    workspace = block(sepnet_pointwise_workspace(&conv, 1));
    sepnet_pointwise_backward(&conv, NULL, x32, weight, du, dx32, dw32, NULL, workspace);
    if (multiplies_halves(m.dtype)) { /* those of dL/dx, times the normalisation's scale */
        for (int64_t i = 0; i < m.channels * inputs; i++) {
            const float scale = constants[SEPNET_SCALE * m.channels + i / inputs], scaled = weight[i] * scale;
            if (scaled != 0) weight[i] = to_bfloat(scaled) / scale;
        }
        sepnet_pointwise_backward(&conv, NULL, x32, weight, du, dx32, NULL, NULL, workspace);
    }
    if (dx) near_floats("pooled dx", dx, dx32, m.dtype, pixels * inputs, 10.0 * (double)m.channels);
    if (dw) near_maps("pooled dweight", dw, dw32, SEPNET_FLOAT32, m.channels * inputs, 10.0 * (double)pixels);
    near_maps("pooled dgamma", dgamma, dgamma32, SEPNET_FLOAT32, m.channels, (double)pixels);
    near_maps("pooled dbeta", dbeta, dbeta32, SEPNET_FLOAT32, m.channels, (double)pixels);
    void *all[] = {x,     grad, weight, gamma, beta, averages, constants, other, moments, y,    dx,       dw,      dgamma,
                   dbeta, kept, argmax, x32,   u,    grad32,   y32,       again, du,      dx32, dw32, dgamma32, dbeta32, workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* --- what must be refused -------------------------------------------------------------------------------------------------- */

static void try_nonsense(void) {
    sepnet_depthwise good = random_depthwise(), d;
    good.branches = 1;
#define REFUSED(change) d = good, d.change, expect(sepnet_depthwise_workspace(&d, 1) == -1, "accepted: " #change)
    REFUSED(batch = -1), REFUSED(channels = 0), REFUSED(in_h = 0), REFUSED(in_w = -5), REFUSED(out_h++), REFUSED(out_w--);
    REFUSED(stride_h = 0), REFUSED(stride_w = -1), REFUSED(threads = 0), REFUSED(branches = 0), REFUSED(branches = 5);
    REFUSED(dtype = 2), REFUSED(branch[0].kernel_h = 8), REFUSED(branch[0].kernel_w = 0), REFUSED(branch[0].pad_h = -1);
    REFUSED(branch[0].dilation_w = 0);
    sepnet_joined joined = {0};
    d = good, d.branches = 2, d.interleaved = 1, d.branch[1] = d.branch[0];
    expect(sepnet_depthwise_forward(&d, &joined, NULL, NULL, NULL, NULL, NULL) == -1, "joined, with a channel multiplier: accepted");
    d.channels = 0;
    expect(sepnet_depthwise_forward(&d, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "forward accepts");
    expect(sepnet_depthwise_backward(&d, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "backward accepts");
#undef REFUSED
    sepnet_norm fine = random_norm(), m;
#define REFUSED(change) m = fine, m.change, expect(sepnet_norm_workspace(&m) == -1, "accepted: " #change)
    REFUSED(batch = 0), REFUSED(channels = 0), REFUSED(height = 0), REFUSED(width = -1), REFUSED(threads = 0), REFUSED(dtype = -1);
    fine.pool = 1;
    REFUSED(height = 1), REFUSED(width = 1);
#undef REFUSED
    expect(sepnet_pooled_pointwise_forward(&m, 3, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "pooled accepts");
    expect(sepnet_pooled_pointwise_backward(&m, 3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "pooled accepts");
    m = fine, m.height = m.width = 2;
    expect(sepnet_pooled_pointwise_workspace(&m, SEPNET_MAX_FEW + 1, 1) == -1, "accepted: too many inputs");
    expect(sepnet_pooled_pointwise_workspace(&m, 0, 1) == -1, "accepted: no input");
    m.pool = 0;
    expect(sepnet_pooled_pointwise_workspace(&m, 3, 1) == -1, "accepted: nothing is pooled");
    m.threads = 0;
    expect(sepnet_norm_apply(&m, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "apply accepts");
    expect(sepnet_norm_forward(&m, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL) == -1, "forward accepts");
    expect(sepnet_norm_backward(&m, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "backward accepts");
    expect(sepnet_norm_statistics(&m, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL) == -1, "statistics accept");
    expect(sepnet_norm_sums(&m, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "sums accept");
    expect(sepnet_norm_gradients(&m, NULL, NULL, NULL, NULL) == -1, "gradients accept");
    expect(sepnet_norm_input_gradient(&m, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "the input's gradient accepts");
    sepnet_pointwise proper = {5, 4, 3, SEPNET_FLOAT32, 1}, p;
#define REFUSED(change) p = proper, p.change, expect(sepnet_pointwise_workspace(&p, 1) == -1, "accepted: " #change)
    REFUSED(rows = 0), REFUSED(in = 0), REFUSED(out = -1), REFUSED(threads = 0), REFUSED(dtype = 1), REFUSED(dtype = 2);
#undef REFUSED
    const float constant = 1;
    const sepnet_joined one_side = {.after = &constant};
    expect(sepnet_pointwise_backward(&proper, &one_side, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "joined, with one after: accepted");
    p = proper, p.dtype = SEPNET_BFLOAT16, p.in = p.out = 32;
    expect(sepnet_pointwise_backward(&p, &one_side, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "joined, with one after: accepted");
    p.threads = 0;
    expect(sepnet_pointwise_forward(&p, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "pointwise forward accepts");
    expect(sepnet_pointwise_backward(&p, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "pointwise backward accepts");
    sepnet_muon usual = {.rows = 5, .cols = 4, .steps = 3, .dtype = SEPNET_FLOAT32}, step;
#define REFUSED(change) step = usual, step.change, expect(sepnet_muon_workspace(&step, 1, 1) == -1, "accepted: " #change)
    REFUSED(rows = 0), REFUSED(cols = -1), REFUSED(steps = 0), REFUSED(dtype = 2);
#undef REFUSED
    expect(sepnet_muon_workspace(&usual, 0, 1) == -1 && sepnet_muon_workspace(&usual, 1, 0) == -1, "nothing is accepted");
    expect(sepnet_muon_step(&step, 1, 1, NULL) == -1, "Muon accepts");
    sepnet_multiscale none = {0, 0, 1};
    expect(sepnet_multiscale_filters(&none, NULL, NULL, NULL, NULL) == -1, "filters accept");
    expect(sepnet_multiscale_gradients(&none, NULL, NULL, NULL, NULL, NULL, NULL) == -1, "their gradients accept");
    expect(sepnet_select_isa("no such thing") != 0, "an unknown instruction set is taken");
    expect(sepnet_abi() == SEPNET_ABI, "library and header differ");
}

typedef struct {
    uint64_t seed;
    long cases;
} share;

static void *call(void *argument) {
    const share *mine = argument;
    state = mine->seed;
    for (long i = 0; i < mine->cases; i++) {
        try_depthwise(), try_norm(), try_shortcut(), try_joined();
        try_pointwise(), try_pooled(), try_filters(), try_muon();
        expect(!holds_tiles(), "tiles are left in use");
    }
    return NULL;
}

int main(int count, char **words) {
    if (count != 5) return fprintf(stderr, "usage: %s ISA THREADS CALLERS CASES\n", words[0]), 2;
    if (sepnet_select_isa(words[1]) != 0) return 77;
    the_threads = atoi(words[2]), state = 1;
    int callers = atoi(words[3]);
    try_nonsense();
    pthread_t *threads = calloc((size_t)largest(1, callers), sizeof *threads);
    share *shares = calloc((size_t)largest(1, callers), sizeof *shares);
    for (int i = 0; i < callers; i++) {
        shares[i] = (share){0x9e3779b97f4a7c15u * (uint64_t)(i + 1), atol(words[4])};
        if (pthread_create(&threads[i], NULL, call, &shares[i]) != 0) abort();
    }
    for (int i = 0; i < callers; i++) pthread_join(threads[i], NULL);
    free(threads), free(shares);
    printf("%s: %d callers, %d threads, %s cases each\n", sepnet_isa(), callers, the_threads, words[4]);
    return 0;
}
