/* Where results go: whole vectors of a map are written where they are computed, everything else by way of spare memory. */

/* Channels channel, channel + step, ... of a map, of an image or of several that share a vector. */
typedef struct {
    void *map;
    int64_t index, row, col, step; /* element of the first result; elements from row to row, pixel to pixel, channel to channel */
    int lanes, dtype;      /* lanes: of the last block */
    int64_t images, image; /* how many; elements from one to the next */
    int stream;            /* past the caches, where whole blocks fill whole cache lines */
} destination;

/* The images' shares of a row of vectors. */
INLINE void deal_row(const destination *to, int64_t index, const vf *from, int64_t cols, int lanes, int dtype) {
    for (int64_t c = 0; c < cols; c++, index += to->col) {
        uint16_t half[VL];
        *(vhu *)half = narrow(from[c]);
        for (int64_t i = 0; i < to->images; i++)
            for (int k = 0; k < lanes; k++) {
                int64_t at = index + i * to->image + k * to->step, lane = i * lanes + k;
                if (dtype == SEPNET_BFLOAT16)
                    ((uint16_t *)to->map)[at] = half[lane];
                else
                    ((float *)to->map)[at] = ((const float *)(from + c))[lane];
            }
    }
}

static void deal_by_kind(const destination *to, int64_t index, const vf *from, int64_t cols) {
#ifdef HAVE_AVX512
    if (are_colours(to->images, to->lanes, to->step, to->dtype)) {
        uint16_t *at = (uint16_t *)to->map + index;
        for (int64_t c = 0; c < cols; c++, at += to->col) scatter_colours(at, to->image, from[c]);
        return;
    }
#endif
    switch (2 * to->lanes + (to->dtype == SEPNET_BFLOAT16)) {
        case 2 * 1: deal_row(to, index, from, cols, 1, SEPNET_FLOAT32); break;
        case 2 * 1 + 1: deal_row(to, index, from, cols, 1, SEPNET_BFLOAT16); break;
        case 2 * 2: deal_row(to, index, from, cols, 2, SEPNET_FLOAT32); break;
        case 2 * 2 + 1: deal_row(to, index, from, cols, 2, SEPNET_BFLOAT16); break;
        case 2 * 3: deal_row(to, index, from, cols, 3, SEPNET_FLOAT32); break;
        case 2 * 3 + 1: deal_row(to, index, from, cols, 3, SEPNET_BFLOAT16); break;
        case 2 * 4: deal_row(to, index, from, cols, 4, SEPNET_FLOAT32); break;
        case 2 * 4 + 1: deal_row(to, index, from, cols, 4, SEPNET_BFLOAT16); break;
    }
}

/* Where there are several segments, `to` holds floats. */
static void compute_segments(patch p, const taps *t) {
    do {
        compute_segment(&p, t);
        p.first_tap += t->segment[p.segment].rows * t->segment[p.segment].width, p.resume = 1;
    } while (++p.segment < t->segments);
}

/* One block by way of `spare`, which holds the patch as float vectors. */
static void compute_apart(patch p, const taps *t, const destination *to, int64_t index, int lanes, float *spare) {
    p.to = (char *)spare, p.to_row = p.cols * VL, p.to_col = VL, p.blocks = 1, p.dtype = SEPNET_FLOAT32, p.stream = 0;
    compute_segments(p, t);
    for (int64_t r = 0; r < p.rows; r++) {
        const vf *row = (const vf *)(spare + r * p.cols * VL);
        if (to->images > 1) {
            deal_by_kind(to, index + r * to->row, row, p.cols);
            continue;
        }
        for (int64_t c = 0; c < p.cols; c++)
            store_strided(to->map, index + r * to->row + c * to->col, to->step, lanes, to->dtype, row[c]);
    }
}

/* Whether `blocks` whole blocks of a patch are whole cache lines at each of its results. */
static int fills_lines(const patch *p, int64_t blocks) {
    const int64_t size = (int64_t)element_size(p->dtype), vectors = line_vectors(p->dtype);
    if (vectors == 0 || blocks % vectors) return 0;
    return ((intptr_t)p->to | p->to_row * size | p->to_col * size) % CACHE_LINE == 0;
}

/* `spare`: for blocks that are not whole vectors of neighbouring channels, and for bfloat16 results from several segments. */
static void compute(patch p, const taps *t, const destination *to, float *spare) {
    const int direct = to->step == 1 && (t->segments <= 1 || to->dtype == SEPNET_FLOAT32);
    int64_t blocks = p.blocks, whole = direct ? blocks - (to->lanes < VL) : 0;
    p.to = (char *)to->map + to->index * (int64_t)element_size(to->dtype);
    p.to_row = to->row, p.to_col = to->col, p.blocks = whole, p.dtype = to->dtype;
    p.stream = to->stream && t->segments <= 1 && fills_lines(&p, whole);
    if (whole > 0) compute_segments(p, t);
    p.at += whole * VL, p.weight += whole * p.weight_step, p.start += whole * p.start_step;
    for (int64_t b = whole; b < blocks; b++) {
        compute_apart(p, t, to, to->index + b * VL * to->step, b < blocks - 1 ? VL : to->lanes, spare);
        p.at += VL, p.weight += p.weight_step, p.start += p.start_step;
    }
}
