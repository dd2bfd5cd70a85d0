/* Strips of pixels, tile by tile (direct_tiles.h): each kind of tile that there is has code of its own. */

/* The first and the last tile of a strip are where taps may be beyond the map. */
#define LAST_TILE(tile, C, K, S, way)          \
    case C:                                    \
        if (c == 0 && s->begins && s->ends)    \
            tile(w, s, c, C, K, S, 1, 1, way); \
        else if (s->ends)                      \
            tile(w, s, c, C, K, S, 0, 1, way); \
        else if (S > 1 && c == 0 && s->begins) \
            tile(w, s, c, C, K, S, 1, 0, way); \
        else if (S > 1)                        \
            tile(w, s, c, C, K, S, 0, 0, way); \
        break;
#define LAST_4(tile, K, S, way) \
    LAST_TILE(tile, 1, K, S, way) LAST_TILE(tile, 2, K, S, way) LAST_TILE(tile, 3, K, S, way) LAST_TILE(tile, 4, K, S, way)
#define LAST_8(tile, K, S, way)                                                                                       \
    LAST_4(tile, K, S, way) LAST_TILE(tile, 5, K, S, way) LAST_TILE(tile, 6, K, S, way) LAST_TILE(tile, 7, K, S, way) \
    LAST_TILE(tile, 8, K, S, way)

/* A tile before the last one. */
#define NEXT_TILE(tile, C, K, S, way)          \
    do {                                       \
        if (c == 0 && s->begins)               \
            tile(w, s, 0, C, K, S, 1, 0, way); \
        else                                   \
            tile(w, s, c, C, K, S, 0, 0, way); \
        c += C;                                \
    } while (0)

/* Tiles of so many pixels, and of those that are left over: of 5x5 not one alone, beyond which the tile before it would see. */
#define TILES(tile, width, K, S, last, way)            \
    do {                                               \
        int64_t c = 0;                                 \
        while (s->cols - c > width)                    \
            if (K != 3 && s->cols - c == width + 1)    \
                NEXT_TILE(tile, width - 1, K, S, way); \
            else                                       \
                NEXT_TILE(tile, width, K, S, way);     \
        switch (s->cols - c) { last(tile, K, S, way) } \
    } while (0)
#define EACH_WAY(tile, width, K, S, last)               \
    do {                                                \
        if (w->before.way == AS_IS)                     \
            TILES(tile, width, K, S, last, AS_IS);      \
        else                                            \
            TILES(tile, width, K, S, last, NORMALISED); \
    } while (0)

static __attribute__((noinline)) void forward_strip_3(strip_work *w, const strip *s, int far) {
    if (far)
        EACH_WAY(far_tile, NARROW_TILE, 3, 1, LAST_4);
    else
        EACH_WAY(near_tile, WIDE_TILE, 3, 1, LAST_8);
}

static __attribute__((noinline)) void forward_strip_3_2(strip_work *w, const strip *s, int far) {
    if (far)
        EACH_WAY(far_tile, NARROW_TILE, 3, 2, LAST_4);
    else
        EACH_WAY(near_tile, NARROW_TILE, 3, 2, LAST_4);
}

static __attribute__((noinline)) void forward_strip_5(strip_work *w, const strip *s, int far) {
    if (far)
        EACH_WAY(far_tile, NARROW_TILE, 5, 1, LAST_4);
    else
        EACH_WAY(near_tile, WIDE_TILE, 5, 1, LAST_8);
}

/* Of a branch. */
static void forward_strip(strip_work *w, const strip *s, int64_t side) {
    const int far = s->pixel > FAR_PIXEL && w->blocks % LINE_BLOCKS == 0;
    if (side == 5)
        forward_strip_5(w, s, far);
    else if (w->stride == 1)
        forward_strip_3(w, s, far);
    else
        forward_strip_3_2(w, s, far);
}

static __attribute__((noinline)) void backward_strip_3(strip_work *w, const strip *s) {
    EACH_WAY(backward_tile, NARROW_TILE, 3, 1, LAST_4);
}

static __attribute__((noinline)) void backward_strip_3_2(strip_work *w, const strip *s) {
    EACH_WAY(backward_tile, NARROW_TILE, 3, 2, LAST_4);
}

static __attribute__((noinline)) void backward_strip_5(strip_work *w, const strip *s) {
    EACH_WAY(backward_tile, NARROW_TILE, 5, 1, LAST_4);
}

static __attribute__((noinline)) void backward_strip_mixed(strip_work *w, const strip *s) {
    EACH_WAY(backward_tile, NARROW_TILE, MIXED, 1, LAST_4);
}

/* Of all branches. */
static void backward_strip(strip_work *w, const strip *s) {
    if (w->branches > 1)
        backward_strip_mixed(w, s);
    else if (w->branch->side == 5)
        backward_strip_5(w, s);
    else if (w->stride == 1)
        backward_strip_3(w, s);
    else
        backward_strip_3_2(w, s);
}

/* The pixel before a strip's first one, with stride 2: it sees that one's result alone, if any. */
static __attribute__((noinline)) void pixel_before(strip_work *w, const strip *s) {
    if (w->before.way == AS_IS)
        gradient_tile(w, s, 0, 1, 3, 2, -1, 0, 0, AS_IS);
    else
        gradient_tile(w, s, 0, 1, 3, 2, -1, 0, 0, NORMALISED);
}
