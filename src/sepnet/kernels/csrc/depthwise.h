/* Depthwise convolution, forward and both gradients, for one vector length. Included once by each instruction-set file.
 *
 * Work is cut into tasks: one image (where channels are few: as many as fill a vector), one slab of blocks of VL channels (all
 * of them, where the cache allows), one band of rows. A task unpacks its channels of the input into a plane of float32 in cache
 * (or of bfloat16 pairs, pairing.h), zero-padded, so that every tap of every output pixel is a load at a fixed offset: padding,
 * dilation, stride, element type and channel remainders are dealt with there and at the final store, and the inner loops see
 * none of them. They run over up to 16 output pixels of a block at a time, held in registers. A few rows are unpacked, then the
 * results that they complete are computed, while they are in cache. Both gradients come from one pass: x and dL/dy are unpacked
 * once and serve both. (Some convolutions need no planes: direct.h.) */

/* --- tasks --------------------------------------------------------------------------------------------------------- */

static patch task_patch(const job_state *s, const task *at) {
    static const vf zero = {0};
    return (patch){.weight = s->packed + at->block * s->weight_vectors * VL, .weight_step = s->weight_vectors * VL,
                   .start = (const float *)&zero, .blocks = at->blocks};
}

/* The sums that a normalisation behind the convolution needs, of outputs just computed. */
static void task_output_sums(const job_state *s, const task *at, const destination *to, int64_t rows, int branch, int64_t part) {
    for (int64_t b = 0; b < at->blocks; b++)
        output_sums(s, to, to->index + b * VL, b < at->blocks - 1 ? VL : at->lanes, rows, s->conv->out_w,
                    joined_at(s, part, at->block + b, branch), s->origin + (branch * s->blocks + at->block + b) * VL);
}

/* Tiles of so many results. */
static int64_t tiles_of(int64_t rows, int64_t cols, int64_t blocks) { return sepnet_max(1, rows * cols / TILE) * blocks; }

static void forward_task(const job_state *s, const task *at, float *scratch, int64_t part) {
    const sepnet_depthwise *conv = s->conv;
    plane in = input_plane(conv, s->cut.pixel, at->rows.out0, at->rows.out1);
    window_plane x = open_input(s, at, in, scratch, scratch + s->x_floats + s->spare_floats);
    int64_t step = output_step(conv), out_col = conv->channels * conv->branches, out_row = conv->out_w * out_col;
    int64_t beyond = in.rows - (at->rows.out1 - at->rows.out0 - 1) * conv->stride_h, chunk = chunk_rows(in), next;
    for (int64_t row = at->rows.out0; row < at->rows.out1; row = next) {
        next = sepnet_min(row + chunk, at->rows.out1);
        need_rows(&x, (next - 1 - at->rows.out0) * conv->stride_h + beyond);
        ahead more = {0};
        const int64_t tiles = tiles_of(next - row, conv->out_w, at->blocks) * conv->branches;
        if (s->fetch) add_ahead(&more, &x, conv->batch, x.ready, (next - row) * conv->stride_h, tiles);
        for (int j = 0; j < conv->branches; j++) {
            int64_t channel = output_channel(conv, at->channel, j);
            destination to = {s->y, (at->image * conv->out_h + row) * out_row + channel, out_row, out_col, step, at->lanes,
                              conv->dtype, at->images, conv->out_h * out_row, s->stream};
            patch p = task_patch(s, at);
            p.at = scratch + (row * conv->stride_h - in.first_row) * in.cols * in.pixel;
            p.row = conv->stride_h * in.cols * in.pixel, p.col = conv->stride_w * in.pixel;
            p.rows = next - row, p.cols = conv->out_w, p.ahead = more.count ? &more : NULL;
            p.start = s->start + (j * s->blocks + at->block) * VL, p.start_step = VL;
            compute(p, &s->classes[j], &to, scratch + s->x_floats);
            if (sums_follow(s)) task_output_sums(s, at, &to, p.rows, j, part);
        }
    }
}

/* dL/dx of the input rows [row0, row1) from the unpacked gradients, and what is fetched meanwhile. */
static void input_gradient(const job_state *s, const task *at, plane g, const float *grad, int64_t row0, int64_t row1,
                           ahead *more, float *spare) {
    const sepnet_depthwise *conv = s->conv;
    const lattice *l = &s->seen;
    int64_t sh = conv->stride_h, sw = conv->stride_w;
    for (int64_t r = 0; r < sh; r++)
        for (int64_t c = 0; c < sepnet_min(sw, conv->in_w); c++) {
            int64_t row = row0 + (r - row0 % sh + sh) % sh;
            if (row >= row1) continue;
            int64_t index = seen_element(l, at->image, row, c) + at->channel;
            destination to = {s->grad_x, index, sh * row_step(l), sw * col_step(l), 1, at->lanes, conv->dtype, at->images,
                              image_step(l), s->stream};
            patch p = task_patch(s, at);
            p.at = grad + (row / sh - g.first_row) * g.cols * g.pixel;
            p.row = g.cols * g.pixel, p.col = g.pixel;
            p.rows = (row1 - row + sh - 1) / sh, p.cols = (conv->in_w - c + sw - 1) / sw, p.ahead = more->count ? more : NULL;
            compute(p, &s->classes[r * sw + c], &to, spare);
        }
}

static void weight_gradient(const job_state *s, const task *at, plane in, const float *x, plane g, const float *grad, int64_t row0,
                            int64_t row1, ahead *more, float *sums) {
    const sepnet_depthwise *conv = s->conv;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        correlation c = {.x = x + ((row0 * conv->stride_h - b->pad_h - in.first_row) * in.cols - b->pad_w - in.first_col) * in.pixel,
                         .grad = grad + j * s->grads.step + ((row0 - g.first_row) * g.cols - g.first_col) * g.pixel,
                         .rows = row1 - row0,
                         .cols = conv->out_w,
                         .blocks = at->blocks,
                         .x_row = conv->stride_h * in.cols * in.pixel,
                         .x_col = conv->stride_w * in.pixel,
                         .grad_row = g.cols * g.pixel,
                         .grad_col = g.pixel,
                         .tap_row = b->dilation_h * in.cols * in.pixel,
                         .tap_col = b->dilation_w * in.pixel,
                         .sums_step = block_sums(s),
                         .sums = sums,
                         .ahead = more->count ? more : NULL};
        if (s->pairs.grad) c.paired = 1, c.odd = c.rows % 2, c.rows /= 2, c.x_row *= 2, c.grad_row *= 2;
        correlate(&c, b->kernel_h, b->kernel_w);
        sums += b->kernel_h * b->kernel_w * VL;
    }
}

/* dL/dbias's sums over the output rows [row0, row1), a vector a branch. */
static void bias_gradient(const job_state *s, const task *at, plane g, const float *grad, int64_t row0, int64_t row1, float *sums) {
    for (int j = 0; j < s->conv->branches; j++)
        for (int64_t b = 0; b < at->blocks; b++) {
            vf sum = splat(0);
            for (int64_t row = row0; row < row1; row++) {
                const float *from = grad + j * s->grads.step + ((row - g.first_row) * g.cols - g.first_col) * g.pixel + b * VL;
                for (int64_t col = 0; col < s->conv->out_w; col++)
                    sum += load_factor(from + col * g.pixel, s->pairs.grad ? FIRST_HALF : FLOATS);
            }
            *(vf *)(sums + b * block_sums(s) + j * VL) += sum;
        }
}

/* The first output row of a chunk, for pairs an even one of the band's. */
static int64_t chunk_begin(const job_state *s, int64_t rows, int64_t chunks, int64_t chunk) {
    const int64_t begin = sepnet_part_begin(rows, chunks, chunk);
    return s->pairs.grad && chunk < chunks ? begin & ~(int64_t)1 : begin;
}

/* What comes behind x's first x_rows and behind the gradients at hand, fetched while dL/dx of so many rows and dL/dweight are computed. */
static ahead backward_ahead(const job_state *s, const task *at, const window_plane *grad, const window_plane *x, int64_t x_rows,
                            int64_t in_rows, int64_t out_rows) {
    const sepnet_depthwise *conv = s->conv;
    ahead more = {0};
    if (!s->fetch) return more;
    const int64_t blocks = at->blocks * conv->branches;
    int64_t tiles = s->want_x ? tiles_of(in_rows, conv->in_w, blocks) : 0;
    if (s->want_weight) tiles += tiles_of(out_rows, conv->out_w, blocks);
    add_ahead(&more, grad, conv->batch, grad->ready, out_rows, sepnet_max(1, tiles));
    if (s->want_weight) add_ahead(&more, x, conv->batch, x_rows, out_rows * conv->stride_h, tiles);
    return more;
}

static void backward_task(const job_state *s, const task *at, float *scratch, float *sums, int64_t part) {
    const sepnet_depthwise *conv = s->conv;
    band_rows b = at->rows;
    plane g = gradient_plane(conv, s->grads.pixel, b.in0, b.in1, b.out0, b.out1), in = input_plane(conv, s->cut.pixel, b.out0, b.out1);
    float *grad_start = scratch + s->x_floats, *spare = grad_start + s->grads.planes * s->grads.floats;
    float *halves = spare + s->spare_floats;
    window_plane x = open_input(s, at, in, scratch, halves), grad[SEPNET_MAX_BRANCHES];
    int64_t reach = 0; /* of an input row: output rows beyond row / stride that its gradient takes from */
    for (int j = 0; j < s->grads.planes; j++)
        grad[j] = open_gradient(s, at, g, j, grad_start + j * s->grads.floats, halves + s->x_halves + j * s->grad_halves);
    for (int j = 0; j < conv->branches; j++) reach = sepnet_max(reach, conv->branch[j].pad_h);
    int64_t beyond = in.rows - (b.out1 - b.out0 - 1) * conv->stride_h;
    int64_t chunks = sepnet_max(1, (b.out1 - b.out0) / chunk_rows(in));
    float *block = sums + at->block * block_sums(s);
    for (int64_t i = 0; i < chunks; i++) {
        int64_t out0 = b.out0 + chunk_begin(s, b.out1 - b.out0, chunks, i);
        int64_t out1 = b.out0 + chunk_begin(s, b.out1 - b.out0, chunks, i + 1);
        int64_t in0 = b.in0 + sepnet_part_begin(b.in1 - b.in0, chunks, i);
        int64_t in1 = b.in0 + sepnet_part_begin(b.in1 - b.in0, chunks, i + 1);
        int64_t rows = sepnet_max(out1, sepnet_floor_div(in1 - 1 + reach, conv->stride_h) + 1) - g.first_row;
        for (int j = 0; j < s->grads.planes; j++) need_rows(&grad[j], rows);
        const int64_t x_rows = sepnet_min(in.rows, (out1 - 1 - b.out0) * conv->stride_h + beyond);
        ahead more = backward_ahead(s, at, &grad[0], &x, x_rows, in1 - in0, out1 - out0);
        if (s->want_x && in0 < in1) {
            clear_gradient(s, at, in0, in1);
            input_gradient(s, at, g, grad_start, in0, in1, &more, spare);
            if (s->joined && s->joined->before) input_sums(s, at, in0, in1, part);
        }
        if (s->want_bias) bias_gradient(s, at, g, grad_start, out0, out1, block + s->filter_taps * VL);
        if (!s->want_weight) continue;
        need_rows(&x, x_rows);
        weight_gradient(s, at, in, scratch, g, grad_start, out0, out1, &more, block);
    }
}

static float *open_scratch(const job_state *s, sepnet_worker worker) {
    float *scratch = (float *)(s->scratch + worker.index * s->scratch_bytes);
    if (s->cut.bands == 1 && worker.done == 0) memset(scratch, 0, (size_t)s->scratch_bytes); /* the borders, once for all tasks */
    return scratch;
}

static void forward_part(void *context, int64_t part, sepnet_worker worker) {
    const job_state *s = context;
    int64_t tasks = count_tasks(s), end = sepnet_part_begin(tasks, s->parts, part + 1);
    float *scratch = open_scratch(s, worker);
    for (int64_t i = sepnet_part_begin(tasks, s->parts, part); i < end; i++) {
        task at = nth_task(s, i);
        forward_task(s, &at, scratch, part);
    }
    if (s->stream_zeros) stream_fence();
}

static void backward_part(void *context, int64_t part, sepnet_worker worker) {
    const job_state *s = context;
    int64_t tasks = count_tasks(s), end = sepnet_part_begin(tasks, s->parts, part + 1);
    float *scratch = open_scratch(s, worker);
    size_t floats = (size_t)(s->blocks * block_sums(s));
    float *sums = s->partial + (size_t)part * floats;
    memset(sums, 0, floats * sizeof *sums);
    for (int64_t i = sepnet_part_begin(tasks, s->parts, part); i < end; i++) {
        task at = nth_task(s, i);
        backward_task(s, &at, scratch, sums, part);
    }
    if (s->stream_zeros) stream_fence();
}

/* --- entry points -------------------------------------------------------------------------------------------------- */

static job_state make_state(const reduced *rest, int64_t images, int backward) {
    const sepnet_depthwise *conv = &rest->conv;
    job_state s = {.conv = conv, .seen = rest->seen, .filter = rest->filter, .images = images};
    s.blocks = count_blocks(conv), s.direct = is_direct(conv, backward);
    s.cut = s.direct ? direct_cut(conv) : cut_up(conv, images, backward);
    s.filter_taps = filter_taps(conv);
    s.pairs = find_pairs(conv, images, backward), s.fetch = sepnet_fetches_ahead() && is_worth_fetching(conv, backward);
    s.weight_vectors = packed_before(conv, &s.pairs, conv->branches);
    s.parts = count_parts(&s);
    if (s.direct) {
        s.grads = (gradient_planes){.branches = conv->branches};
        s.scratch_bytes = aligned(direct_floats(conv, backward) * (int64_t)sizeof(float));
        return s;
    }
    s.grads = lay_gradients(conv, &s.cut, images);
    s.x_floats = input_floats(conv, s.cut.pixel, s.cut.bands);
    int64_t floats = s.x_floats, rows = conv->out_h, cols = conv->out_w;
    if (backward) floats += s.grads.planes * s.grads.floats, rows = conv->in_h, cols = conv->in_w;
    int whole_vectors = conv->channels % VL == 0 && (backward ? conv->branches == 1 : output_step(conv) == 1);
    if (!whole_vectors) s.spare_floats = rows * cols * VL;
    if (s.pairs.x) s.x_halves = halves_floats(s.pairs.x, conv->in_w, s.cut.slab);
    if (s.pairs.grad) s.grad_halves = halves_floats(s.pairs.grad, conv->out_w, s.grads.branches * s.cut.slab);
    s.scratch_bytes = aligned((floats + s.spare_floats + s.x_halves + s.grads.planes * s.grad_halves) * (int64_t)sizeof(float));
    return s;
}

static int64_t classes_bytes(const sepnet_depthwise *conv, int backward) {
    int64_t classes = backward ? conv->stride_h * conv->stride_w : conv->branches;
    return aligned(classes * (int64_t)sizeof(taps));
}

static int64_t weight_bytes(const job_state *s) { return aligned(s->blocks * s->weight_vectors * VL * (int64_t)sizeof(float)); }

static int64_t sums_bytes(const job_state *s) { return aligned(s->parts * s->blocks * block_sums(s) * (int64_t)sizeof(float)); }

static int64_t origin_bytes(const job_state *s) { return aligned(joined_stride(s) * (int64_t)sizeof(float)); }

static int64_t joined_bytes(const job_state *s) {
    return origin_bytes(s) + aligned(s->parts * 2 * joined_stride(s) * (int64_t)sizeof(double));
}

static int64_t count_workers(const job_state *s) { return sepnet_max(1, sepnet_min(s->parts, s->conv->threads)); }

static int64_t workspace_bytes(const reduced *rest, int64_t images, int backward) {
    const sepnet_depthwise *conv = &rest->conv;
    job_state s = make_state(rest, images, backward);
    int64_t sums = backward ? sums_bytes(&s) : 0;
    return ALIGN + classes_bytes(conv, backward) + weight_bytes(&s) + start_bytes(&s) + sums + joined_bytes(&s) + count_workers(&s) * s.scratch_bytes;
}

/* For a call that is joined to its neighbours, and so takes images one by one, and for one that is not. */
static int64_t depthwise_workspace(const sepnet_depthwise *whole, int backward) {
    const reduced rest = reduce(whole);
    return sepnet_max(workspace_bytes(&rest, 1, backward), workspace_bytes(&rest, count_images(&rest.conv), backward));
}

static void lay_out(job_state *s, void *workspace, int backward) {
    char *at = (char *)aligned((int64_t)(intptr_t)workspace);
    s->classes = (taps *)at;
    at += classes_bytes(s->conv, backward);
    s->packed = (float *)at;
    s->start = (float *)(at + weight_bytes(s));
    s->partial = (float *)(at + weight_bytes(s) + start_bytes(s));
    at += weight_bytes(s) + start_bytes(s) + (backward ? sums_bytes(s) : 0);
    s->origin = (float *)at;
    s->joined_sums = (double *)(at + origin_bytes(s));
    s->scratch = at + joined_bytes(s);
}

/* Whether results of so many channels are written past the caches; `gaps`: pixels that no tap sees lie between them. Without planes sums
 * are not taken from memory, and a pixel's lines are written one after the other. */
static void choose_streams(job_state *s, int64_t height, int64_t width, int64_t channels, int gaps) {
    const int64_t pixel = channels * (int64_t)element_size(s->conv->dtype);
    s->stream_zeros = (s->direct || !sums_follow(s)) && s->conv->batch * height * width * pixel >= sepnet_stream_bytes(gaps);
    s->stream = s->stream_zeros && (s->direct || pixel <= STREAM_PIXEL);
}

static void depthwise_forward(const sepnet_depthwise *whole, const sepnet_joined *joined, const void *x, const float *weight,
                              const float *bias, void *y, void *workspace) {
    const reduced rest = reduce(whole);
    const sepnet_depthwise *conv = &rest.conv;
    job_state s = make_state(&rest, joined ? 1 : count_images(conv), 0);
    lay_out(&s, workspace, 0);
    s.joined = joined, s.x = x, s.weight = weight, s.bias = bias, s.y = y;
    plane p = input_plane(conv, s.cut.pixel, 0, conv->out_h);
    for (int j = 0; !s.direct && j < conv->branches; j++) forward_taps(conv, &s.pairs, p, j, &s.classes[j]);
    pack_weights(&s, 0);
    pack_biases(&s);
    clear_joined_sums(&s);
    if (sums_follow(&s)) find_origins(&s);
    choose_streams(&s, conv->out_h, conv->out_w, conv->channels * conv->branches, 0);
    sepnet_run_parts(HAVE_DIRECT && s.direct ? direct_forward_part : forward_part, &s, s.parts, conv->threads);
    if (sums_follow(&s)) finish_output_sums(&s);
}

static void depthwise_backward(const sepnet_depthwise *whole, const sepnet_joined *joined, const void *x, const float *weight,
                               const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    const reduced rest = reduce(whole);
    const sepnet_depthwise *conv = &rest.conv;
    job_state s = make_state(&rest, joined ? 1 : count_images(conv), 1);
    lay_out(&s, workspace, 1);
    s.joined = joined, s.x = x, s.weight = weight, s.grad = grad, s.grad_x = grad_x;
    s.want_x = grad_x != NULL, s.want_weight = grad_weight != NULL, s.want_bias = grad_bias != NULL;
    plane p = gradient_plane(conv, s.grads.pixel, 0, conv->in_h, 0, conv->out_h);
    for (int64_t r = 0; !s.direct && r < conv->stride_h; r++)
        for (int64_t c = 0; c < conv->stride_w; c++)
            backward_taps(conv, &s.pairs, p, s.grads.step, r, c, &s.classes[r * conv->stride_w + c]);
    pack_weights(&s, 1);
    clear_joined_sums(&s);
    choose_streams(&s, whole->in_h, whole->in_w, conv->channels, !sees_all(&rest.seen));
    sepnet_run_parts(HAVE_DIRECT && s.direct ? direct_backward_part : backward_part, &s, s.parts, conv->threads);
    unpack_sums(&s, grad_weight, grad_bias);
    if (sums_follow(&s)) reduce_joined_sums(&s, 1, joined->sums, joined->sums + conv->channels);
}
