/* From a map in memory to a plane in cache, of float32 or of what pairs are made of, and what a normalisation does to values on
 * that way. */

enum { CHUNK_BYTES = 12 << 10, CHUNK_ROWS = 8 }; /* unpacked before they are used: as many bytes, but so many rows at least */
enum { AHEAD_BYTES = 8 << 10 };                  /* fetched ahead of what is unpacked: while results are computed, nothing is read */
/* Pixels with something between them: the row that follows, as what lies behind a row's last one is another slab, or a row that no tap
 * sees; of longer rows a few pixels. */
enum { AHEAD_ROW_BYTES = 16 << 10, AHEAD_BYTES_APART = 2 << 10 };
enum { LARGE_MAP_BYTES = 8 << 20, SMALL_WIDTH = 4 }; /* it is not repaid by rows so short that follow each other, but in large maps */

/* What becomes of a map's values on their way into a plane: constants a channel, from the first one unpacked on. */
enum { AS_IS, NORMALISED, THROUGH_NORM };
typedef struct {
    int way;
    vu passes;      /* all ones: without ReLU */
    float least;    /* minus infinity: without ReLU */
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
    int near;                 /* it is fetched into the L1 cache, not only into the L2 cache */
    int halves;               /* to bfloat16, a slab's blocks side by side, not to float32 */
    entry entry;
} source;

static entry open_entry(int way, const float *constants, int64_t channels, int64_t channel, int relu, const void *of) {
    if (way == AS_IS) return (entry){AS_IS};
    norm_constants c = lay_constants((float *)constants, channels);
    entry e = {.way = way, .passes = (vu)splat(0), .of = of};
    if (!relu) e.passes = ~e.passes;
    e.least = relu ? 0 : -__builtin_inff();
    e.scale = c.scale + channel, e.shift = c.shift + channel;
    e.mean = c.mean + channel, e.slope = c.slope + channel, e.constant = c.constant + channel;
    return e;
}

INLINE vf constant_lanes(const float *of, int64_t channel, int lanes) { return load_lanes(of, channel, lanes, SEPNET_FLOAT32); }

/* Values as they enter the plane, `channel` counted from the entry's first; `other`: of e->of at the same place. */
INLINE vf enter(const entry *e, int64_t channel, int lanes, vf value, vf other, int way) {
    if (way == AS_IS) return value;
    vf scale = constant_lanes(e->scale, channel, lanes), shift = constant_lanes(e->shift, channel, lanes);
    if (way == NORMALISED) return at_least(e->least, value * scale + shift);
    vf mean = constant_lanes(e->mean, channel, lanes), slope = constant_lanes(e->slope, channel, lanes);
    vu alive = (vu)(other * scale + shift > 0) | e->passes;
    return (vf)((vu)value & alive) * scale + ((other - mean) * slope + constant_lanes(e->constant, channel, lanes));
}

/* How a slab's pixels are prefetched: every `line` blocks, those `next` elements on. */
typedef struct {
    int fetched;
    int64_t next, line;
} foresight;

INLINE foresight look_ahead(const source *from, int64_t size) {
    const int64_t bytes = from->blocks * VL * size;
    const int apart = from->pixel > from->blocks * VL, fetched = from->width > SMALL_WIDTH || from->large || apart || bytes <= CACHE_LINE;
    const int64_t pixels = sepnet_max(1, (apart ? AHEAD_BYTES_APART : AHEAD_BYTES) / bytes);
    const int64_t next = apart && from->width * bytes <= AHEAD_ROW_BYTES ? from->row : pixels * from->pixel;
    return (foresight){fetched, next, sepnet_max(1, CACHE_LINE / (VL * size))};
}

/* `near` is a constant: a question at each line would take longer than what it decides. */
INLINE void fetch_line(const void *at, const int near) {
    if (near)
        __builtin_prefetch(at);
    else
        __builtin_prefetch(at, 0, 2);
}

/* Blocks [first, last) of a row's pixels [left, right). */
INLINE void unpack_blocks(const source *from, int64_t index, int64_t left, int64_t right, int64_t first, int64_t last, plane p,
                          float *out, int64_t step, int lanes, int dtype, int way, int halves, const int near) {
    const int64_t size = (int64_t)element_size(dtype);
    const foresight f = look_ahead(from, size);
    const entry e = from->entry; /* of our own, which no store can alias */
    for (int64_t c = left; c < right; c++) {
        for (int64_t b = first; b < last; b++) {
            int64_t at = index + c * from->pixel + b * VL * step;
            if (f.fetched && b % f.line == 0) {
                fetch_line((const char *)from->map + (at + f.next) * size, near);
                if (way == THROUGH_NORM) fetch_line((const char *)e.of + (at + f.next) * size, near);
            }
            const vf value = load_strided(from->map, at, step, lanes, dtype);
            const vf other = way == THROUGH_NORM ? load_strided(e.of, at, step, lanes, dtype) : value;
            const vf entered = enter(&e, b * VL, lanes, value, other, way);
            if (halves)
                *(vhu *)((uint16_t *)out + c * p.pixel + b * VL) = narrow(entered);
            else
                *(vf *)(out + c * p.pixel + b * VL) = entered;
        }
    }
}

/* Whole vectors of neighbouring channels have loops of their own for each type and way. */
static void unpack_whole(const source *from, int64_t index, int64_t left, int64_t right, int64_t blocks, plane p, float *out) {
#define CASE(way, dtype, halves)                                                                         \
    case 4 * way + 2 * (dtype == SEPNET_BFLOAT16) + halves:                                              \
        if (from->near)                                                                                  \
            unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, dtype, way, halves, 1);    \
        else                                                                                             \
            unpack_blocks(from, index, left, right, 0, blocks, p, out, 1, VL, dtype, way, halves, 0);    \
        break;
    switch (4 * from->entry.way + 2 * (from->dtype == SEPNET_BFLOAT16) + from->halves) {
        CASE(AS_IS, SEPNET_FLOAT32, 0)
        CASE(AS_IS, SEPNET_BFLOAT16, 0)
        CASE(AS_IS, SEPNET_BFLOAT16, 1)
        CASE(NORMALISED, SEPNET_FLOAT32, 0)
        CASE(NORMALISED, SEPNET_BFLOAT16, 0)
        CASE(NORMALISED, SEPNET_BFLOAT16, 1)
        CASE(THROUGH_NORM, SEPNET_FLOAT32, 0)
        CASE(THROUGH_NORM, SEPNET_BFLOAT16, 0)
        CASE(THROUGH_NORM, SEPNET_BFLOAT16, 1)
    }
#undef CASE
}

/* Blocks [first, last), of `lanes` lanes and any type and way. */
static void unpack_rest(const source *from, int64_t index, int64_t left, int64_t right, int64_t first, int64_t last, plane p, float *out,
                        int lanes) {
    if (HAVE_PAIRS && from->halves)
        unpack_blocks(from, index, left, right, first, last, p, out, from->step, lanes, SEPNET_BFLOAT16, from->entry.way, 1, 1);
    else
        unpack_blocks(from, index, left, right, first, last, p, out, from->step, lanes, from->dtype, from->entry.way, 0, 1);
}

static void clear_sides(plane p, int64_t left, int64_t right, float *out) {
    memset(out, 0, (size_t)(left * p.pixel) * sizeof *out);
    memset(out + right * p.pixel, 0, (size_t)((p.cols - right) * p.pixel) * sizeof *out);
}

/* The plane's columns that are within the map. */
static int64_t left_column(plane p) {
    return sepnet_min(sepnet_max(-p.first_col, 0), p.cols);
}

static int64_t right_column(const source *from, plane p) {
    return sepnet_max(left_column(p), sepnet_min(from->width - p.first_col, p.cols));
}

static void unpack_row(const source *from, int64_t row, plane p, float *out) {
    const int64_t left = left_column(p), right = right_column(from, p);
    const int64_t index = from->start + row * from->row + p.first_col * from->pixel;
    const int64_t whole = from->step == 1 ? from->blocks - (from->lanes < VL) : 0;
    if (whole > 0) unpack_whole(from, index, left, right, whole, p, out);
    if (from->step != 1 && from->lanes < VL && from->blocks > 1) unpack_rest(from, index, left, right, 0, from->blocks - 1, p, out, VL);
    const int64_t first = from->step == 1 ? whole : from->lanes < VL ? from->blocks - 1 : 0;
    if (first < from->blocks) unpack_rest(from, index, left, right, first, from->blocks, p, out, from->lanes);
    if (!from->zeroed) clear_sides(p, left, right, out);
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

#ifdef HAVE_AVX512
/* The map's last column is taken value by value: what lies behind it may not be the map's. */
static void interleave_colours(const source *from, int64_t row, plane p, float *out) {
    const int64_t left = left_column(p), right = right_column(from, p), first = from->start + row * from->row;
    const int64_t whole = sepnet_min(right, from->width - 1 - p.first_col);
    const uint16_t *map = (const uint16_t *)from->map + first + p.first_col * from->pixel;
    for (int64_t c = left; c < whole; c++) *(vf *)(out + c * VL) = gather_colours(map + c * from->pixel, from->image);
    for (int64_t c = sepnet_max(left, whole); c < right; c++)
        for (int64_t i = 0; i < COLOUR_IMAGES; i++)
            for (int k = 0; k < COLOURS; k++)
                out[c * VL + i * COLOURS + k] = load_one(map, i * from->image + c * from->pixel + k, SEPNET_BFLOAT16);
}
#endif

static void interleave_by_kind(const source *from, int64_t row, plane p, float *out) {
    if (!from->zeroed) memset(out, 0, (size_t)p.cols * sizeof(vf));
#ifdef HAVE_AVX512
    if (are_colours(from->images, from->lanes, from->step, from->dtype)) {
        interleave_colours(from, row, p, out);
        return;
    }
#endif
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
