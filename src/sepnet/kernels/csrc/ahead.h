/* What a task unpacks next, fetched into the L2 cache while it computes: a few lines of each map with every tile of results.
 *
 * Where the processor gains by it (processor.c). It does without where a tile is all that there is between two rows of a small map,
 * which is still in cache, and where a task takes but a piece of each pixel. */

#ifndef FETCHED_MAP_BYTES
#define FETCHED_MAP_BYTES (1 << 20) /* of maps from so many on. (Tests set less.) */
#endif

/* Of an image in float32, up to which it, its gradients and the next ones stay in the L2 cache together; and of its pixels, from which on
 * they are wide. */
enum { FETCHED_IMAGE_BYTES = 160 << 10, WIDE_PIXEL = 1 << 10 };

enum { MOST_FETCHED = 3 }; /* x, dL/dy and, where that passes a normalisation, the map that was normalised */

typedef struct {
    const char *at;
    int64_t lines, share; /* that are left; with each tile */
} stretch;

typedef struct {
    int64_t count;
    stretch map[MOST_FETCHED];
} ahead;

/* Measured on a Xeon 6 (18 maps, both types, strides and directions; LOG.md). With stride 2 there is too little to compute meanwhile, or
 * the planes are too large; a backward pass over large images of wide pixels in float32 takes up to 1.3 times as long with fetching. */
static int is_worth_fetching(const sepnet_depthwise *conv, int backward) {
    const int strided = conv->stride_h * conv->stride_w > 1;
    if (!backward) return !strided;
    const int64_t pixel = conv->channels * (int64_t)sizeof(float);
    if (conv->in_h * conv->in_w * pixel <= FETCHED_IMAGE_BYTES) return 1;
    return !strided && (conv->dtype == SEPNET_BFLOAT16 || pixel < WIDE_PIXEL);
}

INLINE void fetch_ahead(ahead *a) {
    for (int64_t i = 0; i < a->count; i++) {
        stretch *s = &a->map[i];
        const int64_t lines = sepnet_min(s->lines, s->share);
        s->at = fetch(s->at, (size_t)(lines * CACHE_LINE)), s->lines -= lines;
    }
}

/* Whether a task takes whole pixels, so that its rows, and the next image's, follow one another in memory. */
static int takes_all(const source *from) {
    return from->images == 1 && from->step == 1 && from->lanes == VL && from->pixel == from->blocks * VL &&
           from->row == from->width * from->pixel && from->image == from->height * from->row;
}

static int64_t source_bytes(const source *from, int64_t batch) {
    return batch * from->image * (int64_t)element_size(from->dtype);
}

/* To fetch with so many tiles: `rows` of the map, from the plane's row `first` on. The first rows of the image behind it are those that
 * its task wants. */
static void add_ahead(ahead *a, const window_plane *w, int64_t batch, int64_t first, int64_t rows, int64_t tiles) {
    const source *from = &w->from;
    if (!takes_all(from) || source_bytes(from, batch) < FETCHED_MAP_BYTES) return;
    const int64_t row = sepnet_min(sepnet_max(0, w->shape.first_row + first), from->height), size = (int64_t)element_size(from->dtype);
    const int64_t at = (from->start + row * from->row) * size, end = source_bytes(from, batch);
    const int64_t lines = sepnet_min(rows * from->row * size, end - at) / CACHE_LINE, share = (lines + tiles - 1) / tiles;
    a->map[a->count++] = (stretch){(const char *)from->map + at, lines, share};
    if (from->entry.way == THROUGH_NORM) a->map[a->count++] = (stretch){(const char *)from->entry.of + at, lines, share};
}
