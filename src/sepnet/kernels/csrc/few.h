/* A map of few channels, each of whose pixels is one vector: what pooled_pointwise.h knows of its input. One vector length; included
 * after norm.h. Mean and covariance are found in one pass, in runs of 16 pixels that are summed in float32
 * about the mean of those near by, and added up in float64: about 7 digits of the largest covariance. Weights that see nothing but the
 * difference of two channels which are alike to one part in n lose 2 log10(n) of them in its variance. */

enum { STRIP = 8 }; /* windows that the backward pass takes at once: their dealt gradients stay in the L1 cache */
enum { FEW = SEPNET_MAX_FEW, FEW_WINDOWS = 32, FEW_RUN = 16, FEW_MOMENTS = SEPNET_FEW_MOMENTS };

typedef float few __attribute__((vector_size(FEW * 4), may_alias, aligned(4)));
typedef double few_doubles __attribute__((vector_size(FEW * 8), may_alias, aligned(8)));
typedef uint32_t few_bits __attribute__((vector_size(FEW * 4), may_alias, aligned(4)));
typedef uint16_t few_halves __attribute__((vector_size(FEW * 2), may_alias, aligned(2)));

typedef struct {
    const sepnet_norm *norm;
    int64_t inputs, lines, parts, stride, part_doubles;
    const void *x, *grad;
    const uint8_t *kept;
    few centre, constant, matrix[FEW]; /* of the input's channels; of dL/dx: matrix[j] is what input j adds */
    few_bits mask;                     /* the inputs among FEW */
    float *weights, *shift;            /* times the normalisation's scale: forward [inputs][stride], backward [channel, or two][FEW]; [stride] */
    float *partial;                    /* dL/dx as far as it passes the results, [pixel][FEW], or NULL */
    void *out;
    uint8_t *kept_out;
    double *sums, *rows; /* [part][part_doubles]; three of [stride], for the normalisation's functions */
} few_job;

/* --- memory ----------------------------------------------------------------------------------------------------------------- */

/* Sums of a part, a channel each: of g, then of g z for each of FEW inputs. */
static int64_t few_sums(const few_job *s) { return s->stride * (1 + FEW); }

/* The job with its memory laid out, if there is any; the partial gradients are last, as only the backward pass has them. */
static few_job make_few_job(const sepnet_norm *norm, int64_t inputs, const void *x, void *workspace) {
    few_job s = {.norm = norm, .inputs = inputs, .x = x, .sums = workspace};
    s.lines = norm->batch * (norm->height / 2);
    s.parts = sepnet_min(s.lines, most_parts(norm));
    s.stride = sepnet_round_up(norm->channels, 16);
    for (int k = 0; k < FEW; k++) s.mask[k] = k < inputs ? ~0u : 0;
    /* behind the doubles the sums of a run of lines and the four parts of STRIP windows' gradients, which are floats */
    s.part_doubles = sepnet_max(FEW_MOMENTS, few_sums(&s) / 2 * 3 + 2 * STRIP * s.stride);
    if (!workspace) return s;
    s.rows = s.sums + most_parts(norm) * s.part_doubles;
    s.weights = (float *)(s.rows + 3 * s.stride);
    s.shift = s.weights + FEW * s.stride;
    s.partial = s.shift + s.stride;
    return s;
}

static int64_t pooled_pointwise_workspace(const sepnet_norm *norm, int64_t inputs, int backward) {
    few_job s = make_few_job(norm, inputs, NULL, NULL);
    int64_t doubles = most_parts(norm) * s.part_doubles + 3 * s.stride, floats = (FEW + 1) * s.stride;
    if (backward) floats += count_pixels(norm) * FEW;
    return doubles * (int64_t)sizeof(double) + floats * (int64_t)sizeof(float);
}

/* --- the input -------------------------------------------------------------------------------------------------------------- */

/* FEW values from element `at` on, of which the map must have so many. */
INLINE few load_few(const void *base, int64_t at, int dtype) {
    if (dtype == SEPNET_FLOAT32) return *(const few *)((const float *)base + at);
    few_halves halves = *(const few_halves *)((const uint16_t *)base + at);
    return (few)(__builtin_convertvector(halves, few_bits) << 16);
}

INLINE few_halves narrow_few(few value) {
#ifdef HAVE_AVX512_BF16
    return (few_halves)_mm256_cvtneps_pbh((__m256)value);
#else
    few_bits bits = (few_bits)value, nan = (few_bits)(value != value);
    return __builtin_convertvector(HALF_BITS(bits, nan), few_halves);
#endif
}

/* `count` values; all FEW where that is how many there are room for, as the caller writes the rest later. */
INLINE void store_few(void *base, int64_t at, int64_t count, few value, int dtype) {
    if (count == FEW) {
        if (dtype == SEPNET_BFLOAT16)
            *(few_halves *)((uint16_t *)base + at) = narrow_few(value);
        else
            *(few *)((float *)base + at) = value;
        return;
    }
    few_halves halves = narrow_few(value);
    for (int64_t k = 0; k < count; k++) {
        if (dtype == SEPNET_BFLOAT16)
            ((uint16_t *)base)[at + k] = halves[k];
        else
            ((float *)base)[at + k] = value[k];
    }
}

INLINE few load_pixel(const few_job *s, int64_t pixel, int dtype) {
    few value = {0};
    for (int64_t k = 0; k < s->inputs; k++) value[k] = load_one(s->x, pixel * s->inputs + k, dtype);
    return value;
}

/* Vectors as long as they end within the map: what they hold beyond the inputs is the next pixel's. */
INLINE void centre_as(const few_job *s, int64_t first, int64_t count, few *to, int dtype) {
    const few centre = s->centre;
    const few_bits mask = s->mask;
    const int64_t inputs = s->inputs, ends = (count_pixels(s->norm) * inputs - FEW + inputs) / inputs - first; /* whole vectors */
    const void *x = s->x;
    int64_t i = 0;
    for (; i < sepnet_min(count, ends); i++) to[i] = (few)((few_bits)(load_few(x, (first + i) * inputs, dtype) - centre) & mask);
    for (; i < count; i++) to[i] = load_pixel(s, first + i, dtype) - centre;
}

/* Pixels less the centre; zero beyond the inputs. */
static void centre_pixels(const few_job *s, int64_t first, int64_t count, few *to) {
    if (s->norm->dtype == SEPNET_BFLOAT16)
        centre_as(s, first, count, to, SEPNET_BFLOAT16);
    else
        centre_as(s, first, count, to, SEPNET_FLOAT32);
}

/* The pixels that a part takes when they are dealt out evenly, some at a time. */
#define FOR_RUNS(s, part, first, count)                                                                       \
    for (int64_t first = sepnet_part_begin(count_pixels((s)->norm), (s)->parts, part),                          \
                 run_end = sepnet_part_begin(count_pixels((s)->norm), (s)->parts, (part) + 1), count;           \
         count = sepnet_min(2 * FEW_WINDOWS, run_end - first), first < run_end; first += count)

INLINE few_doubles in_doubles(few value) { return __builtin_convertvector(value, few_doubles); }

/* Adds the moments of a run about its centre, which is `apart` from the origin of the sums. */
INLINE void add_run(few_doubles *sums, few of_run, const few product[FEW], few_doubles apart, int64_t count) {
    const few_doubles sum = in_doubles(of_run), moved = sum + (double)count * apart;
    sums[0] += moved;
#pragma GCC unroll 8
    for (int k = 0; k < FEW; k++) sums[1 + k] += in_doubles(product[k]) + sum[k] * apart + apart[k] * moved;
}

INLINE few mean_of(const few *pixels, int64_t count) {
    few sum = {0};
    for (int64_t i = 0; i < count; i++) sum += pixels[i];
    return sum / (float)count;
}

/* What differs by how many inputs there are has a loop of its own for the networks' 3 and 6; K of them, or more, are computed. */
#define BY_INPUTS(s, call)         \
    do {                           \
        if ((s)->inputs <= 3) {    \
            enum { K = 3 };        \
            call;                  \
        } else if ((s)->inputs <= 6) { \
            enum { K = 6 };        \
            call;                  \
        } else {                   \
            enum { K = FEW };      \
            call;                  \
        }                          \
    } while (0)

/* The job's centre is zero: what is unpacked are the values. */
INLINE void sum_moments(const few_job *s, int64_t part, const int K) {
    const few_doubles origin = in_doubles(load_pixel(s, 0, s->norm->dtype));
    few_doubles sums[1 + FEW] = {{0}};
    few pixels[2 * FEW_WINDOWS];
    FOR_RUNS(s, part, first, count) {
        centre_pixels(s, first, count, pixels);
        const few centre = mean_of(pixels, count);
        for (int64_t from = 0, to; from < count; from = to) {
            few sum = {0}, product[FEW] = {{0}};
            to = sepnet_min(from + FEW_RUN, count);
            for (int64_t i = from; i < to; i++) {
                few apart = pixels[i] - centre;
                sum += apart;
#pragma GCC unroll 8
                for (int k = 0; k < K; k++) product[k] += apart[k] * apart;
            }
            add_run(sums, sum, product, in_doubles(centre) - origin, to - from);
        }
    }
    memcpy(s->sums + part * s->part_doubles, sums, sizeof sums);
}

static void few_moments_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const few_job *s = context;
    BY_INPUTS(s, sum_moments(s, part, K));
}

/* Mean and covariance of the input's channels; they are found about its first pixel. */
static void find_few_moments(few_job *s, double *of_x) {
    const few origin = load_pixel(s, 0, s->norm->dtype);
    sepnet_run_parts(few_moments_part, s, s->parts, s->norm->threads);
    memset(of_x, 0, FEW_MOMENTS * sizeof *of_x);
    for (int64_t part = 0; part < s->parts; part++)
        for (int i = 0; i < FEW_MOMENTS; i++) of_x[i] += s->sums[part * s->part_doubles + i];
    double count = (double)count_pixels(s->norm);
    for (int i = 0; i < FEW_MOMENTS; i++) of_x[i] /= count;
    for (int j = 0; j < FEW; j++)
        for (int k = 0; k < FEW; k++) of_x[FEW + j * FEW + k] -= of_x[j] * of_x[k];
    for (int k = 0; k < FEW; k++) of_x[k] += (double)origin[k];
}

/* (M w)[k], of the covariance and a channel's weights. */
static double times_covariance(const few_job *s, const double *of_x, const float *weight, int64_t k) {
    double sum = 0;
    for (int64_t j = 0; j < s->inputs; j++) sum += of_x[FEW + k * FEW + j] * (double)weight[j];
    return sum;
}

/* The three rows of sepnet_norm_statistics: an origin, and the sums of x - origin and of its square. */
static void few_statistics(const few_job *s, const double *of_x, const float *weight, double *rows) {
    int64_t channels = s->norm->channels;
    for (int64_t c = 0; c < channels; c++) {
        const float *w = weight + c * s->inputs;
        double mean = 0, variance = 0;
        for (int64_t k = 0; k < s->inputs; k++) {
            mean += of_x[k] * (double)w[k];
            variance += times_covariance(s, of_x, w, k) * (double)w[k];
        }
        rows[c] = mean, rows[channels + c] = 0, rows[2 * channels + c] = variance * (double)count_pixels(s->norm);
    }
}
