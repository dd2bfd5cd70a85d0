/* Planes of pairs: the values of two rows of a map, one in each half of a float's place. And planes that are unpacked as far as needed.
 *
 * What enters as it is, is paired from the map. What is normalised, or is not whole vectors of neighbouring channels, becomes rows of
 * bfloat16 first, so that each value goes that way once: as many rows are kept as the two of a pair are apart, and one more. */

/* Floats that hold the rows of so many blocks that are kept. */
static int64_t halves_floats(int64_t apart, int64_t width, int64_t blocks) {
    return sepnet_round_up((apart + 1) * width * blocks * VL / 2, CACHE_LINE / (int64_t)sizeof(float));
}

/* A plane that is unpacked as far as it is needed. */
typedef struct {
    source from;
    plane shape;
    float *start;
    int64_t ready; /* rows */
    int64_t apart; /* rows of a pair's halves; 0: floats */
    uint16_t *halves;
    int64_t halved; /* rows of the map that have become halves, the last of which are kept */
} window_plane;

/* Where a row's first pixel and channel is, and how far its pixels and blocks are apart; of a row outside of the map, zeros. */
typedef struct {
    const uint16_t *at;
    int64_t pixel, block;
} half_row;

static int is_plain(const source *from) { return from->entry.way == AS_IS && from->step == 1 && from->lanes == VL; }

static half_row find_halves(window_plane *w, int64_t row) {
    static const uint16_t none[VL] = {0};
    const source *from = &w->from;
    const int64_t pixel = from->blocks * VL, kept = w->apart + 1;
    if (row < 0 || row >= from->height) return (half_row){none, 0, 0};
    if (is_plain(from)) return (half_row){(const uint16_t *)from->map + from->start + row * from->row, from->pixel, VL};
    for (; w->halved <= row; w->halved++) {
        source to_halves = *from;
        to_halves.halves = to_halves.zeroed = 1;
        const plane all = {0, 1, 0, from->width, pixel};
        unpack_row(&to_halves, w->halved, all, (float *)(w->halves + w->halved % kept * from->width * pixel));
    }
    return (half_row){w->halves + row % kept * from->width * pixel, pixel, VL};
}

/* Columns [left, right) of the plane, whose first is the map's first_col. */
INLINE void pair_columns(const source *from, half_row first, half_row second, plane p, int64_t left, int64_t right, float *out,
                         const int plain, const int near) {
    const int64_t size = sizeof(uint16_t), blocks = from->blocks;
    const foresight f = look_ahead(from, size);
    first.at += p.first_col * first.pixel, second.at += p.first_col * second.pixel;
    for (int64_t c = left; c < right; c++) {
        const uint16_t *upper = first.at + c * first.pixel, *lower = second.at + c * second.pixel;
        for (int64_t b = 0; b < blocks; b++) {
            if (plain && f.fetched && b % f.line == 0) fetch_line(lower + f.next, near);
            *(vf *)(out + c * p.pixel + b * VL) = load_pairs(upper, lower);
            upper += first.block, lower += second.block;
        }
    }
}

static void pair_row(window_plane *w, int64_t r, float *out) {
    const source *from = &w->from;
    const plane p = w->shape;
    const int64_t row = p.first_row + r, left = left_column(p), right = right_column(from, p);
    const int first_in = row >= 0 && row < from->height, second_in = row + w->apart >= 0 && row + w->apart < from->height;
    if (!first_in && !second_in) {
        if (!from->zeroed) memset(out, 0, (size_t)(p.cols * p.pixel) * sizeof *out);
        return;
    }
    const half_row first = find_halves(w, row), second = find_halves(w, row + w->apart);
    if (is_plain(from) && from->near)
        pair_columns(from, first, second, p, left, right, out, 1, 1);
    else if (is_plain(from))
        pair_columns(from, first, second, p, left, right, out, 1, 0);
    else
        pair_columns(from, first, second, p, left, right, out, 0, 0);
    if (!from->zeroed) clear_sides(p, left, right, out);
}

static void need_rows(window_plane *w, int64_t rows) {
    rows = sepnet_min(rows, w->shape.rows);
    if (rows <= w->ready) return;
    if (HAVE_PAIRS && w->apart)
        for (int64_t r = w->ready; r < rows; r++) pair_row(w, r, w->start + r * w->shape.cols * w->shape.pixel);
    else
        unpack_rows(&w->from, w->shape, w->ready, rows, w->start);
    w->ready = rows;
}

static window_plane open_plane(source from, plane shape, float *start, int64_t apart, float *halves) {
    return (window_plane){from, shape, start, 0, apart, (uint16_t *)halves, sepnet_max(0, shape.first_row)};
}

/* Rows to compute between unpackings. */
static int64_t chunk_rows(plane p) { return sepnet_max(CHUNK_ROWS, CHUNK_BYTES / (p.cols * p.pixel * (int64_t)sizeof(float))); }

/* The scratch memory is cleared once where all tasks use the same rows and lanes of it. */
static int is_zeroed(const job_state *s, const task *at) { return s->cut.bands == 1 && at->images == s->images; }

static int is_large(const sepnet_depthwise *conv, int64_t image_values) {
    return conv->batch * image_values * (int64_t)element_size(conv->dtype) >= LARGE_MAP_BYTES;
}

static window_plane open_input(const job_state *s, const task *at, plane p, float *start, float *halves) {
    const sepnet_depthwise *c = s->conv;
    const sepnet_joined *j = s->joined;
    const lattice *l = &s->seen;
    source from = {s->x, seen_element(l, at->image, 0, 0) + at->channel, image_step(l), row_step(l), col_step(l), at->images,
                   c->in_h, c->in_w, 1, at->blocks, at->lanes, c->dtype, is_zeroed(s, at), is_large(c, image_step(l)),
                   sepnet_fetches_near(), 0,
                   open_entry(j && j->before ? NORMALISED : AS_IS, j ? j->before : NULL, c->channels, at->channel,
                              j && j->before_relu, NULL)};
    return open_plane(from, p, start, s->pairs.x, halves);
}

/* Of a branch, or of all of them, where they are together. */
static window_plane open_gradient(const job_state *s, const task *at, plane p, int branch, float *start, float *halves) {
    const sepnet_depthwise *c = s->conv;
    const sepnet_joined *j = s->joined;
    int64_t outputs = c->channels * c->branches, channel = output_channel(c, at->channel, branch);
    int64_t row = c->out_w * outputs, image = c->out_h * row;
    source from = {s->grad, at->image * image + channel, image, row, outputs, at->images, c->out_h, c->out_w, output_step(c),
                   s->grads.branches * at->blocks, at->lanes, c->dtype, is_zeroed(s, at), is_large(c, image),
                   sepnet_fetches_near(), 0,
                   open_entry(j && j->after ? THROUGH_NORM : AS_IS, j ? j->after : NULL, outputs, channel,
                              j && j->after_relu, j ? j->y : NULL)};
    return open_plane(from, p, start, s->pairs.grad, halves);
}
