/* The passes over a map to be normalised, see norm_job.h. */

/* --- statistics ---------------------------------------------------------------------------------------------------- */

/* Sums about the channel's first value of all. */
INLINE void line_statistics(const norm_job *s, int64_t first, int64_t last, int64_t channel, double *sums, int lanes, int dtype) {
    int64_t channels = s->norm->channels, i = first;
    const char *next = next_line(s, s->x, first, last, channel, dtype);
    vf zero = splat(0), origin = load_lanes(s->x, i * channels + channel, lanes, dtype);
    moments m[4];
    for (int k = 0; k < 4; k++) m[k] = (moments){origin, zero, zero, 0};
    for (; i + 4 <= last; i += 4) {
        next = fetch(next, 4 * (size_t)lanes * element_size(dtype));
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) add_value(&m[k], load_lanes(s->x, (i + k) * channels + channel, lanes, dtype));
    }
    for (; i < last; i++) add_value(&m[0], load_lanes(s->x, i * channels + channel, lanes, dtype));
    moments all = {origin, (m[0].sum + m[1].sum) + (m[2].sum + m[3].sum),
                   (m[0].square + m[1].square) + (m[2].square + m[3].square), last - first};
    add_moments(sums + channel, sums + s->stride + channel, load_lanes(s->x, channel, lanes, dtype), &all);
}

static void statistics_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const norm_job *s = context;
    double *sums = clear_sums(s, part);
    int64_t end = sepnet_part_begin(s->lines, s->parts, part + 1);
    for (int64_t line = sepnet_part_begin(s->lines, s->parts, part); line < end; line++) {
        int64_t first = line * s->line_pixels, last = sepnet_min(first + s->line_pixels, s->pixels);
#define BODY(lanes, dtype) line_statistics(s, first, last, channel, sums, lanes, dtype)
        FOR_CHANNELS(s->norm, BODY);
#undef BODY
    }
}

/* Sums of all parts, in their order, as two rows of a double a channel. */
static void reduce_sums(norm_job *s, double *first, double *second) {
    for (int64_t part = 1; part < s->parts; part++)
        for (int64_t i = 0; i < 2 * s->stride; i++) s->sums[i] += s->sums[part * SUM_ROWS * s->stride + i];
    memcpy(first, s->sums, (size_t)s->norm->channels * sizeof *first);
    memcpy(second, s->sums + s->stride, (size_t)s->norm->channels * sizeof *second);
}

/* The three rows of sepnet_norm_statistics: origin, and the sums of x - origin and of its square. */
static void sum_statistics(const sepnet_norm *norm, const void *x, double *rows, double *part_sums) {
    norm_job s = make_norm_job(norm, 0);
    s.x = x, s.sums = part_sums;
    sepnet_run_parts(statistics_part, &s, s.parts, norm->threads);
    for (int64_t c = 0; c < norm->channels; c++) rows[c] = (double)load_lanes(x, c, 1, norm->dtype)[0];
    reduce_sums(&s, rows + norm->channels, rows + 2 * norm->channels);
}

/* Mean and inverse standard deviation a channel, normalisation as one multiplication and one addition a value, and the running
 * averages' next values. */
static void finish_statistics(const sepnet_norm *norm, const double *rows, const float *gamma, const float *beta, double eps,
                              const sepnet_running *running, norm_constants to) {
    int64_t channels = norm->channels;
    double count = (double)count_pixels(norm);
    for (int64_t c = 0; c < channels; c++) {
        double shifted = rows[channels + c] / count, variance = rows[2 * channels + c] / count - shifted * shifted;
        if (variance < 0) variance = 0; /* rounding; a NaN stays */
        double average = rows[c] + shifted;
        to.mean[c] = (float)average;
        to.invstd[c] = (float)(1.0 / __builtin_sqrt(variance + eps));
        to.scale[c] = gamma[c] * to.invstd[c];
        to.shift[c] = beta[c] - to.mean[c] * to.scale[c];
        if (!running) continue;
        double unbiased = variance * count / (count > 1 ? count - 1 : 1), momentum = running->momentum;
        running->mean[c] = (float)((1 - momentum) * (double)running->mean[c] + momentum * average);
        running->var[c] = (float)((1 - momentum) * (double)running->var[c] + momentum * unbiased);
    }
}

static void norm_statistics(const sepnet_norm *norm, const void *x, const double *rows, const float *gamma, const float *beta,
                            double eps, const sepnet_running *running, float *constants, void *workspace) {
    double *part_sums = workspace, *own = part_sums + sums_doubles(norm);
    if (!rows) sum_statistics(norm, x, own, part_sums);
    finish_statistics(norm, rows ? rows : own, gamma, beta, eps, running, lay_constants(constants, norm->channels));
}

/* --- forward ------------------------------------------------------------------------------------------------------- */

INLINE void apply_one(const norm_job *s, int64_t at, int64_t channel, int lanes, int dtype, int cut, int more) {
    vf scale = load_lanes(s->scale, channel, lanes, SEPNET_FLOAT32), shift = load_lanes(s->shift, channel, lanes, SEPNET_FLOAT32);
    fetch_soon(s, s->x, at, dtype);
    if (more) fetch_soon(s, s->shortcut, at, dtype);
    vf value = load_lanes(s->x, at, lanes, dtype) * scale + shift;
    if (more) value += load_lanes(s->shortcut, at, lanes, dtype);
    store_lanes(s->out, at, lanes, dtype, cut ? relu(value) : value);
}

static void apply_pixels(const norm_job *job, int64_t first, int64_t last) {
    const norm_job copy = *job, *s = &copy; /* of our own, which no store can alias */
#define SUM(at, lanes, dtype) apply_one(s, at, channel, lanes, dtype, 1, 1)
#define CUT(at, lanes, dtype) apply_one(s, at, channel, lanes, dtype, 1, 0)
#define KEEP(at, lanes, dtype) apply_one(s, at, channel, lanes, dtype, 0, 0)
    if (s->shortcut)
        FOR_PIXELS(s->norm, first, last, SUM);
    else if (s->norm->relu)
        FOR_PIXELS(s->norm, first, last, CUT);
    else
        FOR_PIXELS(s->norm, first, last, KEEP);
#undef SUM
#undef CUT
#undef KEEP
}

static void apply_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const norm_job *s = context;
    int64_t end = sepnet_part_begin(s->lines, s->parts, part + 1);
    for (int64_t line = sepnet_part_begin(s->lines, s->parts, part); line < end; line++) {
        int64_t first = line * s->line_pixels, last = sepnet_min(first + s->line_pixels, s->pixels);
        if (s->norm->pool)
            apply_windows(s, line);
        else
            apply_pixels(s, first, last);
    }
}

static void norm_apply(const sepnet_norm *norm, const void *x, const void *shortcut, const float *scale, const float *shift, void *y,
                       uint8_t *argmax) {
    norm_job s = make_norm_job(norm, norm->pool);
    s.x = x, s.shortcut = shortcut, s.scale = scale, s.shift = shift, s.out = y, s.argmax_out = argmax;
    sepnet_run_parts(apply_part, &s, s.parts, norm->threads);
}

static void norm_forward(const sepnet_norm *norm, const void *x, const double *rows, const void *shortcut, const float *gamma,
                         const float *beta, double eps, const sepnet_running *running, float *constants, void *y, uint8_t *argmax,
                         void *workspace) {
    norm_statistics(norm, x, rows, gamma, beta, eps, running, constants, workspace);
    norm_constants c = lay_constants(constants, norm->channels);
    norm_apply(norm, x, shortcut, c.scale, c.shift, y, argmax);
}

/* --- backward: the sums -------------------------------------------------------------------------------------------- */

/* The gradient that passes the ReLU. */
INLINE vf gated(const norm_job *s, vf value, vf scale, vf shift, vf grad) {
    return s->norm->relu ? choose((vi)(value * scale + shift > 0), grad, splat(0)) : grad;
}

INLINE void line_sums(const norm_job *s, int64_t first, int64_t last, int64_t channel, double *sums, int lanes, int dtype) {
    int64_t channels = s->norm->channels;
    vf scale = load_lanes(s->scale, channel, lanes, SEPNET_FLOAT32), shift = load_lanes(s->shift, channel, lanes, SEPNET_FLOAT32);
    vf mean = load_lanes(s->mean, channel, lanes, SEPNET_FLOAT32), zero = splat(0);
    vf sum[4] = {zero, zero, zero, zero}, product[4] = {zero, zero, zero, zero};
    const char *next_x = next_line(s, s->x, first, last, channel, dtype), *next_grad = next_line(s, s->grad, first, last, channel, dtype);
    int64_t i = first;
    for (; i + 4 <= last; i += 4) {
        next_x = fetch(next_x, 4 * (size_t)lanes * element_size(dtype));
        next_grad = fetch(next_grad, 4 * (size_t)lanes * element_size(dtype));
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            int64_t at = (i + k) * channels + channel;
            vf value = load_lanes(s->x, at, lanes, dtype);
            vf grad = gated(s, value, scale, shift, load_lanes(s->grad, at, lanes, dtype));
            sum[k] += grad;
            product[k] += grad * (value - mean);
        }
    }
    for (; i < last; i++) {
        int64_t at = i * channels + channel;
        vf value = load_lanes(s->x, at, lanes, dtype);
        vf grad = gated(s, value, scale, shift, load_lanes(s->grad, at, lanes, dtype));
        sum[0] += grad;
        product[0] += grad * (value - mean);
    }
    add_doubles(sums + channel, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    add_doubles(sums + s->stride + channel, (product[0] + product[1]) + (product[2] + product[3]));
}

INLINE void gate_one(const norm_job *s, int64_t at, int lanes, int dtype) {
    fetch_soon(s, s->grad, at, dtype), fetch_soon(s, s->y, at, dtype);
    store_lanes(s->grad_shortcut, at, lanes, dtype, gradient_by_result(s, at, lanes, dtype));
}

/* The shortcut's gradient; the sums that are taken next, while it is in cache, read it instead of the whole one. */
static void gate_pixels(const norm_job *job, int64_t first, int64_t last) {
    const norm_job copy = *job, *s = &copy;
#define GATE(at, lanes, dtype) gate_one(s, at, lanes, dtype)
    FOR_PIXELS(s->norm, first, last, GATE);
#undef GATE
}

static void shortcut_sums_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const norm_job *s = context;
    sepnet_norm open = *s->norm;
    open.relu = 0;
    norm_job gated_job = *s;
    gated_job.norm = &open, gated_job.grad = s->grad_shortcut;
    double *sums = clear_sums(s, part);
    int64_t end = sepnet_part_begin(s->lines, s->parts, part + 1);
    for (int64_t line = sepnet_part_begin(s->lines, s->parts, part); line < end; line++) {
        int64_t first = line * s->line_pixels, last = sepnet_min(first + s->line_pixels, s->pixels);
        gate_pixels(s, first, last);
#define PLAIN(lanes, dtype) line_sums(&gated_job, first, last, channel, sums, lanes, dtype)
        FOR_CHANNELS(s->norm, PLAIN);
#undef PLAIN
    }
}

static void sums_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const norm_job *s = context;
    double *sums = clear_sums(s, part);
    int64_t end = sepnet_part_begin(s->lines, s->parts, part + 1);
    for (int64_t line = sepnet_part_begin(s->lines, s->parts, part); line < end; line++) {
        int64_t first = line * s->line_pixels, last = sepnet_min(first + s->line_pixels, s->pixels);
#define PLAIN(lanes, dtype) line_sums(s, first, last, channel, sums, lanes, dtype)
        if (s->norm->pool)
            sum_windows(s, line, sums);
        else
            FOR_CHANNELS(s->norm, PLAIN);
#undef PLAIN
    }
}

/* --- backward: the gradient ---------------------------------------------------------------------------------------- */

INLINE void gradient_one(const norm_job *s, int64_t at, int64_t channel, int lanes, int dtype, int cut) {
    fetch_soon(s, s->x, at, dtype), fetch_soon(s, s->grad, at, dtype);
    vf value = load_lanes(s->x, at, lanes, dtype), grad = load_lanes(s->grad, at, lanes, dtype);
    if (cut) {
        vf scale = load_lanes(s->scale, channel, lanes, SEPNET_FLOAT32), shift = load_lanes(s->shift, channel, lanes, SEPNET_FLOAT32);
        grad = choose((vi)(value * scale + shift > 0), grad, splat(0));
    }
    put_gradient(s, load_coefficients(s, channel, lanes), at, value, grad, lanes, dtype);
}

static void gradient_pixels(const norm_job *job, int64_t first, int64_t last) {
    const norm_job copy = *job, *s = &copy;
#define CUT(at, lanes, dtype) gradient_one(s, at, channel, lanes, dtype, 1)
#define KEEP(at, lanes, dtype) gradient_one(s, at, channel, lanes, dtype, 0)
    if (s->norm->relu)
        FOR_PIXELS(s->norm, first, last, CUT);
    else
        FOR_PIXELS(s->norm, first, last, KEEP);
#undef CUT
#undef KEEP
}

static void gradient_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const norm_job *s = context;
    int64_t end = sepnet_part_begin(s->lines, s->parts, part + 1);
    for (int64_t line = sepnet_part_begin(s->lines, s->parts, part); line < end; line++) {
        int64_t first = line * s->line_pixels, last = sepnet_min(first + s->line_pixels, s->pixels);
        if (s->norm->pool)
            gradient_windows(s, line);
        else
            gradient_pixels(s, first, last);
    }
}

/* --- backward, altogether ------------------------------------------------------------------------------------------- */

static norm_job make_backward_job(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                                  const float *constants) {
    norm_job s = make_norm_job(norm, norm->pool);
    norm_constants c = lay_constants((float *)constants, norm->channels);
    s.x = x, s.y = y, s.argmax = argmax, s.grad = grad, s.mean = c.mean, s.scale = c.scale, s.shift = c.shift;
    s.factor = c.scale, s.slope = c.slope, s.constant = c.constant;
    return s;
}

static void norm_sums(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                      const float *constants, void *grad_shortcut, double *rows, void *workspace) {
    norm_job s = make_backward_job(norm, x, y, argmax, grad, constants);
    s.sums = workspace, s.grad_shortcut = grad_shortcut;
    sepnet_run_parts(grad_shortcut ? shortcut_sums_part : sums_part, &s, s.parts, norm->threads);
    reduce_sums(&s, rows, rows + norm->channels);
}

static void norm_gradients(const sepnet_norm *norm, const double *rows, float *constants, float *grad_gamma, float *grad_beta) {
    norm_constants to = lay_constants(constants, norm->channels);
    double count = (double)count_pixels(norm);
    for (int64_t c = 0; c < norm->channels; c++) {
        double sum = rows[c], product = rows[norm->channels + c], inverse = (double)to.invstd[c];
        grad_beta[c] = (float)sum;
        grad_gamma[c] = (float)(product * inverse);
        to.slope[c] = (float)(-(double)to.scale[c] * product * inverse * inverse / count);
        to.constant[c] = (float)(-(double)to.scale[c] * sum / count);
    }
}

static void norm_input_gradient(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                                const float *constants, void *grad_x) {
    norm_job s = make_backward_job(norm, x, y, argmax, grad, constants);
    s.out = grad_x;
    sepnet_run_parts(gradient_part, &s, s.parts, norm->threads);
}

static void norm_backward(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                          float *constants, void *grad_x, void *grad_shortcut, float *grad_gamma, float *grad_beta, void *workspace) {
    double *rows = (double *)workspace + sums_doubles(norm);
    norm_sums(norm, x, y, argmax, grad, constants, grad_shortcut, rows, workspace);
    norm_gradients(norm, rows, constants, grad_gamma, grad_beta);
    sepnet_norm rest = *norm;
    if (grad_shortcut) rest.relu = 0, grad = grad_shortcut; /* has passed the ReLU */
    norm_input_gradient(&rest, x, y, argmax, grad, constants, grad_x);
}
