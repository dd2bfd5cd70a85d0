/* Batch normalisation with 2x2 max pooling and ReLU, forward and backward, for one vector length. Included once by each
 * instruction-set file, after vector.h.
 *
 * Here: what the passes share (norm_job.h), pooled maps (pool.h), the passes (norm.h).
 *
 * Forward is two passes over the input (statistics; then normalise, add a shortcut, pool and cut in one), backward two passes over
 * input and gradient (the two sums; then the gradient). The map between normalisation and ReLU is never written. The shortcut's
 * gradient is what the ReLU lets through; it is written with the sums, and what follows reads that.
 *
 * A part takes a range of "lines": chunks of pixels without pooling, rows of output pixels with it. Where only sums come of a chunk, the
 * channels are the outer loop: a channel's constants and sums stay in registers while the line's pixels are in the L1 cache, and
 * the line that comes next is fetched meanwhile, in its order. What writes a map, and rows of
 * pooled maps, go pixel by pixel, as the memory takes it. */

enum { LINE_BYTES = 16 << 10, NORM_PARTS_PER_THREAD = 2 };
enum { FAR_AHEAD = 4 << 10 }; /* bytes of a map that passes which write one fetch ahead, where the processor gains by it (processor.c) */
enum { SUM_ROWS = 3 }; /* two sums, and room for both in float32 while a line is summed */

typedef struct {
    const sepnet_norm *norm;
    const void *x, *y, *grad, *shortcut;
    const uint8_t *argmax;
    const float *scale, *shift, *mean;  /* a channel */
    const float *factor, *slope, *constant; /* dL/dx = factor * g + slope * (x - mean) + constant */
    void *out, *grad_shortcut;
    uint8_t *argmax_out;
    double *sums; /* [part][SUM_ROWS][stride] */
    int64_t pixels, line_pixels, lines, parts, stride, far;
} norm_job;

/* --- dealing out --------------------------------------------------------------------------------------------------- */

static int64_t count_pixels(const sepnet_norm *norm) { return norm->batch * norm->height * norm->width; }

static norm_job make_norm_job(const sepnet_norm *norm, int by_rows) {
    norm_job s = {.norm = norm, .far = sepnet_fetches_ahead() ? FAR_AHEAD : 0};
    s.pixels = count_pixels(norm);
    s.stride = sepnet_round_up(norm->channels, VL);
    if (by_rows) {
        s.lines = norm->batch * (norm->height / 2);
    } else {
        s.line_pixels = sepnet_max(8, LINE_BYTES / (norm->channels * (int64_t)element_size(norm->dtype)));
        s.lines = (s.pixels + s.line_pixels - 1) / s.line_pixels;
    }
    s.parts = norm->threads <= 1 ? 1 : sepnet_max(1, sepnet_min(s.lines, NORM_PARTS_PER_THREAD * norm->threads));
    return s;
}

static int64_t most_parts(const sepnet_norm *norm) { return sepnet_max(1, NORM_PARTS_PER_THREAD * norm->threads); }

/* Doubles of the parts' sums. */
static int64_t sums_doubles(const sepnet_norm *norm) {
    return most_parts(norm) * SUM_ROWS * sepnet_round_up(norm->channels, VL);
}

/* A part's sums, cleared. */
static double *clear_sums(const norm_job *s, int64_t part) {
    double *sums = s->sums + part * SUM_ROWS * s->stride;
    memset(sums, 0, (size_t)(2 * s->stride) * sizeof *sums);
    return sums;
}

static int64_t norm_workspace(const sepnet_norm *norm) {
    int64_t doubles = sums_doubles(norm) + 3 * norm->channels; /* and the sums of them all */
    return doubles * (int64_t)sizeof(double) + SEPNET_CONSTANTS * norm->channels * (int64_t)sizeof(float);
}

/* A normalisation's constants a channel, in the order of the header. */
typedef struct {
    float *mean, *invstd, *scale, *shift, *slope, *constant;
} norm_constants;

static norm_constants lay_constants(float *at, int64_t channels) {
    return (norm_constants){at, at + channels, at + 2 * channels, at + 3 * channels, at + 4 * channels, at + 5 * channels};
}

/* The channel loop of a line: body(channel, lanes, dtype) with full vectors and the two types as compile-time constants. */
#define FOR_CHANNELS(norm, body)                                                            \
    do {                                                                                    \
        int64_t channel = 0;                                                                \
        if ((norm)->dtype == SEPNET_BFLOAT16)                                               \
            for (; channel + VL <= (norm)->channels; channel += VL) body(VL, SEPNET_BFLOAT16); \
        else                                                                                \
            for (; channel + VL <= (norm)->channels; channel += VL) body(VL, SEPNET_FLOAT32);  \
        if (channel < (norm)->channels) {                                                   \
            const int rest = (int)((norm)->channels - channel);                             \
            if ((norm)->dtype == SEPNET_BFLOAT16)                                           \
                body(rest, SEPNET_BFLOAT16);                                                \
            else                                                                            \
                body(rest, SEPNET_FLOAT32);                                                 \
        }                                                                                   \
    } while (0)

/* The pixels of a line, and their channels, in the order of the memory. */
#define FOR_PIXELS(norm, first, last, body)                                                                   \
    do {                                                                                                      \
        const int64_t whole = (norm)->channels / VL * VL;                                                     \
        const int rest = (int)((norm)->channels - whole);                                                     \
        for (int64_t i = first; i < last; i++) {                                                              \
            int64_t channel = 0;                                                                              \
            if ((norm)->dtype == SEPNET_BFLOAT16)                                                             \
                for (; channel < whole; channel += VL) body(i * (norm)->channels + channel, VL, SEPNET_BFLOAT16); \
            else                                                                                              \
                for (; channel < whole; channel += VL) body(i * (norm)->channels + channel, VL, SEPNET_FLOAT32);  \
            if (rest) body(i * (norm)->channels + channel, rest, (norm)->dtype);                              \
        }                                                                                                     \
    } while (0)

/* Where block `channel` begins to fetch the line behind [first, last): each block fetches its share. */
INLINE const char *next_line(const norm_job *s, const void *map, int64_t first, int64_t last, int64_t channel, int dtype) {
    return (const char *)map + (size_t)(last * s->norm->channels + channel * (last - first)) * element_size(dtype);
}

/* What lies `far` bytes ahead, for the L2 cache; nothing where that is 0. */
INLINE void fetch_soon(const norm_job *s, const void *map, int64_t at, int dtype) {
    if (s->far) __builtin_prefetch((const char *)map + at * (int64_t)element_size(dtype) + s->far, 0, 2);
}

/* --- what a gradient is made of ---------------------------------------------------------------------------------------- */

/* The gradient that passes the ReLU, as the result says (pooling, shortcuts). */
INLINE vf gradient_by_result(const norm_job *s, int64_t at, int lanes, int dtype) {
    vf grad = load_lanes(s->grad, at, lanes, dtype);
    return s->norm->relu ? choose((vi)(load_lanes(s->y, at, lanes, dtype) > 0), grad, splat(0)) : grad;
}

/* A channel's constants of the gradient. */
typedef struct {
    vf mean, factor, slope, constant;
} coefficients;

INLINE coefficients load_coefficients(const norm_job *s, int64_t channel, int lanes) {
    return (coefficients){load_lanes(s->mean, channel, lanes, SEPNET_FLOAT32), load_lanes(s->factor, channel, lanes, SEPNET_FLOAT32),
                          load_lanes(s->slope, channel, lanes, SEPNET_FLOAT32),
                          load_lanes(s->constant, channel, lanes, SEPNET_FLOAT32)};
}

INLINE void put_gradient(const norm_job *s, coefficients k, int64_t at, vf value, vf grad, int lanes, int dtype) {
    store_lanes(s->out, at, lanes, dtype, k.factor * grad + (k.slope * (value - k.mean) + k.constant));
}
