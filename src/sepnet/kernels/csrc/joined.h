/* Sums that the normalisations at the convolution's sides need, of rows that have just been computed and are still in cache. */

/* Whether there are any to take. */
static int sums_follow(const job_state *s) { return s->joined && s->joined->sums; }

/* Elements of a part's sums: of the first kind; as many of the second follow. */
static int64_t joined_stride(const job_state *s) { return s->conv->branches * s->blocks * VL; }

static double *joined_at(const job_state *s, int64_t part, int64_t block, int branch) {
    return s->joined_sums + part * 2 * joined_stride(s) + (branch * s->blocks + block) * VL;
}

INLINE moments run_moments(const destination *from, int64_t first, int64_t rows, int64_t cols, int lanes, int dtype) {
    vf zero = splat(0), origin = load_lanes(from->map, first, lanes, dtype);
    moments m[2] = {{origin, zero, zero, 0}, {origin, zero, zero, 0}};
    for (int64_t r = 0; r < rows; r++) {
        int64_t at = first + r * from->row, c = 0;
        for (; c + 2 <= cols; c += 2, at += 2 * from->col) {
            add_value(&m[0], load_lanes(from->map, at, lanes, dtype));
            add_value(&m[1], load_lanes(from->map, at + from->col, lanes, dtype));
        }
        if (c < cols) add_value(&m[0], load_lanes(from->map, at, lanes, dtype));
    }
    return (moments){origin, m[0].sum + m[1].sum, m[0].square + m[1].square, rows * cols};
}

/* Adds the moments of a rectangle of a block's outputs, about the channels' origins. */
static void output_sums(const job_state *s, const destination *from, int64_t first, int lanes, int64_t rows, int64_t cols,
                        double *sums, const float *origin) {
    moments m;
    if (lanes != VL)
        m = run_moments(from, first, rows, cols, lanes, from->dtype);
    else if (from->dtype == SEPNET_BFLOAT16)
        m = run_moments(from, first, rows, cols, VL, SEPNET_BFLOAT16);
    else
        m = run_moments(from, first, rows, cols, VL, SEPNET_FLOAT32);
    add_moments(sums, sums + joined_stride(s), *(const vfu *)origin, &m);
}

INLINE void run_input_sums(const job_state *s, const entry *e, int64_t channel, int64_t first, int64_t pixels, double *sums, int lanes,
                           int dtype) {
    const int64_t step = col_step(&s->seen);
    const vf scale = constant_lanes(e->scale, channel, lanes), shift = constant_lanes(e->shift, channel, lanes);
    const vf mean = constant_lanes(e->mean, channel, lanes);
    vf sum[2] = {splat(0), splat(0)}, product[2] = {splat(0), splat(0)};
    for (int64_t i = 0; i < pixels; i += 2)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            if (k && i + k >= pixels) break;
            int64_t at = first + (i + k) * step;
            vf value = load_lanes(s->x, at, lanes, dtype), grad = load_lanes(s->grad_x, at, lanes, dtype);
            grad = (vf)((vu)grad & ((vu)(value * scale + shift > 0) | e->passes));
            sum[k] += grad;
            product[k] += grad * (value - mean);
        }
    add_doubles(sums, sum[0] + sum[1]);
    add_doubles(sums + joined_stride(s), product[0] + product[1]);
}

/* Those of a run of pixels of all the task's blocks. */
static void run_blocks_sums(const job_state *s, const task *at, const entry *e, int64_t start, int64_t pixels, int64_t part) {
    const int dtype = s->conv->dtype;
    for (int64_t b = 0; b < at->blocks; b++) {
        double *sums = joined_at(s, part, at->block + b, 0);
        int64_t channel = b * VL, first = start + channel;
        if (b == at->blocks - 1 && at->lanes != VL)
            run_input_sums(s, e, channel, first, pixels, sums, at->lanes, dtype);
        else if (dtype == SEPNET_BFLOAT16)
            run_input_sums(s, e, channel, first, pixels, sums, VL, SEPNET_BFLOAT16);
        else
            run_input_sums(s, e, channel, first, pixels, sums, VL, SEPNET_FLOAT32);
    }
}

/* Adds the sums that the gradient of the normalisation before needs: of dL/dz where its ReLU let z pass, and of its product
 * with x - mean, over the input rows [row0, row1). What no tap sees has a gradient of 0. */
static void input_sums(const job_state *s, const task *at, int64_t row0, int64_t row1, int64_t part) {
    const sepnet_depthwise *conv = s->conv;
    const lattice *l = &s->seen;
    const entry e = open_entry(THROUGH_NORM, s->joined->before, conv->channels, at->channel, s->joined->before_relu, NULL);
    int64_t rows = row1 - row0, pixels = conv->in_w;
    if (row_step(l) == pixels * col_step(l)) pixels *= rows, rows = 1; /* one behind the other */
    for (int64_t r = 0; r < rows; r++)
        run_blocks_sums(s, at, &e, seen_element(l, at->image, row0 + r, 0) + at->channel, pixels, part);
}

/* --- sums of all parts ---------------------------------------------------------------------------------------------- */

static void clear_joined_sums(const job_state *s) {
    if (sums_follow(s)) memset(s->joined_sums, 0, (size_t)(s->parts * 2 * joined_stride(s)) * sizeof(double));
}

/* The parts' sums, in their order, as two rows of a double an output channel. */
static void reduce_joined_sums(const job_state *s, int branches, double *first, double *second) {
    int64_t count = 2 * joined_stride(s);
    for (int64_t part = 1; part < s->parts; part++)
        for (int64_t i = 0; i < count; i++) s->joined_sums[i] += s->joined_sums[part * count + i];
    for (int64_t c = 0; c < s->conv->channels; c++)
        for (int j = 0; j < branches; j++) {
            const double *from = joined_at(s, 0, c / VL, j) + c % VL;
            int64_t to = branches == 1 ? c : output_channel(s->conv, c, j);
            first[to] = *from, second[to] = from[joined_stride(s)];
        }
}

/* Image 0's first output, which the sums of all are taken about. */
static float first_output(const job_state *s, int64_t channel, int branch) {
    const sepnet_depthwise *conv = s->conv;
    const sepnet_branch *b = &conv->branch[branch];
    const entry e = open_input(s, &(task){.channel = channel, .blocks = 1, .lanes = 1, .images = 1}, (plane){0}, NULL, NULL).from.entry;
    const float *filter = s->weight + weight_element(s, channel, branch);
    float sum = s->bias ? s->bias[output_channel(conv, channel, branch)] : 0;
    for (int64_t r = 0; r < b->kernel_h; r++) {
        const float *weight = filter + row_in_memory(&s->filter[branch], r);
        for (int64_t c = 0; c < b->kernel_w; c++) {
            int64_t row = r * b->dilation_h - b->pad_h, col = c * b->dilation_w - b->pad_w;
            if (row < 0 || row >= conv->in_h || col < 0 || col >= conv->in_w) continue;
            vf value = load_lanes(s->x, seen_element(&s->seen, 0, row, col) + channel, 1, conv->dtype);
            sum += weight[c] * enter(&e, 0, 1, value, value, e.way)[0];
        }
    }
    return sum;
}

static void find_origins(const job_state *s) {
    memset(s->origin, 0, (size_t)joined_stride(s) * sizeof(float));
    if (s->conv->batch == 0) return;
    for (int j = 0; j < s->conv->branches; j++)
        for (int64_t c = 0; c < s->conv->channels; c++) s->origin[j * s->blocks * VL + c] = first_output(s, c, j);
}

/* The rows that sepnet_norm_statistics takes. */
static void finish_output_sums(const job_state *s) {
    int64_t outputs = s->conv->channels * s->conv->branches;
    double *rows = s->joined->sums;
    for (int64_t c = 0; c < s->conv->channels; c++)
        for (int j = 0; j < s->conv->branches; j++)
            rows[output_channel(s->conv, c, j)] = (double)s->origin[j * s->blocks * VL + c];
    reduce_joined_sums(s, s->conv->branches, rows + outputs, rows + 2 * outputs);
}
