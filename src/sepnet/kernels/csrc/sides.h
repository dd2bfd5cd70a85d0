/* What a pointwise convolution takes over from the normalisations at its sides (sepnet_joined): values that are normalised as they enter,
 * and sums of results that are still in registers. One vector length; included after vector.h. */

/* A map's normalisation: its values become relu(value * scale + shift). scale NULL: there is none. */
typedef struct {
    const float *mean, *scale, *shift;
    vu passes;   /* all ones: without ReLU */
    float least; /* minus infinity: without ReLU */
} side;

static side open_side(const float *constants, int64_t channels, int relu) {
    if (!constants) return (side){.scale = NULL};
    side e = {.passes = (vu)splat(0)};
    if (!relu) e.passes = ~e.passes;
    e.least = relu ? 0 : -__builtin_inff();
    e.mean = constants + SEPNET_MEAN * channels;
    e.scale = constants + SEPNET_SCALE * channels, e.shift = constants + SEPNET_SHIFT * channels;
    return e;
}

/* Of channels from c on, so many of them. */
INLINE vf enter_lanes(const side *e, int64_t c, int lanes, vf value) {
    value = value * load_lanes(e->scale, c, lanes, SEPNET_FLOAT32) + load_lanes(e->shift, c, lanes, SEPNET_FLOAT32);
    return at_least(e->least, value);
}

INLINE vf enter_value(const side *e, int64_t c, vf value) { return enter_lanes(e, c, VL, value); }

/* --- sums of results ---------------------------------------------------------------------------------------------------------- */

/* NO_SUMS; MOMENTS: of the results; GATED: of results that are the gradient of what another map becomes, where its ReLU lets them pass, and
 * of their products with that map less its mean. */
enum { NO_SUMS, MOMENTS, GATED };
enum { SIDE_ROWS = 3 }; /* rows of floats a channel, of a worker: origin or nothing, and the two sums */

/* A worker's: rows of floats, and a part's sums of doubles, [SIDE_ROWS][channels]. */
typedef struct {
    float *line;
    double *part;
    int64_t channels;
} result_sums;

static void begin_sums(result_sums *s) { memset(s->line + s->channels, 0, (size_t)(2 * s->channels) * sizeof *s->line); }

INLINE vf *lines_of(const result_sums *s, int row, int64_t col) { return (vf *)(s->line + row * s->channels + col); }

/* Of a worker's floats to the part's doubles. The channels are whole vectors. */
static void keep_sums(const result_sums *s, int first) {
    for (int64_t i = 0; i < SIDE_ROWS * s->channels; i += VL) {
        const vd sum = in_double(load_lanes(s->line, i, VL, SEPNET_FLOAT32));
        if (first || i < s->channels)
            *(vdu *)(s->part + i) = sum;
        else
            *(vdu *)(s->part + i) += sum;
    }
}

/* The first pixel of a part: of a band. */
static int64_t first_pixel(int64_t pixels, int64_t band, int64_t parts, int64_t part) {
    return sepnet_min(sepnet_part_begin((pixels + band - 1) / band, parts, part) * band, pixels);
}

/* All parts' sums; each took so many bands of pixels. */
typedef struct {
    const double *sums; /* [part][SIDE_ROWS][stride] */
    int64_t channels, stride, parts, pixels, band;
    int kind;
    int64_t (*place)(int64_t channel);
} parts_sums;

/* In their order: to the rows that sepnet_norm_statistics takes, or those of sepnet_norm_gradients. */
static void add_parts(const parts_sums *s, double *rows) {
    const double *at = s->sums, *origin = s->kind == MOMENTS ? rows : NULL;
    for (int64_t c = 0; origin && c < s->channels; c++) *rows++ = at[s->place(c)];
    memset(rows, 0, (size_t)(2 * s->channels) * sizeof *rows);
    for (int64_t p = 0; p < s->parts; p++, at += SIDE_ROWS * s->stride) {
        const int64_t begin = first_pixel(s->pixels, s->band, s->parts, p), end = first_pixel(s->pixels, s->band, s->parts, p + 1);
        const double pixels = (double)(end - begin);
        for (int64_t c = 0; c < s->channels; c++) {
            const double *own = at + s->place(c), sum = own[s->stride], apart = origin ? own[0] - origin[c] : 0, all = apart * pixels;
            rows[c] += sum + all, rows[s->channels + c] += own[2 * s->stride] + apart * (2 * sum + all);
        }
    }
}
