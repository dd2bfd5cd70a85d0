/* Pointwise convolution of a map of few channels, batch normalisation by the batch's statistics, 2x2 max pooling and ReLU as one.
 * One vector length; included after few.h, pool.h and norm.h.
 *
 * The convolution's result is many times as large as its input and costs a few multiplications a value, so it is computed wherever
 * it is wanted, and never in memory:
 * - With the input's mean and covariance M (one pass over it, few.h), a channel of weights w has the mean w.mean and the variance
 *   w' M w.
 * - Forward makes a window's four values of an output channel, keeps the largest, and says which it was, or that ReLU cut it.
 * - Backward takes one pass over the gradient g. dL/dw = scale * sum(g z) + slope * count * M w, z being the kept pixel less the mean.
 *   dL/dx = sum over the outputs of scale * w * g, which needs none of the sums, plus a linear function of the pixel itself, which is
 *   added in a pass over the input: its matrix is sum(slope * w w'). */

/* The means, rounded to float32, are taken from each pixel. */
static void centre_on_mean(few_job *s, const double *of_x) {
    for (int64_t k = 0; k < s->inputs; k++) s->centre[k] = (float)of_x[k];
}

/* What that rounding leaves over is given to the shift. */
static void lay_forward(few_job *s, const double *of_x, const float *weight, const float *scale, const float *beta) {
    memset(s->weights, 0, (size_t)(s->inputs * s->stride) * sizeof(float));
    memset(s->shift, 0, (size_t)s->stride * sizeof(float));
    for (int64_t c = 0; c < s->norm->channels; c++) {
        double shift = (double)beta[c];
        for (int64_t k = 0; k < s->inputs; k++) {
            float w = s->weights[k * s->stride + c] = weight[c * s->inputs + k] * scale[c];
            shift += (double)w * ((double)s->centre[k] - of_x[k]);
        }
        s->shift[c] = (float)shift;
    }
}

/* --- windows ---------------------------------------------------------------------------------------------------------------- */

/* body for each strip of a line, of up to FEW_WINDOWS windows from the `left`-th on: pixels[] are the rows above and below, less the
 * centre; the line's first pixel is the map's `top`-th. */
#define FOR_FEW_STRIPS(s, line, ...)                                                                               \
    do {                                                                                                           \
        const int64_t half = (s)->norm->width / 2, across = (s)->norm->width, down = (s)->norm->height / 2;        \
        const int64_t top = ((line) / down * (s)->norm->height + (line) % down * 2) * across;                      \
        few pixels[2][2 * FEW_WINDOWS];                                                                            \
        for (int64_t left = 0; left < half; left += FEW_WINDOWS) {                                                 \
            const int64_t windows = sepnet_min(FEW_WINDOWS, half - left);                                          \
            const int64_t result = ((line) * half + left) * (s)->norm->channels;                                   \
            centre_pixels(s, top + 2 * left, 2 * windows, pixels[0]);                                              \
            centre_pixels(s, top + across + 2 * left, 2 * windows, pixels[1]);                                     \
            __VA_ARGS__;                                                                                           \
        }                                                                                                          \
    } while (0)

/* The four pixels of a strip's i-th window. */
#define WINDOW_OF(pixels, i) \
    { (pixels)[0] + 2 * (i), (pixels)[0] + 2 * (i) + 1, (pixels)[1] + 2 * (i), (pixels)[1] + 2 * (i) + 1 }

/* `result`: element of the window's channel 0. */
INLINE void few_forward_block(const few_job *s, const few *const window[4], int64_t result, int64_t channel, int lanes, int dtype) {
    vf shift = *(const vfu *)(s->shift + channel), value[4] = {shift, shift, shift, shift};
    for (int64_t k = 0; k < s->inputs; k++) {
        vf weight = *(const vfu *)(s->weights + k * s->stride + channel);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) value[q] += splat(((const float *)window[q])[k]) * weight;
    }
    vi index;
    vf best = keep_largest(value, &index);
    if (s->norm->relu) {
        vi passes = (vi)(best > 0);
        index = (index & passes) | (~passes & SEPNET_CUT);
        best = relu(best);
    }
    store_lanes(s->out, result + channel, lanes, dtype, best);
    store_index(s->kept_out, result + channel, lanes, index);
}

static void few_forward_windows(const few_job *s, few (*pixels)[2 * FEW_WINDOWS], int64_t windows, int64_t result) {
    const sepnet_norm norm = *s->norm;
    for (int64_t i = 0; i < windows; i++, result += norm.channels) {
        const few *const window[4] = WINDOW_OF(pixels, i);
#define BLOCK(lanes, dtype) few_forward_block(s, window, result, channel, lanes, dtype)
        FOR_CHANNELS(&norm, BLOCK);
#undef BLOCK
    }
}

static void few_forward_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const few_job copy = *(const few_job *)context, *s = &copy; /* of our own, which no store can alias */
    int64_t end = sepnet_part_begin(s->lines, s->parts, part + 1);
    for (int64_t line = sepnet_part_begin(s->lines, s->parts, part); line < end; line++)
        FOR_FEW_STRIPS(s, line, few_forward_windows(s, pixels, windows, result));
}

static void pooled_pointwise_forward(const sepnet_norm *norm, int64_t inputs, const void *x, const float *weight, const float *gamma,
                                     const float *beta, double eps, const sepnet_running *running, float *constants, double *of_x,
                                     void *y, uint8_t *kept, void *workspace) {
    few_job s = make_few_job(norm, inputs, x, workspace);
    find_few_moments(&s, of_x);
    few_statistics(&s, of_x, weight, s.rows);
    norm_constants c = lay_constants(constants, norm->channels);
    finish_statistics(norm, s.rows, gamma, beta, eps, running, c);
    centre_on_mean(&s, of_x);
    lay_forward(&s, of_x, weight, c.scale, beta);
    s.out = y, s.kept_out = kept;
    sepnet_run_parts(few_forward_part, &s, s.parts, norm->threads);
}

/* --- backward --------------------------------------------------------------------------------------------------------------- */

enum { SUMMED = 64 }; /* windows, about, whose sums are taken in float32 */

/* dL/dx of a window's pixels, the first of which is pixel `corner` of the map, as far as it passes the results. */
INLINE void put_partial(const few_job *s, int64_t corner, const few passed[4]) {
    few *above = (few *)s->partial + corner, *below = above + s->norm->width;
    above[0] = passed[0], above[1] = passed[1], below[0] = passed[2], below[1] = passed[3];
}

/* Windows of a line, a few at a time; `corner` is their first pixel. */
static void few_backward_windows(const few_job *s, few (*pixels)[2 * FEW_WINDOWS], int64_t windows, int64_t result, int64_t corner,
                                 float *sums) {
    few_strip strip = {.sums = sums, .dealt = sums + few_sums(s)};
    few passed[STRIP][4];
    for (int64_t i = 0; i < windows; i += STRIP) {
        strip.windows = sepnet_min(STRIP, windows - i), strip.result = result + i * s->norm->channels;
        for (int64_t w = 0; w < strip.windows; w++) {
            const few *const window[4] = WINDOW_OF(pixels, i + w);
            lay_quads(window, strip.quads[w]);
        }
        gather_strip(s, &strip);
        if (!s->partial) continue;
        spread_strip(s, &strip, passed);
        for (int64_t w = 0; w < strip.windows; w++) put_partial(s, corner + 2 * (i + w), passed[w]);
    }
}

static void few_backward_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const few_job copy = *(const few_job *)context, *s = &copy;
    const sepnet_norm norm = *s->norm;
    const int64_t values = (1 + s->inputs) * s->stride, run = sepnet_max(1, SUMMED / sepnet_max(1, norm.width / 2)); /* lines */
    double *sums = s->sums + part * s->part_doubles;
    float *line_sums = (float *)(sums + few_sums(s));
    memset(sums, 0, (size_t)few_sums(s) * sizeof *sums);
    memset(line_sums, 0, (size_t)few_sums(s) * sizeof *line_sums);
    int64_t begin = sepnet_part_begin(s->lines, s->parts, part), end = sepnet_part_begin(s->lines, s->parts, part + 1);
    for (int64_t line = begin; line < end; line++) {
#define CLEAR(first, last) memset(s->partial + (first) * FEW, 0, (size_t)(((last) - (first)) * FEW) * sizeof *s->partial)
        if (s->partial) FOR_OUTSIDE(&norm, line, CLEAR);
#undef CLEAR
        FOR_FEW_STRIPS(s, line, few_backward_windows(s, pixels, windows, result, top + 2 * left, line_sums));
        if ((line + 1 - begin) % run && line + 1 < end) continue;
        for (int64_t i = 0; i < values; i += VL) {
            add_doubles(sums + i, *(const vfu *)(line_sums + i));
            *(vfu *)(line_sums + i) = splat(0);
        }
    }
}

/* Vectors as long as they end within the run: what they hold beyond the inputs is overwritten by the next pixel. */
INLINE void add_rest(const few_job *s, const few *pixels, int64_t first, int64_t count, int dtype) {
    const int64_t inputs = s->inputs, whole = count - (FEW - 1) / inputs; /* pixels that are stored as vectors */
    for (int64_t i = 0; i < count; i++) {
        few sum = s->constant + *(const few *)(s->partial + (first + i) * FEW);
#pragma GCC unroll 8
        for (int j = 0; j < FEW; j++) sum += pixels[i][j] * s->matrix[j];
        store_few(s->out, (first + i) * inputs, i < whole ? FEW : inputs, sum, dtype);
    }
}

/* Adds what the statistics pass on, a linear function of the pixel. */
static void few_rest_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const few_job copy = *(const few_job *)context, *s = &copy;
    few pixels[2 * FEW_WINDOWS];
    FOR_RUNS(s, part, first, count) {
        centre_pixels(s, first, count, pixels);
        if (s->norm->dtype == SEPNET_BFLOAT16)
            add_rest(s, pixels, first, count, SEPNET_BFLOAT16);
        else
            add_rest(s, pixels, first, count, SEPNET_FLOAT32);
    }
}

/* The sums of all parts, in their order, and of them the two rows that sepnet_norm_gradients takes. */
static void reduce_few(few_job *s, const double *of_x, const float *weight) {
    const int64_t channels = s->norm->channels;
    for (int64_t part = 1; part < s->parts; part++)
        for (int64_t i = 0; i < few_sums(s); i++) s->sums[i] += s->sums[part * s->part_doubles + i];
    for (int64_t c = 0; c < channels; c++) {
        double sum = s->sums[c], product = 0, *with_pixel = s->sums + s->stride + c;
        for (int64_t k = 0; k < s->inputs; k++) {
            with_pixel[k * s->stride] += sum * ((double)s->centre[k] - of_x[k]);
            product += with_pixel[k * s->stride] * (double)weight[c * s->inputs + k];
        }
        s->rows[c] = sum, s->rows[channels + c] = product;
    }
}

static void few_grad_weight(const few_job *s, const double *of_x, const float *weight, norm_constants to, float *grad_weight) {
    const double count = (double)count_pixels(s->norm);
    for (int64_t c = 0; c < s->norm->channels; c++)
        for (int64_t k = 0; k < s->inputs; k++)
            grad_weight[c * s->inputs + k] =
                (float)((double)to.scale[c] * s->sums[(1 + k) * s->stride + c] +
                        (double)to.slope[c] * count * times_covariance(s, of_x, weight + c * s->inputs, k));
}

/* dL/dx's linear function of a pixel less the centre. */
static void find_rest(few_job *s, const double *of_x, const float *weight, norm_constants to) {
    for (int64_t k = 0; k < s->inputs; k++) {
        double constant = 0, sum[FEW] = {0};
        for (int64_t c = 0; c < s->norm->channels; c++) {
            const double w = weight_of_dx(s, weight, to.scale, c, k);
            constant += w * (double)to.constant[c];
            for (int64_t j = 0; j < s->inputs; j++) sum[j] += w * (double)to.slope[c] * (double)weight[c * s->inputs + j];
        }
        for (int64_t j = 0; j < s->inputs; j++) {
            s->matrix[j][k] = (float)sum[j];
            constant += sum[j] * ((double)s->centre[j] - of_x[j]);
        }
        s->constant[k] = (float)constant;
    }
}

static void pooled_pointwise_backward(const sepnet_norm *norm, int64_t inputs, const void *x, const float *weight, const uint8_t *kept,
                                      const void *grad, float *constants, const double *of_x, void *grad_x, float *grad_weight,
                                      float *grad_gamma, float *grad_beta, void *workspace) {
    few_job s = make_few_job(norm, inputs, x, workspace);
    norm_constants c = lay_constants(constants, norm->channels);
    centre_on_mean(&s, of_x);
    lay_backward(&s, weight, c.scale);
    s.kept = kept, s.grad = grad, s.out = grad_x;
    if (!grad_x) s.partial = NULL;
    sepnet_run_parts(few_backward_part, &s, s.parts, norm->threads);
    reduce_few(&s, of_x, weight);
    norm_gradients(norm, s.rows, constants, grad_gamma, grad_beta);
    if (grad_weight) few_grad_weight(&s, of_x, weight, c, grad_weight);
    if (!grad_x) return;
    find_rest(&s, of_x, weight, c);
    sepnet_run_parts(few_rest_part, &s, s.parts, norm->threads);
}
