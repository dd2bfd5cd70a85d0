/* Depthwise convolution, forward and both gradients, for one vector length. Included once by each instruction-set file.
 *
 * Work is cut into tasks: one image, one block of VL channels, one band of rows (most often all of them). A task unpacks its
 * channels of the input into a float32 plane in cache, zero-padded, so that every tap of every output pixel is a load at a
 * fixed offset: padding, dilation, stride, element type and channel remainders are dealt with there and at the final store,
 * and the inner loops see none of them. They run over up to 16 output pixels at a time, held in registers, tap by tap. A few
 * rows are unpacked, then the results that they complete are computed, while they are in the L1 cache. Both gradients come
 * from one pass: x and dL/dy are unpacked once and serve both. */

enum { BAND_BYTES = 512 << 10 };  /* of planes a task: within the L2 cache of one core */
enum { CHUNK_BYTES = 12 << 10 };  /* of plane rows unpacked before they are used: within the L1 cache, with their neighbours */
enum { PARTS_PER_THREAD = 2 };    /* evens out threads that are disturbed; parts are fixed, so sums keep their order */
enum { PREFETCH = 32 };           /* pixels ahead: a block's channels are some 64 bytes of each pixel, too sparse for the hardware */

/* Rows and columns of an unpacked plane, and where it begins in the map it was taken from. */
typedef struct {
    int64_t first_row, rows, first_col, cols;
} plane;

/* The taps that one class of output pixels needs: where they lie in the planes and in a block's weights, in floats. */
typedef struct {
    int64_t count;
    ptrdiff_t offset[SEPNET_MAX_TAPS], weight[SEPNET_MAX_TAPS];
} taps;

/* What becomes of a map's values on their way into a plane. */
enum { AS_IS, NORMALISED, THROUGH_NORM };
typedef struct {
    int way;
    vu passes;      /* all ones: without ReLU */
    vf scale, shift, mean, slope, constant;
    const void *of; /* THROUGH_NORM: the map whose normalisation the gradient passes */
} entry;

/* What all tasks of a call share. */
typedef struct {
    const sepnet_depthwise *conv;
    const sepnet_joined *joined; /* may be NULL */
    const void *x, *grad;
    const float *bias;
    void *y, *grad_x;
    taps *classes;           /* forward: one a branch; backward: one for each remainder of row and column by the strides */
    float *packed, *partial; /* weights by [block][tap][VL]; gradients' sums by [part][block][tap, then branch's bias][VL] */
    float *origin;           /* a value of each output channel, [branch][block][VL] */
    double *joined_sums;     /* [part][first or second][branch][block][VL] */
    char *scratch;           /* one piece a part */
    int64_t blocks, bands, filter_taps, parts, scratch_bytes, x_floats, grad_floats; /* floats: of the largest band's plane */
    int want_x, want_weight, want_bias;
} job_state;

/* --- geometry ------------------------------------------------------------------------------------------------------ */

static int64_t filter_taps(const sepnet_depthwise *conv) {
    int64_t total = 0;
    for (int j = 0; j < conv->branches; j++) total += conv->branch[j].kernel_h * conv->branch[j].kernel_w;
    return total;
}

/* Input rows and columns that the output rows [row0, row1) read. */
static plane input_plane(const sepnet_depthwise *conv, int64_t row0, int64_t row1) {
    int64_t top = 0, left = 0, below = INT64_MIN, right = INT64_MIN;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        top = sepnet_max(top, b->pad_h);
        left = sepnet_max(left, b->pad_w);
        below = sepnet_max(below, (b->kernel_h - 1) * b->dilation_h - b->pad_h);
        right = sepnet_max(right, (b->kernel_w - 1) * b->dilation_w - b->pad_w);
    }
    return (plane){row0 * conv->stride_h - top, (row1 - row0 - 1) * conv->stride_h + top + below + 1, -left,
                   (conv->out_w - 1) * conv->stride_w + left + right + 1};
}

/* Output rows and columns whose gradient reaches the input rows [row0, row1), and those of [out0, out1) as well.
 * Input row s * q + r takes from output row q + (r + pad - k * dilation) / s, for the k that leave no remainder. */
static plane gradient_plane(const sepnet_depthwise *conv, int64_t row0, int64_t row1, int64_t out0, int64_t out1) {
    int64_t rows[2] = {out0, out1 - 1}, cols[2] = {0, conv->out_w - 1};
    int64_t sh = conv->stride_h, sw = conv->stride_w;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        rows[0] = sepnet_min(rows[0], sepnet_floor_div(row0 + b->pad_h - (b->kernel_h - 1) * b->dilation_h, sh));
        rows[1] = sepnet_max(rows[1], sepnet_floor_div(row1 - 1 + b->pad_h, sh));
        cols[0] = sepnet_min(cols[0], sepnet_floor_div(b->pad_w - (b->kernel_w - 1) * b->dilation_w, sw));
        cols[1] = sepnet_max(cols[1], sepnet_floor_div(conv->in_w - 1 + b->pad_w, sw));
    }
    return (plane){rows[0], rows[1] - rows[0] + 1, cols[0], cols[1] - cols[0] + 1};
}

static int64_t plane_floats(plane p) { return p.rows * p.cols * VL; }

typedef struct {
    int64_t out0, out1, in0, in1; /* rows of output and of input that a band computes */
} band_rows;

static band_rows nth_band(const sepnet_depthwise *conv, int64_t bands, int64_t band) {
    return (band_rows){sepnet_part_begin(conv->out_h, bands, band), sepnet_part_begin(conv->out_h, bands, band + 1),
                       sepnet_part_begin(conv->in_h, bands, band), sepnet_part_begin(conv->in_h, bands, band + 1)};
}

/* Whether positions first, first + step, ... (count of them) meet [0, size): a tap that never does sees nothing but padding. */
static int meets(int64_t first, int64_t step, int64_t count, int64_t size) {
    return first < size && first + (count - 1) * step >= 0;
}

static int row_is_alive(const sepnet_depthwise *conv, const sepnet_branch *b, int64_t row) {
    return meets(row * b->dilation_h - b->pad_h, conv->stride_h, conv->out_h, conv->in_h);
}

static int col_is_alive(const sepnet_depthwise *conv, const sepnet_branch *b, int64_t col) {
    return meets(col * b->dilation_w - b->pad_w, conv->stride_w, conv->out_w, conv->in_w);
}

/* Taps of a branch, for all output pixels. The plane begins where the most padded branch does. */
static void forward_taps(const sepnet_depthwise *conv, plane p, int branch, taps *out) {
    ptrdiff_t weight = 0;
    out->count = 0;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        for (int64_t r = 0; r < b->kernel_h; r++)
            for (int64_t c = 0; c < b->kernel_w; c++, weight += VL) {
                if (j != branch || !row_is_alive(conv, b, r) || !col_is_alive(conv, b, c)) continue;
                int64_t row = r * b->dilation_h - b->pad_h, col = c * b->dilation_w - b->pad_w - p.first_col;
                out->offset[out->count] = (row * p.cols + col) * VL;
                out->weight[out->count++] = weight;
            }
    }
}

/* Taps of the input pixels whose row and column leave the remainders (r, c) modulo the strides; the branches' planes lie
 * `plane_step` floats apart. */
static void backward_taps(const sepnet_depthwise *conv, plane p, int64_t plane_step, int64_t r, int64_t c, taps *out) {
    ptrdiff_t weight = 0;
    out->count = 0;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        for (int64_t kr = 0; kr < b->kernel_h; kr++)
            for (int64_t kc = 0; kc < b->kernel_w; kc++, weight += VL) {
                if (!row_is_alive(conv, b, kr) || !col_is_alive(conv, b, kc)) continue;
                int64_t row = r + b->pad_h - kr * b->dilation_h, col = c + b->pad_w - kc * b->dilation_w;
                int64_t to_row = sepnet_floor_div(row, conv->stride_h), to_col = sepnet_floor_div(col, conv->stride_w);
                if (to_row * conv->stride_h != row || to_col * conv->stride_w != col) continue;
                out->offset[out->count] = j * plane_step + (to_row * p.cols + to_col - p.first_col) * VL;
                out->weight[out->count++] = weight;
            }
    }
}

/* Floats of the largest band's planes of x and of dL/dy. */
static void measure_bands(const sepnet_depthwise *conv, int64_t bands, int64_t *x_floats, int64_t *grad_floats) {
    *x_floats = *grad_floats = 0;
    for (int64_t i = 0; i < bands; i++) {
        band_rows b = nth_band(conv, bands, i);
        *x_floats = sepnet_max(*x_floats, plane_floats(input_plane(conv, b.out0, b.out1)));
        *grad_floats = sepnet_max(*grad_floats, plane_floats(gradient_plane(conv, b.in0, b.in1, b.out0, b.out1)));
    }
}

static int64_t count_blocks(const sepnet_depthwise *conv) { return (conv->channels + VL - 1) / VL; }

/* As few bands as keep the planes in cache and the threads busy; a band costs the overlap of its rows. */
static int64_t count_bands(const sepnet_depthwise *conv, int backward) {
    int64_t limit = sepnet_max(1, sepnet_min(conv->out_h, conv->in_h) / 2);
    int64_t tasks = sepnet_max(1, conv->batch * count_blocks(conv)), x_floats, grad_floats;
    int64_t bands = sepnet_min(limit, (conv->threads + tasks - 1) / tasks);
    for (; bands < limit; bands++) {
        measure_bands(conv, bands, &x_floats, &grad_floats);
        if ((x_floats + backward * conv->branches * grad_floats) * 4 <= BAND_BYTES) break;
    }
    return bands;
}

static int64_t count_tasks(const job_state *s) { return s->conv->batch * s->bands * s->blocks; }

static int64_t count_parts(const job_state *s) {
    if (s->conv->threads <= 1) return 1;
    return sepnet_max(1, sepnet_min(count_tasks(s), PARTS_PER_THREAD * s->conv->threads));
}

/* --- unpacking ----------------------------------------------------------------------------------------------------- */

/* One image's channels channel, channel + step, ... of a map with `pixel` channels. */
typedef struct {
    const void *map;
    int64_t image, height, width, pixel, channel, step;
    int lanes, dtype, zeroed; /* zeroed: the plane's border already holds zeros */
    entry entry;
} source;

static entry open_entry(int way, const float *constants, int64_t channels, int64_t channel, int lanes, int relu, const void *of) {
    if (way == AS_IS) return (entry){AS_IS};
    norm_constants c = lay_constants((float *)constants, channels);
    entry e = {.way = way, .passes = (vu)splat(0), .of = of};
    if (!relu) e.passes = ~e.passes;
    e.scale = load_lanes(c.scale, channel, lanes, SEPNET_FLOAT32), e.shift = load_lanes(c.shift, channel, lanes, SEPNET_FLOAT32);
    if (way == NORMALISED) return e;
    e.mean = load_lanes(c.mean, channel, lanes, SEPNET_FLOAT32), e.slope = load_lanes(c.slope, channel, lanes, SEPNET_FLOAT32);
    e.constant = load_lanes(c.constant, channel, lanes, SEPNET_FLOAT32);
    return e;
}

/* A value as it enters the plane; `other`: of e->of at the same place. */
INLINE vf enter(const entry *e, vf value, vf other, int way) {
    if (way == NORMALISED) {
        value = value * e->scale + e->shift;
        return (vf)((vu)value & (~(vu)(value < 0) | e->passes));
    }
    if (way == THROUGH_NORM) {
        vu alive = (vu)(other * e->scale + e->shift > 0) | e->passes;
        return (vf)((vu)value & alive) * e->scale + ((other - e->mean) * e->slope + e->constant);
    }
    return value;
}

INLINE void unpack_row(const source *from, int64_t row, plane p, vf *out, int64_t step, int lanes, int dtype, int way) {
    int64_t left = sepnet_min(sepnet_max(-p.first_col, 0), p.cols);
    int64_t right = sepnet_max(left, sepnet_min(from->width - p.first_col, p.cols));
    int64_t index = ((from->image * from->height + row) * from->width + p.first_col) * from->pixel + from->channel;
    const char *ahead = (const char *)from->map + (index + PREFETCH * from->pixel) * (int64_t)element_size(dtype);
    const entry e = from->entry; /* of our own, which no store can alias */
    const ptrdiff_t other = way == THROUGH_NORM ? (const char *)e.of - (const char *)from->map : 0;
    for (int64_t c = left; c < right; c++) {
        int64_t at = index + c * from->pixel;
        __builtin_prefetch(ahead + c * from->pixel * (int64_t)element_size(dtype));
        if (way == THROUGH_NORM) __builtin_prefetch(ahead + other + c * from->pixel * (int64_t)element_size(dtype));
        vf value = load_strided(from->map, at, step, lanes, dtype);
        out[c] = enter(&e, value, way == THROUGH_NORM ? load_strided(e.of, at, step, lanes, dtype) : value, way);
    }
    if (from->zeroed) return;
    for (int64_t c = 0; c < left; c++) out[c] = splat(0);
    for (int64_t c = right; c < p.cols; c++) out[c] = splat(0);
}

/* Whole vectors of neighbouring channels have loops of their own for each type and way. */
static void unpack_by_kind(const source *from, int64_t row, plane p, vf *out) {
    if (from->lanes != VL || from->step != 1) {
        unpack_row(from, row, p, out, from->step, from->lanes, from->dtype, from->entry.way);
        return;
    }
    switch (2 * from->entry.way + (from->dtype == SEPNET_BFLOAT16)) {
        case 2 * AS_IS: unpack_row(from, row, p, out, 1, VL, SEPNET_FLOAT32, AS_IS); break;
        case 2 * AS_IS + 1: unpack_row(from, row, p, out, 1, VL, SEPNET_BFLOAT16, AS_IS); break;
        case 2 * NORMALISED: unpack_row(from, row, p, out, 1, VL, SEPNET_FLOAT32, NORMALISED); break;
        case 2 * NORMALISED + 1: unpack_row(from, row, p, out, 1, VL, SEPNET_BFLOAT16, NORMALISED); break;
        case 2 * THROUGH_NORM: unpack_row(from, row, p, out, 1, VL, SEPNET_FLOAT32, THROUGH_NORM); break;
        default: unpack_row(from, row, p, out, 1, VL, SEPNET_BFLOAT16, THROUGH_NORM);
    }
}

/* Plane rows [first, last) as float32, zeros outside the map. */
static void unpack_rows(const source *from, plane p, int64_t first, int64_t last, float *plane_start) {
    for (int64_t r = first; r < last; r++) {
        vf *out = (vf *)(plane_start + r * p.cols * VL);
        int64_t row = p.first_row + r;
        if (row < 0 || row >= from->height) {
            if (!from->zeroed) memset(out, 0, (size_t)p.cols * sizeof(vf));
        } else {
            unpack_by_kind(from, row, p, out);
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
static int64_t chunk_rows(plane p) { return sepnet_max(4, CHUNK_BYTES / (p.cols * VL * (int64_t)sizeof(float))); }

/* --- results ------------------------------------------------------------------------------------------------------- */

/* A rectangle of results: planes at `at`, `row` and `col` floats from one result to the next; memory at `to`, `to_row` and
 * `to_col` elements from one to the next. */
typedef struct {
    const float *at, *weight;
    ptrdiff_t row, col;
    char *to;
    int64_t to_row, to_col, rows, cols;
    vf start;
} patch;

#define TIMES_1(M, n) M(0, n)
#define TIMES_2(M, n) TIMES_1(M, n) M(1, n)
#define TIMES_4(M, n) TIMES_2(M, n) M(2, n) M(3, n)
#define TIMES_8(M, n) TIMES_4(M, n) M(4, n) M(5, n) M(6, n) M(7, n)
#define TIMES_16(M, n) TIMES_8(M, n) M(8, n) M(9, n) M(10, n) M(11, n) M(12, n) M(13, n) M(14, n) M(15, n)

/* Result i of a tile of n columns stands in row i / n, column i % n. */
#define START(i, n) vf sum##i = p->start;
#define MULTIPLY_ADD(i, n) sum##i += *(const vf *)(from + (i / n) * row + (i % n) * col) * w;
#define STORE(i, n)                                                                      \
    __builtin_prefetch(to + ((i / n) * to_row + (i % n + PREFETCH) * to_col) * size, 1); \
    store_lanes(to, (i / n) * to_row + (i % n) * to_col, VL, dtype, sum##i);

/* size = rows * cols results in as many registers, tap by tap. `col`, `dtype`: constants after inlining. */
#define DEFINE_TILE(size_, cols_)                                                                                            \
    INLINE void tile_##size_##_##cols_(const patch *p, const taps *t, int64_t r, int64_t c, ptrdiff_t col, int dtype) {      \
        const int64_t size = (int64_t)element_size(dtype), row = p->row, to_row = p->to_row, to_col = p->to_col;             \
        const float *at = p->at + r * row + c * col;                                                                         \
        TIMES_##size_(START, cols_) for (int64_t k = 0; k < t->count; k++) {                                                 \
            const float *from = at + t->offset[k];                                                                           \
            vf w = *(const vf *)(p->weight + t->weight[k]);                                                                  \
            TIMES_##size_(MULTIPLY_ADD, cols_)                                                                               \
        }                                                                                                                    \
        char *to = p->to + (r * to_row + c * to_col) * size;                                                                 \
        TIMES_##size_(STORE, cols_)                                                                                          \
    }
DEFINE_TILE(16, 16)
DEFINE_TILE(16, 8)
DEFINE_TILE(16, 4)
DEFINE_TILE(8, 8)
DEFINE_TILE(8, 4)
DEFINE_TILE(8, 2)
DEFINE_TILE(8, 1)
DEFINE_TILE(4, 4)
DEFINE_TILE(2, 2)
DEFINE_TILE(1, 1)

/* Columns [c, c + n) of all rows, as many rows at once as the registers take. */
#define COLUMNS(big, small, n)                                                                   \
    do {                                                                                         \
        int64_t r = 0;                                                                           \
        for (; r + big / n <= p->rows; r += big / n) tile_##big##_##n(p, t, r, c, col, dtype);   \
        for (; r < p->rows; r += small / n) tile_##small##_##n(p, t, r, c, col, dtype);          \
        c += n;                                                                                  \
    } while (0)

INLINE void compute_patch(const patch *p, const taps *t, ptrdiff_t col, int dtype) {
    int64_t c = 0;
    if (VL >= 16) { /* 32 registers */
        while (p->cols - c >= 16) COLUMNS(16, 16, 16);
        if (p->cols - c >= 8) COLUMNS(16, 8, 8);
        if (p->cols - c >= 4) COLUMNS(16, 4, 4);
    } else {
        while (p->cols - c >= 8) COLUMNS(8, 8, 8);
        if (p->cols - c >= 4) COLUMNS(8, 4, 4);
    }
    if (p->cols - c >= 2) COLUMNS(8, 2, 2);
    if (p->cols - c >= 1) COLUMNS(8, 1, 1);
}

#define DEFINE_PATCH(name, col, dtype)                                                      \
    static __attribute__((noinline)) void name(const patch *p, const taps *t) {             \
        compute_patch(p, t, col, dtype);                                                    \
    }
DEFINE_PATCH(patch_f32_1, VL, SEPNET_FLOAT32)
DEFINE_PATCH(patch_f32_2, 2 * VL, SEPNET_FLOAT32)
DEFINE_PATCH(patch_f32_n, p->col, SEPNET_FLOAT32)
DEFINE_PATCH(patch_bf16_1, VL, SEPNET_BFLOAT16)
DEFINE_PATCH(patch_bf16_2, 2 * VL, SEPNET_BFLOAT16)
DEFINE_PATCH(patch_bf16_n, p->col, SEPNET_BFLOAT16)

/* Where results go: channels channel, channel + step, ... of a map. */
typedef struct {
    void *map;
    int64_t index, row, col, step; /* element of the first result; elements from row to row, pixel to pixel, channel to channel */
    int lanes, dtype;
} destination;

/* `spare` holds the patch as float vectors where results are not whole vectors of neighbouring channels. */
static void compute(patch p, const taps *t, const destination *to, float *spare) {
    static void (*const by_type[2][3])(const patch *, const taps *) = {{patch_f32_1, patch_f32_2, patch_f32_n},
                                                                       {patch_bf16_1, patch_bf16_2, patch_bf16_n}};
    int by_stride = p.col == VL ? 0 : p.col == 2 * VL ? 1 : 2;
    if (to->lanes == VL && to->step == 1) {
        p.to = (char *)to->map + to->index * (int64_t)element_size(to->dtype);
        p.to_row = to->row, p.to_col = to->col;
        by_type[to->dtype == SEPNET_BFLOAT16][by_stride](&p, t);
        return;
    }
    p.to = (char *)spare, p.to_row = p.cols * VL, p.to_col = VL;
    by_type[0][by_stride](&p, t);
    for (int64_t r = 0; r < p.rows; r++)
        for (int64_t c = 0; c < p.cols; c++)
            store_strided(to->map, to->index + r * to->row + c * to->col, to->step, to->lanes, to->dtype,
                          *(const vf *)(spare + (r * p.cols + c) * VL));
}

/* --- tasks --------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t image, block, channel;
    band_rows rows;
    int lanes;
} task;

static task nth_task(const job_state *s, int64_t index) {
    int64_t block = index % s->blocks, band = index / s->blocks % s->bands, channel = block * VL;
    return (task){index / (s->blocks * s->bands), block, channel, nth_band(s->conv, s->bands, band),
                  (int)sepnet_min(VL, s->conv->channels - channel)};
}

/* First output channel of a block in a branch, and from one of its channels to the next. */
static int64_t output_channel(const sepnet_depthwise *conv, int64_t channel, int branch) {
    return conv->interleaved ? channel * conv->branches + branch : branch * conv->channels + channel;
}

static int64_t output_step(const sepnet_depthwise *conv) { return conv->interleaved ? conv->branches : 1; }

static window_plane open_input(const job_state *s, const task *at, plane p, float *start) {
    const sepnet_depthwise *c = s->conv;
    const sepnet_joined *j = s->joined;
    source from = {s->x, at->image, c->in_h, c->in_w, c->channels, at->channel, 1, at->lanes, c->dtype, s->bands == 1,
                   open_entry(j && j->before ? NORMALISED : AS_IS, j ? j->before : NULL, c->channels, at->channel, at->lanes,
                              j && j->before_relu, NULL)};
    return (window_plane){from, p, start, 0};
}

static window_plane open_gradient(const job_state *s, const task *at, plane p, int branch, float *start) {
    const sepnet_depthwise *c = s->conv;
    const sepnet_joined *j = s->joined;
    int64_t outputs = c->channels * c->branches, channel = output_channel(c, at->channel, branch);
    source from = {s->grad, at->image, c->out_h, c->out_w, outputs, channel, output_step(c), at->lanes, c->dtype, s->bands == 1,
                   open_entry(j && j->after ? THROUGH_NORM : AS_IS, j ? j->after : NULL, outputs, channel, at->lanes,
                              j && j->after_relu, j ? j->y : NULL)};
    return (window_plane){from, p, start, 0};
}

/* --- sums for the normalisation at either side, of rows that have just been computed and are still in cache ------------- */

/* Elements of a part's sums: of the first kind; as many of the second follow. */
static int64_t joined_stride(const job_state *s) { return s->conv->branches * s->blocks * VL; }

static double *joined_at(const job_state *s, int64_t part, int64_t block, int branch) {
    return s->joined_sums + part * 2 * joined_stride(s) + (branch * s->blocks + block) * VL;
}

INLINE moments run_moments(const destination *from, int64_t rows, int64_t cols, int lanes, int dtype) {
    vf zero = splat(0), origin = load_lanes(from->map, from->index, lanes, dtype);
    moments m[2] = {{origin, zero, zero, 0}, {origin, zero, zero, 0}};
    for (int64_t r = 0; r < rows; r++) {
        int64_t at = from->index + r * from->row, c = 0;
        for (; c + 2 <= cols; c += 2, at += 2 * from->col) {
            add_value(&m[0], load_lanes(from->map, at, lanes, dtype));
            add_value(&m[1], load_lanes(from->map, at + from->col, lanes, dtype));
        }
        if (c < cols) add_value(&m[0], load_lanes(from->map, at, lanes, dtype));
    }
    return (moments){origin, m[0].sum + m[1].sum, m[0].square + m[1].square, rows * cols};
}

/* Adds the moments of a rectangle of outputs, about the channels' origins. */
static void output_sums(const job_state *s, const destination *from, int64_t rows, int64_t cols, double *sums, const float *origin) {
    moments m;
    if (from->lanes != VL)
        m = run_moments(from, rows, cols, from->lanes, from->dtype);
    else if (from->dtype == SEPNET_BFLOAT16)
        m = run_moments(from, rows, cols, VL, SEPNET_BFLOAT16);
    else
        m = run_moments(from, rows, cols, VL, SEPNET_FLOAT32);
    add_moments(sums, sums + joined_stride(s), *(const vfu *)origin, &m);
}

INLINE void run_input_sums(const job_state *s, const entry *e, int64_t first, int64_t pixels, double *sums, int lanes, int dtype) {
    const sepnet_depthwise *conv = s->conv;
    vf sum[2] = {splat(0), splat(0)}, product[2] = {splat(0), splat(0)};
    for (int64_t i = 0; i < pixels; i += 2)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            if (k && i + k >= pixels) break;
            int64_t at = first + (i + k) * conv->channels;
            vf value = load_lanes(s->x, at, lanes, dtype), grad = load_lanes(s->grad_x, at, lanes, dtype);
            grad = (vf)((vu)grad & ((vu)(value * e->scale + e->shift > 0) | e->passes));
            sum[k] += grad;
            product[k] += grad * (value - e->mean);
        }
    add_doubles(sums, sum[0] + sum[1]);
    add_doubles(sums + joined_stride(s), product[0] + product[1]);
}

/* Adds the sums that the gradient of the normalisation before needs: of dL/dz where its ReLU let z pass, and of its product
 * with x - mean, over the input rows [row0, row1). */
static void input_sums(const job_state *s, const task *at, int64_t row0, int64_t row1, double *sums) {
    const sepnet_depthwise *conv = s->conv;
    const entry e = open_entry(THROUGH_NORM, s->joined->before, conv->channels, at->channel, at->lanes, s->joined->before_relu, NULL);
    int64_t first = (at->image * conv->in_h + row0) * conv->in_w * conv->channels + at->channel;
    int64_t pixels = (row1 - row0) * conv->in_w;
    if (at->lanes != VL)
        run_input_sums(s, &e, first, pixels, sums, at->lanes, conv->dtype);
    else if (conv->dtype == SEPNET_BFLOAT16)
        run_input_sums(s, &e, first, pixels, sums, VL, SEPNET_BFLOAT16);
    else
        run_input_sums(s, &e, first, pixels, sums, VL, SEPNET_FLOAT32);
}

static void forward_task(const job_state *s, const task *at, float *scratch, int64_t part) {
    const sepnet_depthwise *conv = s->conv;
    plane in = input_plane(conv, at->rows.out0, at->rows.out1);
    window_plane x = open_input(s, at, in, scratch);
    int64_t step = output_step(conv), out_col = conv->channels * conv->branches, out_row = conv->out_w * out_col;
    int64_t beyond = in.rows - (at->rows.out1 - at->rows.out0 - 1) * conv->stride_h, chunk = chunk_rows(in), next;
    for (int64_t row = at->rows.out0; row < at->rows.out1; row = next) {
        next = sepnet_min(row + chunk, at->rows.out1);
        need_rows(&x, (next - 1 - at->rows.out0) * conv->stride_h + beyond);
        for (int j = 0; j < conv->branches; j++) {
            int64_t channel = output_channel(conv, at->channel, j);
            destination to = {s->y, (at->image * conv->out_h + row) * out_row + channel, out_row, out_col, step, at->lanes,
                              conv->dtype};
            patch p = {.at = scratch + (row * conv->stride_h - in.first_row) * in.cols * VL,
                       .weight = s->packed + at->block * s->filter_taps * VL,
                       .row = conv->stride_h * in.cols * VL,
                       .col = conv->stride_w * VL,
                       .rows = next - row,
                       .cols = conv->out_w,
                       .start = s->bias ? load_strided(s->bias, channel, step, at->lanes, SEPNET_FLOAT32) : splat(0)};
            compute(p, &s->classes[j], &to, scratch + s->x_floats);
            if (s->joined && s->joined->sums)
                output_sums(s, &to, p.rows, p.cols, joined_at(s, part, at->block, j), s->origin + (j * s->blocks + at->block) * VL);
        }
    }
}

/* dL/dx of the input rows [row0, row1) from the unpacked gradients. */
static void input_gradient(const job_state *s, const task *at, plane g, const float *grad, int64_t row0, int64_t row1,
                           float *spare) {
    const sepnet_depthwise *conv = s->conv;
    int64_t sh = conv->stride_h, sw = conv->stride_w, row_elements = conv->in_w * conv->channels;
    for (int64_t r = 0; r < sh; r++)
        for (int64_t c = 0; c < sepnet_min(sw, conv->in_w); c++) {
            int64_t row = row0 + (r - row0 % sh + sh) % sh;
            if (row >= row1) continue;
            int64_t index = (at->image * conv->in_h + row) * row_elements + c * conv->channels + at->channel;
            destination to = {s->grad_x, index, sh * row_elements, sw * conv->channels, 1, at->lanes, conv->dtype};
            patch p = {.at = grad + (row / sh - g.first_row) * g.cols * VL,
                       .weight = s->packed + at->block * s->filter_taps * VL,
                       .row = g.cols * VL,
                       .col = VL,
                       .rows = (row1 - row + sh - 1) / sh,
                       .cols = (conv->in_w - c + sw - 1) / sw,
                       .start = splat(0)};
            compute(p, &s->classes[r * sw + c], &to, spare);
        }
}

/* dL/dweight of a filter: sums over a rectangle of x times dL/dy. Distances are in floats. */
typedef struct {
    const float *x, *grad;
    int64_t rows, cols;
    ptrdiff_t x_row, x_col, grad_row, tap_row, tap_col;
    float *sums;
} correlation;

/* R filter rows by K filter columns, kept in R * K registers. */
INLINE void correlate_strip(const correlation *c, int64_t first, const int R, const int K) {
    const ptrdiff_t tap_row = c->tap_row, tap_col = c->tap_col, x_col = c->x_col;
    vf sum[R * K];
    for (int i = 0; i < R * K; i++) sum[i] = splat(0);
    for (int64_t row = 0; row < c->rows; row++) {
        const float *from = c->x + first * tap_row + row * c->x_row, *g = c->grad + row * c->grad_row;
        for (int64_t col = 0; col < c->cols; col++, from += x_col, g += VL) {
            vf value = *(const vf *)g;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int k = 0; k < K; k++) sum[r * K + k] += *(const vf *)(from + r * tap_row + k * tap_col) * value;
        }
    }
    vf *to = (vf *)(c->sums + first * K * VL);
    for (int i = 0; i < R * K; i++) to[i] += sum[i];
}

/* Registers allow about 12 sums (16 of them in all with AVX2), and 8 hide the latency of the additions. */
#define DEFINE_CORRELATE(K, R)                                                      \
    static void correlate_##K(const correlation *c, int64_t height) {               \
        int64_t r = 0;                                                              \
        for (; r + R <= height; r += R) correlate_strip(c, r, R, K);                \
        for (; r < height; r++) correlate_strip(c, r, 1, K);                        \
    }
DEFINE_CORRELATE(1, 4)
DEFINE_CORRELATE(2, 4)
DEFINE_CORRELATE(3, 3)
DEFINE_CORRELATE(4, 2)
DEFINE_CORRELATE(5, 2)
DEFINE_CORRELATE(6, 1)
DEFINE_CORRELATE(7, 1)

static void weight_gradient(const job_state *s, plane in, const float *x, plane g, const float *grad, int64_t row0, int64_t row1,
                            float *sums) {
    static void (*const by_width[])(const correlation *, int64_t) = {NULL,        correlate_1, correlate_2, correlate_3,
                                                                     correlate_4, correlate_5, correlate_6, correlate_7};
    const sepnet_depthwise *conv = s->conv;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        correlation c = {.x = x + ((row0 * conv->stride_h - b->pad_h - in.first_row) * in.cols - b->pad_w - in.first_col) * VL,
                         .grad = grad + j * s->grad_floats + ((row0 - g.first_row) * g.cols - g.first_col) * VL,
                         .rows = row1 - row0,
                         .cols = conv->out_w,
                         .x_row = conv->stride_h * in.cols * VL,
                         .x_col = conv->stride_w * VL,
                         .grad_row = g.cols * VL,
                         .tap_row = b->dilation_h * in.cols * VL,
                         .tap_col = b->dilation_w * VL,
                         .sums = sums};
        int64_t first = 0, last = b->kernel_h;
        while (first < last && !row_is_alive(conv, b, first)) first++;
        while (last > first && !row_is_alive(conv, b, last - 1)) last--;
        c.x += first * c.tap_row, c.sums += first * b->kernel_w * VL;
        by_width[b->kernel_w](&c, last - first);
        sums += b->kernel_h * b->kernel_w * VL;
    }
}

/* dL/dbias's sums over the output rows [row0, row1), a vector a branch. */
static void bias_gradient(const job_state *s, plane g, const float *grad, int64_t row0, int64_t row1, float *sums) {
    for (int j = 0; j < s->conv->branches; j++) {
        vf sum = splat(0);
        for (int64_t row = row0; row < row1; row++) {
            const vf *from = (const vf *)(grad + j * s->grad_floats + ((row - g.first_row) * g.cols - g.first_col) * VL);
            for (int64_t col = 0; col < s->conv->out_w; col++) sum += from[col];
        }
        ((vf *)sums)[j] += sum;
    }
}

static int64_t block_sums(const job_state *s) { return (s->filter_taps + s->conv->branches) * VL; }

static void backward_task(const job_state *s, const task *at, float *scratch, float *sums, int64_t part) {
    const sepnet_depthwise *conv = s->conv;
    band_rows b = at->rows;
    plane g = gradient_plane(conv, b.in0, b.in1, b.out0, b.out1), in = input_plane(conv, b.out0, b.out1);
    float *grad_start = scratch + s->x_floats, *spare = grad_start + conv->branches * s->grad_floats;
    window_plane x = open_input(s, at, in, scratch), grad[SEPNET_MAX_BRANCHES];
    int64_t reach = 0; /* of an input row: output rows beyond row / stride that its gradient takes from */
    for (int j = 0; j < conv->branches; j++) {
        grad[j] = open_gradient(s, at, g, j, grad_start + j * s->grad_floats);
        reach = sepnet_max(reach, conv->branch[j].pad_h);
    }
    int64_t beyond = in.rows - (b.out1 - b.out0 - 1) * conv->stride_h;
    int64_t chunks = sepnet_max(1, (b.out1 - b.out0) / chunk_rows(in));
    for (int64_t i = 0; i < chunks; i++) {
        int64_t out0 = b.out0 + sepnet_part_begin(b.out1 - b.out0, chunks, i);
        int64_t out1 = b.out0 + sepnet_part_begin(b.out1 - b.out0, chunks, i + 1);
        int64_t in0 = b.in0 + sepnet_part_begin(b.in1 - b.in0, chunks, i);
        int64_t in1 = b.in0 + sepnet_part_begin(b.in1 - b.in0, chunks, i + 1);
        int64_t rows = sepnet_max(out1, sepnet_floor_div(in1 - 1 + reach, conv->stride_h) + 1) - g.first_row;
        for (int j = 0; j < conv->branches; j++) need_rows(&grad[j], rows);
        if (s->want_x && in0 < in1) {
            input_gradient(s, at, g, grad_start, in0, in1, spare);
            if (s->joined && s->joined->before) input_sums(s, at, in0, in1, joined_at(s, part, at->block, 0));
        }
        float *block = sums + at->block * block_sums(s);
        if (s->want_bias) bias_gradient(s, g, grad_start, out0, out1, block + s->filter_taps * VL);
        if (!s->want_weight) continue;
        need_rows(&x, (out1 - 1 - b.out0) * conv->stride_h + beyond);
        weight_gradient(s, in, scratch, g, grad_start, out0, out1, block);
    }
}

static float *open_scratch(const job_state *s, int64_t part) {
    float *scratch = (float *)(s->scratch + part * s->scratch_bytes);
    if (s->bands == 1) memset(scratch, 0, (size_t)s->scratch_bytes); /* the borders, once for all tasks */
    return scratch;
}

static void forward_part(void *context, int64_t part) {
    const job_state *s = context;
    int64_t tasks = count_tasks(s), end = sepnet_part_begin(tasks, s->parts, part + 1);
    float *scratch = open_scratch(s, part);
    for (int64_t i = sepnet_part_begin(tasks, s->parts, part); i < end; i++) {
        task at = nth_task(s, i);
        forward_task(s, &at, scratch, part);
    }
}

static void backward_part(void *context, int64_t part) {
    const job_state *s = context;
    int64_t tasks = count_tasks(s), end = sepnet_part_begin(tasks, s->parts, part + 1);
    float *scratch = open_scratch(s, part);
    size_t floats = (size_t)(s->blocks * block_sums(s));
    float *sums = s->partial + (size_t)part * floats;
    memset(sums, 0, floats * sizeof *sums);
    for (int64_t i = sepnet_part_begin(tasks, s->parts, part); i < end; i++) {
        task at = nth_task(s, i);
        backward_task(s, &at, scratch, sums, part);
    }
}

/* --- sums of all parts ---------------------------------------------------------------------------------------------- */

static void clear_joined_sums(const job_state *s) {
    if (s->joined && s->joined->sums) memset(s->joined_sums, 0, (size_t)(s->parts * 2 * joined_stride(s)) * sizeof(double));
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
    const entry e = open_input(s, &(task){0, 0, channel, {0}, 1}, (plane){0}, NULL).from.entry;
    const float *weight = s->packed + channel / VL * s->filter_taps * VL + channel % VL;
    for (int j = 0; j < branch; j++) weight += conv->branch[j].kernel_h * conv->branch[j].kernel_w * VL;
    float sum = s->bias ? s->bias[output_channel(conv, channel, branch)] : 0;
    for (int64_t r = 0; r < b->kernel_h; r++)
        for (int64_t c = 0; c < b->kernel_w; c++, weight += VL) {
            int64_t row = r * b->dilation_h - b->pad_h, col = c * b->dilation_w - b->pad_w;
            if (row < 0 || row >= conv->in_h || col < 0 || col >= conv->in_w) continue;
            vf value = load_lanes(s->x, (row * conv->in_w + col) * conv->channels + channel, 1, conv->dtype);
            sum += *weight * enter(&e, value, value, e.way)[0];
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

/* --- weights ------------------------------------------------------------------------------------------------------- */

/* Element of a weight array that holds the first tap of a channel. */
static int64_t weight_element(const sepnet_depthwise *conv, int64_t channel, int branch) {
    const sepnet_branch *b = conv->branch;
    if (conv->interleaved) return (channel * conv->branches + branch) * b->kernel_h * b->kernel_w;
    int64_t base = 0;
    for (int j = 0; j < branch; j++) base += b[j].kernel_h * b[j].kernel_w * conv->channels;
    return base + channel * b[branch].kernel_h * b[branch].kernel_w;
}

static void pack_weights(const job_state *s, const float *weight) {
    const sepnet_depthwise *conv = s->conv;
    memset(s->packed, 0, (size_t)(s->blocks * s->filter_taps * VL) * sizeof *s->packed);
    for (int64_t c = 0; c < conv->channels; c++) {
        float *to = s->packed + c / VL * s->filter_taps * VL + c % VL;
        for (int j = 0; j < conv->branches; j++) {
            const float *from = weight + weight_element(conv, c, j);
            int64_t size = conv->branch[j].kernel_h * conv->branch[j].kernel_w;
            for (int64_t tap = 0; tap < size; tap++, to += VL) *to = from[tap];
        }
    }
}

/* Sums of the parts, in their order, into the layouts of weight and bias. */
static void unpack_sums(const job_state *s, float *grad_weight, float *grad_bias) {
    const sepnet_depthwise *conv = s->conv;
    int64_t floats = s->blocks * block_sums(s);
    for (int64_t part = 1; part < s->parts; part++)
        for (int64_t i = 0; i < floats; i += VL) *(vf *)(s->partial + i) += *(const vf *)(s->partial + part * floats + i);
    for (int64_t c = 0; c < conv->channels; c++) {
        const float *from = s->partial + c / VL * block_sums(s) + c % VL;
        for (int j = 0; j < conv->branches; j++) {
            int64_t size = conv->branch[j].kernel_h * conv->branch[j].kernel_w;
            if (grad_weight) {
                float *to = grad_weight + weight_element(conv, c, j);
                for (int64_t tap = 0; tap < size; tap++) to[tap] = from[tap * VL];
            }
            from += size * VL;
        }
        if (grad_bias)
            for (int j = 0; j < conv->branches; j++) grad_bias[output_channel(conv, c, j)] = from[j * VL];
    }
}

/* --- entry points -------------------------------------------------------------------------------------------------- */

enum { ALIGN = 64 };

static int64_t aligned(int64_t bytes) { return sepnet_round_up(bytes, ALIGN); }

static job_state make_state(const sepnet_depthwise *conv, int backward) {
    job_state s = {.conv = conv};
    s.blocks = count_blocks(conv);
    s.bands = count_bands(conv, backward);
    s.filter_taps = filter_taps(conv);
    s.parts = count_parts(&s);
    measure_bands(conv, s.bands, &s.x_floats, &s.grad_floats);
    int64_t floats = s.x_floats, rows = conv->out_h, cols = conv->out_w;
    if (backward) floats += conv->branches * s.grad_floats, rows = conv->in_h, cols = conv->in_w;
    int whole_vectors = conv->channels % VL == 0 && (backward || output_step(conv) == 1);
    s.scratch_bytes = aligned((floats + (whole_vectors ? 0 : rows * cols * VL)) * (int64_t)sizeof(float));
    return s;
}

static int64_t classes_bytes(const sepnet_depthwise *conv, int backward) {
    int64_t classes = backward ? conv->stride_h * conv->stride_w : conv->branches;
    return aligned(classes * (int64_t)sizeof(taps));
}

static int64_t weight_bytes(const job_state *s) { return aligned(s->blocks * s->filter_taps * VL * (int64_t)sizeof(float)); }

static int64_t sums_bytes(const job_state *s) { return aligned(s->parts * s->blocks * block_sums(s) * (int64_t)sizeof(float)); }

static int64_t origin_bytes(const job_state *s) { return aligned(joined_stride(s) * (int64_t)sizeof(float)); }

static int64_t joined_bytes(const job_state *s) {
    return origin_bytes(s) + aligned(s->parts * 2 * joined_stride(s) * (int64_t)sizeof(double));
}

static int64_t depthwise_workspace(const sepnet_depthwise *conv, int backward) {
    job_state s = make_state(conv, backward);
    int64_t sums = backward ? sums_bytes(&s) : 0;
    return ALIGN + classes_bytes(conv, backward) + weight_bytes(&s) + sums + joined_bytes(&s) + s.parts * s.scratch_bytes;
}

static void lay_out(job_state *s, void *workspace, int backward) {
    char *at = (char *)aligned((int64_t)(intptr_t)workspace);
    s->classes = (taps *)at;
    at += classes_bytes(s->conv, backward);
    s->packed = (float *)at;
    s->partial = (float *)(at + weight_bytes(s));
    at += weight_bytes(s) + (backward ? sums_bytes(s) : 0);
    s->origin = (float *)at;
    s->joined_sums = (double *)(at + origin_bytes(s));
    s->scratch = at + joined_bytes(s);
}

static void depthwise_forward(const sepnet_depthwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const float *bias, void *y, void *workspace) {
    job_state s = make_state(conv, 0);
    lay_out(&s, workspace, 0);
    s.joined = joined, s.x = x, s.bias = bias, s.y = y;
    plane p = input_plane(conv, 0, conv->out_h);
    for (int j = 0; j < conv->branches; j++) forward_taps(conv, p, j, &s.classes[j]);
    pack_weights(&s, weight);
    clear_joined_sums(&s);
    if (joined && joined->sums) find_origins(&s);
    sepnet_run_parts(forward_part, &s, s.parts, conv->threads);
    if (joined && joined->sums) finish_output_sums(&s);
}

static void depthwise_backward(const sepnet_depthwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                               const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    job_state s = make_state(conv, 1);
    lay_out(&s, workspace, 1);
    s.joined = joined, s.x = x, s.grad = grad, s.grad_x = grad_x;
    s.want_x = grad_x != NULL, s.want_weight = grad_weight != NULL, s.want_bias = grad_bias != NULL;
    plane p = gradient_plane(conv, 0, conv->in_h, 0, conv->out_h);
    for (int64_t r = 0; r < conv->stride_h; r++)
        for (int64_t c = 0; c < conv->stride_w; c++)
            backward_taps(conv, p, s.grad_floats, r, c, &s.classes[r * conv->stride_w + c]);
    pack_weights(&s, weight);
    clear_joined_sums(&s);
    sepnet_run_parts(backward_part, &s, s.parts, conv->threads);
    unpack_sums(&s, grad_weight, grad_bias);
    if (joined && joined->sums) reduce_joined_sums(&s, 1, joined->sums, joined->sums + conv->channels);
}
