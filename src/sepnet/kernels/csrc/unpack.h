/* From a map in memory to a float32 plane in cache, and what a normalisation does to values on that way. */

enum { CHUNK_BYTES = 12 << 10, CHUNK_ROWS = 4 }; /* unpacked before they are used: as many bytes, but so many rows at least */
enum { PREFETCH = 32 };                          /* pixels ahead, where a slab is one cache line of each, too sparse for the hardware */
enum { AHEAD_BYTES = 2 << 10 };                  /* as much is fetched ahead where a slab is more, and there are gaps or the map is large */
enum { LARGE_MAP_BYTES = 8 << 20 };              /* from which on that is repaid, as it is not where the caches hold the map */

/* What becomes of a map's values on their way into a plane: constants a channel, from the first one unpacked on. */
enum { AS_IS, NORMALISED, THROUGH_NORM };
typedef struct {
    int way;
    vu passes;      /* all ones: without ReLU */
    const float *scale, *shift, *mean, *slope, *constant;
    const void *of; /* THROUGH_NORM: the map whose normalisation the gradient passes */
} entry;

/* Blocks of channels, `step` apart, of an image, or of several that share a vector. In elements: `start` is the image's first pixel
 * and channel; then the distances of neighbouring images, rows and pixels. */
typedef struct {
    const void *map;
    int64_t start, image, row, pixel, images, height, width, step, blocks;
    int lanes, dtype, zeroed; /* lanes: of the last block; zeroed: the plane's border and the lanes that stay empty hold zeros */
    int large;                /* the map: LARGE_MAP_BYTES and more */
    entry entry;
} source;

static entry open_entry(int way, const float *constants, int64_t channels, int64_t channel, int relu, const void *of) {
    if (way == AS_IS) return (entry){AS_IS};
    norm_constants c = lay_constants((float *)constants, channels);
    entry e = {.way = way, .passes = (vu)splat(0), .of = of};
    if (!relu) e.passes = ~e.passes;
    e.scale = c.scale + channel, e.shift = c.shift + channel;
    e.mean = c.mean + channel, e.slope = c.slope + channel, e.constant = c.constant + channel;
    return e;
}

INLINE vf constant_lanes(const float *of, int64_t channel, int lanes) { return load_lanes(of, channel, lanes, SEPNET_FLOAT32); }

/* Values as they enter the plane, `channel` counted from the entry's first; `other`: of e->of at the same place. */
INLINE vf enter(const entry *e, int64_t channel, int lanes, vf value, vf other, int way) {
    if (way == AS_IS) return value;
    vf scale = constant_lanes(e->scale, channel, lanes), shift = constant_lanes(e->shift, channel, lanes);
    if (way == NORMALISED) {
        value = value * scale + shift;
        return (vf)((vu)value & (~(vu)(value < 0) | e->passes));
    }
    vf mean = constant_lanes(e->mean, channel, lanes), slope = constant_lanes(e->slope, channel, lanes);
    vu alive = (vu)(other * scale + shift > 0) | e->passes;
    return (vf)((vu)value & alive) * scale + ((other - mean) * slope + constant_lanes(e->constant, channel, lanes));
}

/* Blocks [first, last) of a row's pixels [left, right). What comes is prefetched where a slab is no more than a cache line of a pixel, where
 * something lies between the slabs of two pixels, and in large maps; the rest is a stream that the hardware follows. */
INLINE void unpack_blocks(const source *from, int64_t index, int64_t left, int64_t right, int64_t first, int64_t last, plane p,
                          float *out, int64_t step, int lanes, int dtype, int way) {
    const int64_t size = (int64_t)element_size(dtype);
    const int sparse = from->blocks * VL * size <= CACHE_LINE;
    const int fetched = !sparse && (from->large || from->pixel > from->blocks * VL);
    const int64_t next = sepnet_max(1, AHEAD_BYTES / (from->blocks * VL * size)) * from->pixel;
    const int64_t line = sepnet_max(1, CACHE_LINE / (VL * size)); /* blocks */
    const char *ahead = (const char *)from->map + (index + PREFETCH * from->pixel) * size;
    const entry e = from->entry; /* of our own, which no store can alias */
    const ptrdiff_t other = way == THROUGH_NORM ? (const char *)e.of - (const char *)from->map : 0;
    for (int64_t c = left; c < right; c++) {
        if (sparse) {
            __builtin_prefetch(ahead + c * from->pixel * size);
            if (way == THROUGH_NORM) __builtin_prefetch(ahead + other + c * from->pixel * size);
        }
        for (int64_t b = first; b < last; b++) {
            int64_t at = index + c * from->pixel + b * VL * step;
            if (fetched && b % line == 0) {
                __builtin_prefetch((const char *)from->map + (at + next) * size);
                if (way == THROUGH_NORM) __builtin_prefetch((const char *)e.of + (at + next) * size);
            }
            vf value = load_strided(from->map, at, step, lanes, dtype);
            *(vf *)(out + c * p.pixel + b * VL) =
                enter(&e, b * VL, lanes, value, way == THROUGH_NORM ? load_strided(e.of, at, step, lanes, dtype) : value, way);
        }
    }
}

/* Whole vectors of neighbouring channels have loops of their own for each type and way. */
static void unpack_whole(const source *from, int64_t index, int64_t left, int64_t right, int64_t blocks, plane p, float *out) {
    switch (2 * from->entry.way + (from->dtype == SEPNET_BFLOAT16)) {
        case 2 * AS_IS: unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, SEPNET_FLOAT32, AS_IS); break;
        case 2 * AS_IS + 1: unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, SEPNET_BFLOAT16, AS_IS); break;
        case 2 * NORMALISED: unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, SEPNET_FLOAT32, NORMALISED); break;
        case 2 * NORMALISED + 1:
            unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, SEPNET_BFLOAT16, NORMALISED);
            break;
        case 2 * THROUGH_NORM:
            unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, SEPNET_FLOAT32, THROUGH_NORM);
            break;
        default: unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, SEPNET_BFLOAT16, THROUGH_NORM);
    }
}

static void unpack_row(const source *from, int64_t row, plane p, float *out) {
    int64_t left = sepnet_min(sepnet_max(-p.first_col, 0), p.cols);
    int64_t right = sepnet_max(left, sepnet_min(from->width - p.first_col, p.cols));
    int64_t index = from->start + row * from->row + p.first_col * from->pixel;
    int64_t whole = from->step == 1 ? from->blocks - (from->lanes < VL) : 0;
    if (whole > 0) unpack_whole(from, index, left, right, whole, p, out);
    if (from->step != 1 && from->lanes < VL && from->blocks > 1)
        unpack_blocks(from, index, left, right, 0, from->blocks - 1, p, out, from->step, VL, from->dtype, from->entry.way);
    int64_t first = from->step == 1 ? whole : from->lanes < VL ? from->blocks - 1 : 0;
    if (first < from->blocks)
        unpack_blocks(from, index, left, right, first, from->blocks, p, out, from->step, from->lanes, from->dtype, from->entry.way);
    if (from->zeroed) return;
    memset(out, 0, (size_t)(left * p.pixel) * sizeof *out);
    memset(out + right * p.pixel, 0, (size_t)((p.cols - right) * p.pixel) * sizeof *out);
}

/* A row of several images; what is not in `lanes` lanes an image stays as it is. */
INLINE void interleave_row(const source *from, int64_t row, plane p, float *out, int lanes, int dtype) {
    int64_t left = sepnet_max(-p.first_col, 0), right = sepnet_min(from->width - p.first_col, p.cols);
    for (int64_t i = 0; i < from->images; i++, out += lanes) {
        int64_t at = from->start + i * from->image + row * from->row + p.first_col * from->pixel;
        for (int64_t c = left; c < right; c++)
            for (int k = 0; k < lanes; k++) out[c * VL + k] = load_one(from->map, at + c * from->pixel + k * from->step, dtype);
    }
}

static void interleave_by_kind(const source *from, int64_t row, plane p, float *out) {
    if (!from->zeroed) memset(out, 0, (size_t)p.cols * sizeof(vf));
    switch (2 * from->lanes + (from->dtype == SEPNET_BFLOAT16)) {
        case 2 * 1: interleave_row(from, row, p, out, 1, SEPNET_FLOAT32); break;
        case 2 * 1 + 1: interleave_row(from, row, p, out, 1, SEPNET_BFLOAT16); break;
        case 2 * 2: interleave_row(from, row, p, out, 2, SEPNET_FLOAT32); break;
        case 2 * 2 + 1: interleave_row(from, row, p, out, 2, SEPNET_BFLOAT16); break;
        case 2 * 3: interleave_row(from, row, p, out, 3, SEPNET_FLOAT32); break;
        case 2 * 3 + 1: interleave_row(from, row, p, out, 3, SEPNET_BFLOAT16); break;
        case 2 * 4: interleave_row(from, row, p, out, 4, SEPNET_FLOAT32); break;
        case 2 * 4 + 1: interleave_row(from, row, p, out, 4, SEPNET_BFLOAT16); break;
    }
}

/* Plane rows [first, last) as float32, zeros outside the map. */
static void unpack_rows(const source *from, plane p, int64_t first, int64_t last, float *plane_start) {
    for (int64_t r = first; r < last; r++) {
        float *out = plane_start + r * p.cols * p.pixel;
        int64_t row = p.first_row + r;
        if (row < 0 || row >= from->height) {
            if (!from->zeroed) memset(out, 0, (size_t)(p.cols * p.pixel) * sizeof *out);
        } else if (from->images > 1) {
            interleave_by_kind(from, row, p, out);
        } else {
            unpack_row(from, row, p, out);
        }
    }
}

/* A plane that is unpacked as far as it is needed. */
typedef struct {
    source from;
    plane shape;
    float *start;
    int64_t ready; /* rows */
} window_plane;

static void need_rows(window_plane *w, int64_t rows) {
    rows = sepnet_min(rows, w->shape.rows);
    if (rows <= w->ready) return;
    unpack_rows(&w->from, w->shape, w->ready, rows, w->start);
    w->ready = rows;
}

/* Rows to compute between unpackings. */
static int64_t chunk_rows(plane p) { return sepnet_max(CHUNK_ROWS, CHUNK_BYTES / (p.cols * p.pixel * (int64_t)sizeof(float))); }

/* The scratch memory is cleared once where all tasks use the same rows and lanes of it. */
static int is_zeroed(const job_state *s, const task *at) { return s->cut.bands == 1 && at->images == s->images; }

static int is_large(const sepnet_depthwise *conv, int64_t image_values) {
    return conv->batch * image_values * (int64_t)element_size(conv->dtype) >= LARGE_MAP_BYTES;
}

static window_plane open_input(const job_state *s, const task *at, plane p, float *start) {
    const sepnet_depthwise *c = s->conv;
    const sepnet_joined *j = s->joined;
    const lattice *l = &s->seen;
    source from = {s->x, seen_element(l, at->image, 0, 0) + at->channel, image_step(l), row_step(l), col_step(l), at->images,
                   c->in_h, c->in_w, 1, at->blocks, at->lanes, c->dtype, is_zeroed(s, at), is_large(c, image_step(l)),
                   open_entry(j && j->before ? NORMALISED : AS_IS, j ? j->before : NULL, c->channels, at->channel,
                              j && j->before_relu, NULL)};
    return (window_plane){from, p, start, 0};
}

static window_plane open_gradient(const job_state *s, const task *at, plane p, int branch, float *start) {
    const sepnet_depthwise *c = s->conv;
    const sepnet_joined *j = s->joined;
    int64_t outputs = c->channels * c->branches, channel = output_channel(c, at->channel, branch);
    int64_t row = c->out_w * outputs, image = c->out_h * row;
    source from = {s->grad, at->image * image + channel, image, row, outputs, at->images, c->out_h, c->out_w, output_step(c),
                   at->blocks, at->lanes, c->dtype, is_zeroed(s, at), is_large(c, image),
                   open_entry(j && j->after ? THROUGH_NORM : AS_IS, j ? j->after : NULL, outputs, channel,
                              j && j->after_relu, j ? j->y : NULL)};
    return (window_plane){from, p, start, 0};
}
