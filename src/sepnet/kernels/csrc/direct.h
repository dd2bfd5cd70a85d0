/* Depthwise convolutions by direct_tiles.h: which ones, and their rows. A task is one row of y, and the rows of x that belong to it. */

#if defined(HAVE_AVX2)
enum { HAVE_DIRECT = 1 };
#else
enum { HAVE_DIRECT = 0 }; /* not measured */
#endif

/* Of the rows that a filter reaches, which may have to be kept (gradient_rows): where they are more, planes take less memory. */
enum { KEPT_BYTES = 2 << 20 };

static int64_t kept_rows(const sepnet_depthwise *conv) { return sepnet_min(2 * conv->branch[0].dilation_h + 1, conv->out_h); }

static int64_t kept_floats(const sepnet_depthwise *conv) {
    return kept_rows(conv) * conv->out_w * plane_pixel(count_blocks(conv));
}

/* Whether every tap but those beyond the border is a load of whole vectors at a fixed distance from its result's place: one 3x3 filter a
 * channel, stride 1 or 2, a padding with which each step of the stride has its result. (The lattice makes such ones of strides and
 * dilations with a common divisor, as 2 and 2.) */
static int is_direct(const sepnet_depthwise *conv, int backward) {
    const sepnet_branch *b = &conv->branch[0];
    const int64_t stride = conv->stride_h;
    if (!HAVE_DIRECT || conv->branches > 1 || conv->dtype != SEPNET_FLOAT32 || conv->channels % VL) return 0;
    if (b->kernel_h != TAPS || b->kernel_w != TAPS || stride > 2 || conv->stride_w != stride) return 0;
    if (b->pad_h != b->dilation_h || b->pad_w != b->dilation_w || (stride > 1 && (b->dilation_h > 1 || b->dilation_w > 1))) return 0;
    if (conv->out_h != (conv->in_h + stride - 1) / stride || conv->out_w != (conv->in_w + stride - 1) / stride) return 0;
    return !backward || kept_floats(conv) * (int64_t)sizeof(float) <= KEPT_BYTES;
}

static cut direct_cut(const sepnet_depthwise *conv) {
    const int64_t blocks = count_blocks(conv);
    return (cut){.slab = blocks, .slabs = 1, .bands = conv->out_h, .pixel = plane_pixel(blocks)};
}

/* --- rows of dL/dy -------------------------------------------------------------------------------------------------- */

/* Where the gradient passes a normalisation, the last rows as they leave that: none is seen from farther than a filter reaches. Else they
 * are read from the map itself. */
typedef struct {
    source from;
    float *kept;
    int64_t pixel, size, image, ready; /* size: rows that are kept; ready: the first row that has not been there */
} gradient_rows;

/* Of the sums since `count` was 0: moments, or three vectors. */
static int64_t run_floats(const sepnet_depthwise *conv) {
    return count_blocks(conv) * (int64_t)sepnet_max(sizeof(moments), 3 * sizeof(vf)) / (int64_t)sizeof(float);
}

static int64_t direct_floats(const sepnet_depthwise *conv, int backward) {
    return run_floats(conv) + (backward ? kept_floats(conv) : 0);
}

/* Of an image, of which rows from `first` on will be asked for, in their order. */
static void open_rows(gradient_rows *g, const job_state *s, const task *at, int64_t first) {
    if (g->image == at->image) return;
    const plane whole = {0, s->conv->out_h, 0, s->conv->out_w, s->cut.pixel};
    g->from = open_gradient(s, at, whole, 0, g->kept, NULL).from;
    g->image = at->image, g->ready = first;
    g->pixel = g->from.entry.way == AS_IS ? g->from.pixel : s->cut.pixel;
}

static const float *gradient_row(gradient_rows *g, int64_t row) {
    const source *from = &g->from;
    if (from->entry.way == AS_IS) return (const float *)from->map + from->start + row * from->row;
    const plane one = {0, 1, 0, from->width, g->pixel};
    for (; g->ready <= row; g->ready++) unpack_row(from, g->ready, one, g->kept + g->ready % g->size * from->width * g->pixel);
    return g->kept + row % g->size * from->width * g->pixel;
}

/* --- parts ---------------------------------------------------------------------------------------------------------- */

static strip_work open_work(const job_state *s, const task *at, float *scratch) {
    strip_work w = {.weight = s->packed, .start = s->start, .blocks = s->blocks, .stride = s->conv->stride_h,
                    .weight_step = s->weight_vectors * VL, .sums_step = block_sums(s)};
    w.before = open_input(s, at, (plane){0}, NULL, NULL).from.entry;
    if (s->want_bias) w.bias = (vf *)scratch;
    if (sums_follow(s)) w.output = (moments *)scratch, w.input = (vf *)scratch + s->blocks;
    return w;
}

/* How results are written that begin at `to`, with so many floats between pixels. */
static void open_results(strip_work *w, const job_state *s, float *to, ptrdiff_t pixel) {
    w->to = (patch){.to = (char *)to, .to_col = pixel, .dtype = SEPNET_FLOAT32};
    w->to.stream = s->stream && fills_lines(&w->to, w->blocks);
}

/* Whether what has been summed since the count was 0 is enough, or nothing follows. */
static int ends_run(const strip_work *w, int last) { return w->count >= RUN || (last && w->count > 0); }

static void end_forward_run(const job_state *s, strip_work *w, int64_t part, int last) {
    if (!sums_follow(s) || !ends_run(w, last)) return;
    for (int64_t b = 0; b < w->blocks; b++) {
        double *sums = joined_at(s, part, b, 0);
        w->output[b].count = w->count;
        add_moments(sums, sums + joined_stride(s), *(const vfu *)(s->origin + b * VL), w->output + b);
    }
    w->count = 0;
}

static void end_backward_run(const job_state *s, strip_work *w, int64_t part, int last) {
    if (!ends_run(w, last)) return;
    for (int64_t b = 0; b < w->blocks; b++) {
        if (w->bias) *(vf *)(w->sums + b * w->sums_step + s->filter_taps * VL) += w->bias[b];
        if (!sums_follow(s)) continue;
        double *sums = joined_at(s, part, b, 0);
        add_doubles(sums, w->input[2 * b]);
        add_doubles(sums + joined_stride(s), w->input[2 * b + 1]);
    }
    w->count = 0;
}

/* Of so many pixels those from the c-th on that are a dilation apart. */
static int64_t strip_cols(const sepnet_depthwise *conv, int64_t cols, int64_t c) {
    const int64_t apart = conv->branch[0].dilation_w;
    return (cols - c + apart - 1) / apart;
}

static void forward_row(const job_state *s, const task *at, strip_work *w) {
    const sepnet_depthwise *conv = s->conv;
    const lattice *l = &s->seen;
    const int64_t out = conv->channels, row = at->rows.out0, apart = conv->branch[0].dilation_h, step = conv->branch[0].dilation_w;
    const int64_t first = row * conv->stride_h - apart;
    const float *x = (const float *)s->x + seen_element(l, at->image, row * conv->stride_h, 0);
    float *y = (float *)s->y + (at->image * conv->out_h + row) * conv->out_w * out;
    open_results(w, s, y, step * out);
    for (int64_t c = 0; c < sepnet_min(step, conv->out_w); c++, x += col_step(l), y += out) {
        strip t = {.next = x + (apart + 1) * row_step(l), .next_row = row_step(l), .to = y, .pixel = step * col_step(l),
                   .to_pixel = step * out, .cols = strip_cols(conv, conv->out_w, c),
                   .beyond = conv->stride_w == 1 || conv->in_w % 2 == 1};
        for (int k = 0; k < TAPS; k++)
            if (first + k * apart >= 0 && first + k * apart < conv->in_h) t.row[k] = x + (k - 1) * apart * row_step(l);
        forward_strip(w, &t);
    }
}

/* Of row `row` of the input: a strip as far as all of the row's have it in common, as the pixels of the first one. */
static strip gradient_strip(const job_state *s, const task *at, int64_t row, gradient_rows *g) {
    const sepnet_depthwise *conv = s->conv;
    const int64_t stride = conv->stride_h, apart = conv->branch[0].dilation_h, step = conv->branch[0].dilation_w;
    const int64_t x_step = col_step(&s->seen), place = seen_element(&s->seen, at->image, row, 0);
    strip t = {.x = (const float *)s->x + place, .to = s->want_x ? (float *)s->grad_x + place : NULL, .x_pixel = step * x_step,
               .to_pixel = step * x_step, .beyond = 1};
    for (int k = TAPS - 1; k >= 0; k--) { /* the last row of taps sees the uppermost one */
        const int64_t from = row + (1 - k) * apart, seen = from / stride;
        if (from >= 0 && from % stride == 0 && seen < conv->out_h) t.row[k] = gradient_row(g, seen);
    }
    if (g->from.entry.way == AS_IS && row % stride == 0)
        t.next = (const float *)s->grad + g->from.start + (row / stride + apart + 1) * g->from.row;
    t.pixel = step * g->pixel;
    return t;
}

static void backward_rows(const job_state *s, const task *at, gradient_rows *g, strip_work *w) {
    const sepnet_depthwise *conv = s->conv;
    const int64_t step = conv->branch[0].dilation_w, x_step = col_step(&s->seen);
    open_rows(g, s, at, sepnet_max(0, sepnet_floor_div(at->rows.in0 - conv->branch[0].dilation_h, conv->stride_h)));
    if (s->want_x) clear_gradient(s, at, at->rows.in0, at->rows.in1);
    for (int64_t row = at->rows.in0; row < at->rows.in1; row++) {
        strip t = gradient_strip(s, at, row, g);
        open_results(w, s, t.to, t.to_pixel);
        for (int64_t c = 0; c < sepnet_min(step, conv->in_w); c++) {
            t.cols = strip_cols(conv, conv->in_w, c);
            backward_strip(w, &t);
            for (int k = 0; k < TAPS; k++)
                if (t.row[k]) t.row[k] += g->pixel;
            t.x += x_step, t.next = t.next ? t.next + g->pixel : NULL, t.to = t.to ? t.to + x_step : NULL;
        }
    }
}

static void direct_forward_part(void *context, int64_t part, sepnet_worker worker) {
    const job_state *s = context;
    const int64_t tasks = count_tasks(s);
    const int64_t begin = sepnet_part_begin(tasks, s->parts, part), end = sepnet_part_begin(tasks, s->parts, part + 1);
    task at = nth_task(s, begin);
    strip_work w = open_work(s, &at, (float *)(s->scratch + worker.index * s->scratch_bytes));
    for (int64_t i = begin; i < end; i++) {
        at = nth_task(s, i);
        forward_row(s, &at, &w);
        end_forward_run(s, &w, part, i + 1 == end);
    }
    if (s->stream_zeros) stream_fence();
}

static void direct_backward_part(void *context, int64_t part, sepnet_worker worker) {
    const job_state *s = context;
    const int64_t tasks = count_tasks(s);
    const int64_t begin = sepnet_part_begin(tasks, s->parts, part), end = sepnet_part_begin(tasks, s->parts, part + 1);
    const int64_t floats = s->blocks * block_sums(s);
    float *scratch = (float *)(s->scratch + worker.index * s->scratch_bytes);
    task at = nth_task(s, begin);
    strip_work w = open_work(s, &at, scratch);
    gradient_rows g = {.kept = scratch + run_floats(s->conv), .size = kept_rows(s->conv), .image = -1};
    w.sums = s->partial + part * floats;
    memset(w.sums, 0, (size_t)floats * sizeof *w.sums);
    for (int64_t i = begin; i < end; i++) {
        at = nth_task(s, i);
        backward_rows(s, &at, &g, &w);
        end_backward_run(s, &w, part, i + 1 == end);
    }
    if (s->stream_zeros) stream_fence();
}
