/* Normalised maps that are pooled, 2x2 to 1: one row of windows ("line") at a time, window by window, all channels of a window: the
 * memory in its order. Two rows that lie one after the other are more streams than the hardware's prefetcher keeps up with, so
 * the same place of the next line is fetched ahead. */

INLINE void store_index(uint8_t *base, int64_t index, int lanes, vi value) {
    vb bytes = in_bytes(value);
    if (lanes == VL)
        *(vbu *)(base + index) = bytes;
    else
        for (int i = 0; i < lanes; i++) base[index + i] = bytes[i];
}

INLINE vi load_index(const uint8_t *base, int64_t index, int lanes) {
    vb bytes = {0};
    if (lanes == VL)
        bytes = *(const vbu *)(base + index);
    else
        for (int i = 0; i < lanes; i++) bytes[i] = base[index + i];
    return from_bytes(bytes);
}

/* Elements of channel 0 of a window's four pixels, and of its result. */
typedef struct {
    int64_t at[4], result;
} pool_window;

INLINE pool_window first_window(const sepnet_norm *norm, int64_t line) {
    int64_t rows = norm->height / 2, image = line / rows, row = line % rows * 2, channels = norm->channels;
    int64_t above = (image * norm->height + row) * norm->width * channels, below = above + norm->width * channels;
    return (pool_window){{above, above + channels, below, below + channels}, line * (norm->width / 2) * channels};
}

/* Pixels outside every window, where the height or width is odd: body(first, last) for those at the end of a line of windows. */
#define FOR_OUTSIDE(norm, line, body)                                                                               \
    do {                                                                                                            \
        const int64_t height = (norm)->height, width = (norm)->width, rows = height / 2, row = (line) % rows;       \
        const int64_t behind = ((line) / rows * height + 2 * row + 2) * width; /* the pixel behind the line's two rows */ \
        if (width % 2) {                                                                                            \
            body(behind - width - 1, behind - width);                                                               \
            body(behind - 1, behind);                                                                               \
        }                                                                                                           \
        if (height % 2 && row == rows - 1) body(behind, behind + width);                                            \
    } while (0)

INLINE pool_window next_window(const sepnet_norm *norm, pool_window w) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) w.at[k] += 2 * norm->channels;
    w.result += norm->channels;
    return w;
}

/* The four pixels' values. */
INLINE void load_window(const norm_job *s, pool_window w, int64_t channel, int lanes, int dtype, vf value[4]) {
    int64_t line = 2 * s->norm->width * s->norm->channels;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        value[k] = load_lanes(s->x, w.at[k] + channel, lanes, dtype);
        __builtin_prefetch((const char *)s->x + (size_t)(w.at[k] + channel + line) * element_size(dtype), 0, 2);
    }
}

/* body(lanes, dtype) for the channels of each window `w` of a line. `s` is a job of our own, which no store can alias. */
#define FOR_WINDOWS(job, line, body)                                                                \
    do {                                                                                            \
        const sepnet_norm norm = *(job)->norm;                                                      \
        norm_job copy = *(job);                                                                     \
        copy.norm = &norm;                                                                          \
        const norm_job *s = &copy;                                                                  \
        pool_window w = first_window(&norm, line);                                                  \
        for (int64_t col = 0; col < norm.width / 2; col++, w = next_window(&norm, w)) FOR_CHANNELS(&norm, body); \
    } while (0)

/* The largest of a window's values, the first of equals, but a NaN before all others; and which it is. */
INLINE vf keep_largest(const vf value[4], vi *which) {
    vf best = value[0];
    vi index = {0};
#pragma GCC unroll 3
    for (int k = 1; k < 4; k++) {
        vi better = (vi)(value[k] > best) | (vi)(value[k] != value[k]);
        best = choose(better, value[k], best);
        index = (better & k) | (~better & index);
    }
    *which = index;
    return best;
}

INLINE void apply_window(const norm_job *s, pool_window w, int64_t channel, int lanes, int dtype) {
    vf scale = load_lanes(s->scale, channel, lanes, SEPNET_FLOAT32), shift = load_lanes(s->shift, channel, lanes, SEPNET_FLOAT32);
    vf value[4];
    load_window(s, w, channel, lanes, dtype, value);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) value[k] = value[k] * scale + shift;
    vi index;
    vf best = keep_largest(value, &index);
    store_lanes(s->out, w.result + channel, lanes, dtype, s->norm->relu ? relu(best) : best);
    if (s->argmax_out) store_index(s->argmax_out, w.result + channel, lanes, index);
}

static void apply_windows(const norm_job *job, int64_t line) {
#define WINDOW(lanes, dtype) apply_window(s, w, channel, lanes, dtype)
    FOR_WINDOWS(job, line, WINDOW);
#undef WINDOW
}

INLINE void sum_window(const norm_job *s, pool_window w, int64_t channel, float *sums, int lanes, int dtype) {
    vi index = load_index(s->argmax, w.result + channel, lanes);
    vf value[4];
    load_window(s, w, channel, lanes, dtype, value);
    vf kept = value[0];
#pragma GCC unroll 3
    for (int k = 1; k < 4; k++) kept = choose((vi)(index == k), value[k], kept);
    vf grad = gradient_by_result(s, w.result + channel, lanes, dtype);
    *(vfu *)(sums + channel) += grad;
    *(vfu *)(sums + s->stride + channel) += grad * (kept - load_lanes(s->mean, channel, lanes, SEPNET_FLOAT32));
}

/* Adds the line's two sums a channel, each of which is taken in float32. */
static void sum_windows(const norm_job *job, int64_t line, double *sums) {
    const int64_t stride = job->stride;
    float *line_sums = (float *)(sums + 2 * stride);
    memset(line_sums, 0, (size_t)(2 * stride) * sizeof *line_sums);
#define WINDOW(lanes, dtype) sum_window(s, w, channel, line_sums, lanes, dtype)
    FOR_WINDOWS(job, line, WINDOW);
#undef WINDOW
    for (int64_t c = 0; c < 2 * stride; c += VL) add_doubles(sums + c, *(const vfu *)(line_sums + c));
}

INLINE void window_gradient(const norm_job *s, pool_window w, int64_t channel, int lanes, int dtype) {
    coefficients c = load_coefficients(s, channel, lanes);
    vi index = load_index(s->argmax, w.result + channel, lanes);
    vf grad = gradient_by_result(s, w.result + channel, lanes, dtype), value[4];
    load_window(s, w, channel, lanes, dtype, value);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        vf passed = choose((vi)(index == k), grad, splat(0));
        put_gradient(s, c, w.at[k] + channel, value[k], passed, lanes, dtype);
    }
}

static void gradient_outside(const norm_job *s, int64_t first, int64_t last) {
#define OUTSIDE(at, lanes, dtype) \
    put_gradient(s, load_coefficients(s, channel, lanes), at, load_lanes(s->x, at, lanes, dtype), splat(0), lanes, dtype)
    FOR_PIXELS(s->norm, first, last, OUTSIDE);
#undef OUTSIDE
}

static void gradient_windows(const norm_job *job, int64_t line) {
#define WINDOW(lanes, dtype) window_gradient(s, w, channel, lanes, dtype)
    FOR_WINDOWS(job, line, WINDOW);
#undef WINDOW
#define OUTSIDE(first, last) gradient_outside(job, first, last)
    FOR_OUTSIDE(job->norm, line, OUTSIDE);
#undef OUTSIDE
}
