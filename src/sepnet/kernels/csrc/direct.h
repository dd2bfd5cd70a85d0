/* Depthwise convolutions by direct_strips.h: which ones, and their rows. A task is one row of y, and the rows of x that belong to it. */

#if defined(HAVE_AVX2)
enum { HAVE_DIRECT = 1 };
#else
enum { HAVE_DIRECT = 0 }; /* not measured */
#endif

/* Of the rows that a filter reaches, which may have to be kept (gradient_rows): where they are more, planes take less memory. */
enum { KEPT_BYTES = 2 << 20 };

/* How many rows a filter reaches from its middle, at most. */
static int64_t farthest(const sepnet_depthwise *conv) {
    int64_t most = 0;
    for (int j = 0; j < conv->branches; j++) most = sepnet_max(most, conv->branch[j].pad_h);
    return most;
}

static int64_t kept_rows(const sepnet_depthwise *conv) {
    return sepnet_min(2 * farthest(conv) / conv->stride_h + 1, conv->out_h);
}

static int64_t gradient_pixel(const sepnet_depthwise *conv) { return plane_pixel(conv->branches * count_blocks(conv)); }

static int64_t kept_floats(const sepnet_depthwise *conv) { return kept_rows(conv) * conv->out_w * gradient_pixel(conv); }

/* Whether a filter is 3x3 or 5x5, padded by as much as it reaches. */
static int is_centred(const sepnet_branch *b) {
    if (b->kernel_h != b->kernel_w || (b->kernel_h != 3 && b->kernel_h != WIDEST)) return 0;
    return b->pad_h == b->kernel_h / 2 * b->dilation_h && b->pad_w == b->kernel_w / 2 * b->dilation_w;
}

/* Whether every tap but those beyond the border is a load of whole vectors at a fixed distance from its result's place: 3x3 and 5x5
 * filters of one dilation and stride 1, or one 3x3 filter a channel and stride 2, with a padding with which each step of the stride has its
 * result. (The lattice leaves a stride of 2 no even dilation.) */
static int is_direct(const sepnet_depthwise *conv, int backward) {
    const sepnet_branch *one = &conv->branch[0];
    const int64_t stride = conv->stride_h;
    if (!HAVE_DIRECT || conv->dtype != SEPNET_FLOAT32 || conv->channels % VL || (conv->branches > 1 && conv->interleaved)) return 0;
    if (stride > 2 || conv->stride_w != stride) return 0;
    if (stride == 2 && (conv->branches > 1 || one->kernel_h > 3)) return 0;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        if (!is_centred(b) || b->dilation_h != one->dilation_h || b->dilation_w != one->dilation_w) return 0;
    }
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

/* Of the sums since `count` was 0: moments a branch, or a vector a branch and two more. */
static int64_t run_floats(const sepnet_depthwise *conv) {
    const int64_t bytes = sepnet_max(conv->branches * (int64_t)sizeof(moments), (conv->branches + 2) * (int64_t)sizeof(vf));
    return count_blocks(conv) * bytes / (int64_t)sizeof(float);
}

static int64_t direct_floats(const sepnet_depthwise *conv, int backward) {
    return run_floats(conv) + (backward ? kept_floats(conv) : 0);
}

/* Of an image, of which rows from `first` on will be asked for, in their order. */
static void open_rows(gradient_rows *g, const job_state *s, const task *at, int64_t first) {
    if (g->image == at->image) return;
    const plane whole = {0, s->conv->out_h, 0, s->conv->out_w, gradient_pixel(s->conv)};
    g->from = open_gradient(s, at, whole, 0, g->kept, NULL).from;
    g->image = at->image, g->ready = first;
    g->pixel = g->from.entry.way == AS_IS ? g->from.pixel : gradient_pixel(s->conv);
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
    const sepnet_depthwise *conv = s->conv;
    strip_work w = {.weight = s->packed, .branches = conv->branches, .blocks = s->blocks, .stride = conv->stride_h,
                    .weight_step = s->weight_vectors * VL, .sums_step = block_sums(s)};
    for (int j = 0; j < conv->branches; j++)
        w.branch[j] = (filters){conv->branch[j].kernel_h, packed_before(conv, &s->pairs, j) * VL, j * conv->channels};
    w.before = open_input(s, at, (plane){0}, NULL, NULL).from.entry;
    if (s->want_bias) w.bias = (vf *)scratch;
    if (sums_follow(s)) w.output = (moments *)scratch, w.input = (vf *)scratch + s->blocks * conv->branches;
    return w;
}

/* How results are written that begin at `to`, with so many floats between pixels. */
static void open_results(strip_work *w, const job_state *s, float *to, ptrdiff_t pixel) {
    w->to = (patch){.to = (char *)to, .to_col = pixel, .dtype = SEPNET_FLOAT32};
    w->to.stream = s->stream && fills_lines(&w->to, w->blocks);
}

/* Whether what has been summed since the count was 0 is enough, or nothing follows. */
static int ends_run(const strip_work *w, int last) { return w->count >= RUN || (last && w->count > 0); }

static void end_forward_run(const job_state *s, const strip_work *w, moments *output, int64_t part) {
    for (int j = 0; j < s->conv->branches; j++)
        for (int64_t b = 0; b < w->blocks; b++, output++) {
            double *sums = joined_at(s, part, b, j);
            output->count = w->count;
            add_moments(sums, sums + joined_stride(s), *(const vfu *)(s->origin + (j * s->blocks + b) * VL), output);
        }
}

static void end_backward_run(const job_state *s, const strip_work *w, int64_t part) {
    for (int64_t b = 0; b < w->blocks; b++) {
        vf *bias = (vf *)(w->sums + b * w->sums_step + s->filter_taps * VL);
        for (int64_t j = 0; w->bias && j < w->branches; j++) bias[j] += w->bias[b * w->branches + j];
        if (!sums_follow(s)) continue;
        double *sums = joined_at(s, part, b, 0);
        add_doubles(sums, w->input[2 * b]);
        add_doubles(sums + joined_stride(s), w->input[2 * b + 1]);
    }
}

/* Of so many pixels those from the c-th on that are a dilation apart. */
static int64_t strip_cols(const sepnet_depthwise *conv, int64_t cols, int64_t c) {
    const int64_t apart = conv->branch[0].dilation_w;
    return (cols - c + apart - 1) / apart;
}

/* The strip of results from the c-th of a row on. Its rows of x begin with the image's column 0. */
static strip forward_strip_at(const job_state *s, const strip *row, int64_t c) {
    const sepnet_depthwise *conv = s->conv;
    const int64_t apart = conv->branch[0].dilation_w, stride = conv->stride_w, from = c * stride * col_step(&s->seen);
    const int64_t cols = strip_cols(conv, conv->out_w, c), behind = c * stride + (stride * (cols - 1) + 1) * apart;
    strip t = *row;
    for (int k = 0; k < WIDEST; k++)
        if (t.row[k]) t.row[k] += from;
    t.to += c * conv->channels * conv->branches;
    t.cols = cols, t.begins = c * stride < apart, t.ends = behind >= conv->in_w;
    return t;
}

/* A row of results: branch by branch, while its rows of x are in cache. */
static void forward_row(const job_state *s, const task *at, strip_work *w, moments *output) {
    const sepnet_depthwise *conv = s->conv;
    const lattice *l = &s->seen;
    const int64_t row = at->rows.out0, apart = conv->branch[0].dilation_h, step = conv->branch[0].dilation_w;
    const int64_t pixel = conv->channels * conv->branches, middle = row * conv->stride_h, count = w->count;
    const float *x = (const float *)s->x + seen_element(l, at->image, middle, 0);
    strip whole = {.next_row = row_step(l), .next_pixel = col_step(l), .pixel = step * col_step(l), .to_pixel = step * pixel};
    for (int64_t k = 0; k < WIDEST; k++) {
        const int64_t from = (k - FARTHEST) * apart;
        if (middle + from >= 0 && middle + from < conv->in_h) whole.row[k] = x + from * row_step(l);
    }
    for (int j = 0; j < conv->branches; j++) {
        const filters *f = w->branch + j;
        whole.next = j == 0 ? x + (farthest(conv) + 1) * row_step(l) : NULL; /* the others read the same */
        whole.to = (float *)s->y + (at->image * conv->out_h + row) * conv->out_w * pixel + f->channels;
        w->weight = s->packed + f->weights, w->start = s->start + j * s->blocks * VL;
        w->output = output ? output + j * s->blocks : NULL, w->count = count;
        open_results(w, s, whole.to, whole.to_pixel);
        for (int64_t c = 0; c < sepnet_min(step, conv->out_w); c++) {
            const strip t = forward_strip_at(s, &whole, c);
            forward_strip(w, &t, f->side);
            whole.next = whole.next ? whole.next + t.cols * conv->stride_w * whole.next_pixel : NULL;
        }
    }
}

/* Of row `row` of the input: what all of its strips have in common, with column 0 of x, dL/dx and dL/dy. */
static strip gradient_strip(const job_state *s, const task *at, int64_t row, gradient_rows *g) {
    const sepnet_depthwise *conv = s->conv;
    const int64_t stride = conv->stride_h, apart = conv->branch[0].dilation_h, step = conv->branch[0].dilation_w;
    const int64_t x_step = col_step(&s->seen), place = seen_element(&s->seen, at->image, row, 0), far = farthest(conv);
    strip t = {.x = (const float *)s->x + place, .to = s->want_x ? (float *)s->grad_x + place : NULL, .x_pixel = step * x_step,
               .to_pixel = step * x_step, .begins = 1, .ends = 1};
    for (int k = WIDEST - 1; k >= 0; k--) { /* the last row of taps sees the uppermost one */
        const int64_t away = (FARTHEST - k) * apart, from = row + away, seen = from / stride;
        if (away >= -far && away <= far && from >= 0 && from % stride == 0 && seen < conv->out_h) t.row[k] = gradient_row(g, seen);
    }
    if (g->from.entry.way == AS_IS && row % stride == 0)
        t.next = (const float *)s->grad + g->from.start + (row / stride + far / stride + 1) * g->from.row;
    t.pixel = step * g->pixel, t.next_pixel = g->pixel, t.next_x_pixel = x_step;
    t.next_x = t.x + (step > 1 ? row_step(&s->seen) : NARROW_TILE * x_step);
    return t;
}

/* The strip of a row's pixels from the one on that is the middle of the c-th pixel of dL/dy, as long as there are any. */
static strip backward_strip_at(const job_state *s, const strip *row, int64_t c, int64_t pixel) {
    const sepnet_depthwise *conv = s->conv;
    const int64_t first = c * conv->stride_w, from = first * col_step(&s->seen), seen = c * pixel;
    strip t = *row;
    for (int k = 0; k < WIDEST; k++)
        if (t.row[k]) t.row[k] = c < conv->out_w ? t.row[k] + seen : NULL;
    t.x += from, t.cols = first < conv->in_w ? strip_cols(conv, conv->in_w, first) : 0;
    if (t.to) t.to += from;
    return t;
}

static void backward_rows(const job_state *s, const task *at, gradient_rows *g, strip_work *w) {
    const sepnet_depthwise *conv = s->conv;
    const int64_t step = conv->branch[0].dilation_w, stride = conv->stride_w, x_step = col_step(&s->seen);
    open_rows(g, s, at, sepnet_max(0, sepnet_floor_div(at->rows.in0 - farthest(conv), conv->stride_h)));
    if (s->want_x) clear_gradient(s, at, at->rows.in0, at->rows.in1);
    for (int64_t row = at->rows.in0; row < at->rows.in1; row++) {
        strip whole = gradient_strip(s, at, row, g);
        open_results(w, s, whole.to, whole.to_pixel);
        for (int64_t c = 0; c < step && c * stride < conv->in_w + (stride - 1) * step; c++) {
            const strip t = backward_strip_at(s, &whole, c, g->pixel);
            if (stride > 1 && c * stride >= step) pixel_before(w, &t);
            if (t.cols > 0) backward_strip(w, &t);
            whole.next = whole.next ? whole.next + t.cols / stride * g->pixel : NULL;
            whole.next_x += t.cols * x_step;
        }
    }
}

static void direct_forward_part(void *context, int64_t part, sepnet_worker worker) {
    const job_state *s = context;
    const int64_t tasks = count_tasks(s);
    const int64_t begin = sepnet_part_begin(tasks, s->parts, part), end = sepnet_part_begin(tasks, s->parts, part + 1);
    task at = nth_task(s, begin);
    strip_work w = open_work(s, &at, (float *)(s->scratch + worker.index * s->scratch_bytes));
    moments *output = w.output; /* of all branches */
    for (int64_t i = begin; i < end; i++) {
        at = nth_task(s, i);
        forward_row(s, &at, &w, output);
        if (!ends_run(&w, i + 1 == end)) continue;
        if (output) end_forward_run(s, &w, output, part);
        w.count = 0;
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
        if (!ends_run(&w, i + 1 == end)) continue;
        end_backward_run(s, &w, part);
        w.count = 0;
    }
    if (s->stream_zeros) stream_fence();
}
