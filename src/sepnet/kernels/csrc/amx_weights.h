/* Gradients of the weights and the bias of a pointwise convolution of bfloat16 maps with AMX: g' x, a sum over all pixels. Included after
 * amx_pointwise.h.
 *
 * Of one of the two maps pixels must become columns, which takes longer than to pack the other: it is the one of fewer channels, "left"
 * here. Some pixels at a time are packed and added to a sum of floats for all of the weights, tile by tile. Threads share the pixels, or,
 * where the weights are too many for that, the left channels. The bias' gradient is a product with ones. */

enum { LEFT_TILE = 16 * 16 };              /* units: 16 channels of 32 pixels */
enum { STEP_PIXELS = 32 };                 /* of a tile */
enum { MOST_STEPS = 16, LEAST_STEPS = 8 }; /* packed at once */
enum { PACKED_BYTES = 512 << 10 };
enum { SHARED_WEIGHTS = 1 << 18 };         /* up to which each thread may have a sum of its own */
enum { LEAST_SHARE = 8 * STEP_PIXELS };    /* pixels that are worth one */

typedef struct {
    int64_t rows, left, right; /* channels */
    const uint16_t *l, *r;
    side enters;         /* of x */
    int bias_of_left;    /* g is the left one */
    int64_t steps;       /* of pixels, packed at once */
    int64_t blocks, shares, block; /* of left channels; of pixels */
    float *grad_weight, *grad_bias; /* (out, in); NULL if nobody asks */
    const tall_product *tall; /* dL/dx, which is computed of the same pixels while they are in cache, or NULL */
    uint16_t *zeros;     /* a pixel */
    char *scratch;       /* a task: sums of the weights, of the bias, packed maps */
    int64_t scratch_bytes;
} weights_job;

static int64_t left_bytes(const weights_job *s) { return s->steps * (s->block / 16) * LEFT_TILE * (int64_t)sizeof(float); }
static int64_t right_bytes(const weights_job *s) { return s->steps * (s->right / 16) * LEFT_TILE * (int64_t)sizeof(float); }
static int64_t sums_of_weights(const weights_job *s) { return s->block * s->right * (int64_t)sizeof(float); }
static int64_t sums_of_bias(const weights_job *s) { return aligned(sepnet_max(s->block, s->right) * (int64_t)sizeof(double)); }

static weights_job make_weights_job(const sepnet_pointwise *conv) {
    weights_job s = {.rows = conv->rows, .bias_of_left = conv->out < conv->in};
    s.left = sepnet_min(conv->in, conv->out), s.right = sepnet_max(conv->in, conv->out);
    s.blocks = s.left * s.right > SHARED_WEIGHTS ? sepnet_min(conv->threads, s.left / CHANNELS) : 1;
    s.block = sepnet_round_up((s.left + s.blocks - 1) / s.blocks, CHANNELS);
    s.blocks = (s.left + s.block - 1) / s.block;
    s.shares = sepnet_max(1, sepnet_min(conv->threads / s.blocks, conv->rows / LEAST_SHARE));
    const int64_t fit = PACKED_BYTES / ((s.block + s.right) * STEP_PIXELS * (int64_t)sizeof(uint16_t));
    s.steps = sepnet_max(LEAST_STEPS, sepnet_min(MOST_STEPS, fit));
    s.scratch_bytes = sums_of_weights(&s) + sums_of_bias(&s) + left_bytes(&s) + right_bytes(&s);
    return s;
}

static int64_t weights_bytes(const weights_job *s) {
    return aligned(s->right * (int64_t)sizeof *s->zeros) + s->blocks * s->shares * s->scratch_bytes;
}

/* --- packing ------------------------------------------------------------------------------------------------------------------ */

/* The pixels of a step; beyond the last one of all there are zeros. */
INLINE const uint16_t *pixel_at(const uint16_t *map, int64_t channels, int64_t row, int64_t end, const uint16_t *zeros) {
    return row < end ? map + row * channels : zeros;
}

/* Of 16 channels. */
INLINE vf two_pixels(const weights_job *s, const uint16_t *first, const uint16_t *second, int64_t c, const int entering) {
    return entering ? load_entering(&s->enters, first, second, c) : load_pairs(first + c, second + c);
}

/* Channels [begin, end) of 32 pixels from `row` on to left tiles, `apart` floats from one to the next. */
INLINE void pack_left(const weights_job *s, int64_t begin, int64_t end, int64_t row, int64_t stop, float *to, int64_t apart,
                      const int entering) {
    for (int64_t c = begin; c < end; c += VL, to += apart) {
        vf line[VL];
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++)
            line[i] = two_pixels(s, pixel_at(s->l, s->left, row + 2 * i, stop, s->zeros),
                                 pixel_at(s->l, s->left, row + 2 * i + 1, stop, s->zeros), c, entering);
        turn_units(line);
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) *(vf *)(to + i * VL) = line[i];
    }
}

/* All channels of 32 pixels to panels, `apart` floats from one to the next. Those of the next 32 are fetched meanwhile. */
INLINE void pack_right(const weights_job *s, int64_t row, int64_t stop, float *to, int64_t apart, const int entering) {
    const char *next_left = (const char *)(s->l + (row + STEP_PIXELS) * s->left);
    const char *next_right = (const char *)(s->r + (row + STEP_PIXELS) * s->right);
    for (int64_t i = 0; i < STEP_PIXELS; i += 2, to += SQ_COLS) {
        next_left = fetch(next_left, (size_t)(2 * s->left) * sizeof *s->l);
        next_right = fetch(next_right, (size_t)(2 * s->right) * sizeof *s->r);
        const uint16_t *first = pixel_at(s->r, s->right, row + i, stop, s->zeros);
        const uint16_t *second = pixel_at(s->r, s->right, row + i + 1, stop, s->zeros);
        for (int64_t c = 0; c < s->right; c += SQ_COLS)
            for (int v = 0; v < SQ_VECTORS; v++)
                *(vf *)(to + c / SQ_COLS * apart + v * VL) = two_pixels(s, first, second, c + v * VL, entering);
    }
}

/* --- products ----------------------------------------------------------------------------------------------------------------- */

/* A tile of sums, with so many steps' products; of the first ones the sums begin. */
INLINE void add_tile(float *sums, const float *left, int64_t left_apart, const float *panel, int64_t steps, int first) {
    enum { SUMS_STEP = SQ_COLS * sizeof(float) };
    compiler_stores_all(panel);
    if (first) {
        clear_sums();
    } else {
        _tile_loadd(0, sums, SUMS_STEP);
        _tile_loadd(1, sums + VL, SUMS_STEP);
        _tile_loadd(2, sums + VL * SQ_COLS, SUMS_STEP);
        _tile_loadd(3, sums + VL * SQ_COLS + VL, SUMS_STEP);
    }
    for (int64_t k = 0; k < steps; k++, left += LEFT_TILE, panel += SQ_UNITS * SQ_COLS)
        multiply_step(left, left + left_apart, VL * sizeof(float), panel);
    store_sums(sums);
}

static const uint32_t ones[VL] __attribute__((aligned(CACHE_LINE))) = {
    0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80,
    0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};

/* Sums over pixels of 16 channels of each of two left tiles, or of a panel's 32. */
INLINE void add_bias(double *sums, const float *one, const float *other, int64_t apart, int64_t row_bytes, int64_t steps, int of_left) {
    float found[2][VL][VL] __attribute__((aligned(CACHE_LINE)));
    compiler_stores_all(one);
    _tile_loadd(6, ones, 0); /* sixteen times the same */
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t k = 0; k < steps; k++, one += apart, other += apart) {
        _tile_loadd(4, one, row_bytes);
        _tile_loadd(5, other, row_bytes);
        if (of_left) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
        } else {
            _tile_dpbf16ps(0, 6, 4);
            _tile_dpbf16ps(1, 6, 5);
        }
    }
    _tile_stored(0, found[0], sizeof found[0][0]);
    _tile_stored(1, found[1], sizeof found[1][0]);
    for (int i = 0; i < 2 * VL; i++) sums[i] += (double)(of_left ? found[i / VL][i % VL][0] : found[i / VL][0][i % VL]);
}

/* Where the parts of a task's scratch are. */
typedef struct {
    float *sums, *left, *right; /* sums: [left tile of 32][panel][32][32] */
    double *bias;
} task_scratch;

static task_scratch scratch_of(const weights_job *s, int64_t task) {
    char *at = s->scratch + task * s->scratch_bytes;
    task_scratch t = {.sums = (float *)at, .bias = (double *)(at + sums_of_weights(s))};
    t.left = (float *)((char *)t.bias + sums_of_bias(s));
    t.right = (float *)((char *)t.left + left_bytes(s));
    return t;
}

/* Channels [begin, end) on the left, and so many packed steps. */
static void add_steps(const weights_job *s, task_scratch t, int64_t begin, int64_t end, int64_t steps, int first) {
    const int64_t left_apart = s->steps * LEFT_TILE, right_apart = s->steps * SQ_UNITS * SQ_COLS;
    float *sums = t.sums;
    for (int64_t c = 0; c < end - begin; c += CHANNELS) {
        const float *left = t.left + c / 16 * left_apart, *panel = t.right;
        if (s->grad_bias && s->bias_of_left)
            add_bias(t.bias + c, left, left + left_apart, LEFT_TILE, VL * sizeof(float), steps, 1);
        for (int64_t n = 0; n < s->right; n += SQ_COLS, panel += right_apart, sums += SQ_ROWS * SQ_COLS) {
            if (s->grad_bias && !s->bias_of_left && begin + c == 0) /* the same in every block */
                add_bias(t.bias + n, panel, panel + VL, SQ_UNITS * SQ_COLS, SQ_COLS * sizeof(float), steps, 0);
            if (s->grad_weight) add_tile(sums, left, left_apart, panel, steps, first);
        }
    }
}

/* The packed step `steps`, of the pixels from `row` on. */
static void pack_step(const weights_job *s, int64_t begin, int64_t end, int64_t row, int64_t stop, const task_scratch *t, int64_t steps) {
    const int64_t left_apart = s->steps * LEFT_TILE, right_apart = s->steps * SQ_UNITS * SQ_COLS;
    float *left = t->left + steps * LEFT_TILE, *right = t->right + steps * SQ_UNITS * SQ_COLS;
    const int entering = s->enters.scale != NULL;
    if (entering && !s->bias_of_left)
        pack_left(s, begin, end, row, stop, left, left_apart, 1);
    else
        pack_left(s, begin, end, row, stop, left, left_apart, 0);
    if (entering && s->bias_of_left)
        pack_right(s, row, stop, right, right_apart, 1);
    else
        pack_right(s, row, stop, right, right_apart, 0);
}

/* The first pixel of a share: of a tile. */
static int64_t share_begin(const weights_job *s, int64_t share) {
    return sepnet_min(sepnet_part_begin((s->rows + STEP_PIXELS - 1) / STEP_PIXELS, s->shares, share) * STEP_PIXELS, s->rows);
}

static void weights_part(void *context, int64_t task, sepnet_worker worker) {
    const weights_job own = *(const weights_job *)context, *s = &own;
    const int64_t begin = task % s->blocks * s->block, end = sepnet_min(begin + s->block, s->left), share = task / s->blocks;
    const int64_t stop = share_begin(s, share + 1);
    const task_scratch t = scratch_of(s, task);
    memset(t.bias, 0, (size_t)sums_of_bias(s));
    set_up_tiles();
    int first = 1;
    for (int64_t row = share_begin(s, share); row < stop; first = 0) {
        int64_t steps = 0;
        if (s->tall) multiply_bands(s->tall, row, sepnet_min(row + s->steps * STEP_PIXELS, stop), share, worker.index, first);
        for (; steps < s->steps && row < stop; steps++, row += STEP_PIXELS) pack_step(s, begin, end, row, stop, &t, steps);
        add_steps(s, t, begin, end, steps, first);
    }
    give_tiles_back();
}

/* --- the result --------------------------------------------------------------------------------------------------------------- */

/* A row of tiles: 32 left channels. */
static void put_weights(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const weights_job *s = context;
    const int64_t channel = part * CHANNELS, block = channel / s->block, from = (channel - block * s->block) * s->right;
    for (int64_t n = 0; n < s->right; n += SQ_COLS) {
        square_tile sum, turned;
        const float *first = scratch_of(s, block).sums + from + n * SQ_ROWS;
        memcpy(sum, first, sizeof sum);
        for (int64_t share = 1; share < s->shares; share++) {
            const vf *more = (const vf *)(scratch_of(s, share * s->blocks + block).sums + from + n * SQ_ROWS);
            for (int i = 0; i < SQ_ROWS * SQ_VECTORS; i++) sum[i / SQ_VECTORS][i % SQ_VECTORS] += more[i];
        }
        if (s->bias_of_left) {
            for (int r = 0; r < SQ_ROWS; r++) memcpy(s->grad_weight + (channel + r) * s->right + n, sum[r], sizeof sum[r]);
            continue;
        }
        turn_block((const float *)sum, SQ_ROWS, SQ_COLS, (float *)turned);
        for (int c = 0; c < SQ_COLS; c++) memcpy(s->grad_weight + (n + c) * s->left + channel, turned[c], sizeof turned[c]);
    }
}

static void put_bias(const weights_job *s) {
    const int64_t channels = s->bias_of_left ? s->left : s->right;
    for (int64_t n = 0; n < channels; n++) {
        const int64_t block = s->bias_of_left ? n / s->block : 0, at = s->bias_of_left ? n % s->block : n;
        double sum = 0;
        for (int64_t share = 0; share < s->shares; share++) sum += scratch_of(s, share * s->blocks + block).bias[at];
        s->grad_bias[n] = (float)sum;
    }
}

static void gradients_of_weights(const sepnet_pointwise *conv, side enters, const tall_product *tall, const uint16_t *x,
                                 const uint16_t *grad, float *grad_weight, float *grad_bias, void *workspace) {
    weights_job s = make_weights_job(conv);
    s.enters = enters, s.tall = tall;
    s.l = s.bias_of_left ? grad : x, s.r = s.bias_of_left ? x : grad;
    s.grad_weight = grad_weight, s.grad_bias = grad_bias;
    s.zeros = (uint16_t *)aligned((int64_t)(intptr_t)workspace);
    memset(s.zeros, 0, (size_t)s.right * sizeof *s.zeros);
    s.scratch = (char *)s.zeros + aligned(s.right * (int64_t)sizeof *s.zeros);
    sepnet_run_parts(weights_part, &s, s.blocks * s.shares, conv->threads);
    if (grad_weight) sepnet_run_parts(put_weights, &s, s.left / CHANNELS, conv->threads);
    if (grad_bias) put_bias(&s);
}

/* --- altogether --------------------------------------------------------------------------------------------------------------- */

static int64_t pointwise_workspace(const sepnet_pointwise *conv, int backward) {
    if (conv->in % CHANNELS || conv->out % CHANNELS) return -1;
    if (!backward) return ALIGN + tall_bytes(conv->in, conv->out, conv->threads);
    const weights_job s = make_weights_job(conv);
    return 2 * ALIGN + tall_bytes(conv->out, conv->in, conv->threads) + weights_bytes(&s);
}

static void pointwise_forward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const float *bias, void *y, void *workspace) {
    tall_product s = {.rows = conv->rows, .depth = conv->in, .cols = conv->out, .threads = conv->threads, .a = x, .small = weight,
                      .bias = bias, .transposed = 1, .c = y};
    if (joined) s.enters = open_side(joined->before, conv->in, joined->before_relu), s.sums = joined->sums ? MOMENTS : NO_SUMS;
    run_tall(s, joined ? joined->sums : NULL, workspace);
}

static void pointwise_backward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                               const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    tall_product s = {.rows = conv->rows, .depth = conv->out, .cols = conv->in, .threads = conv->threads, .a = grad, .small = weight,
                      .c = grad_x};
    const side before = open_side(joined ? joined->before : NULL, conv->in, joined && joined->before_relu);
    if (before.scale && joined->sums) s.sums = GATED, s.gate = before, s.of = x;
    const weights_job weights = make_weights_job(conv);
    const int together = grad_x && grad_weight && weights.blocks == 1;
    if (together) {
        prepare_tall(&s, workspace);
        s.parts = weights.shares;
    } else if (grad_x) {
        run_tall(s, joined ? joined->sums : NULL, workspace);
    }
    char *rest = (char *)workspace + tall_bytes(conv->out, conv->in, conv->threads) + ALIGN;
    if (grad_weight || grad_bias) gradients_of_weights(conv, before, together ? &s : NULL, x, grad, grad_weight, grad_bias, rest);
    if (together && s.sums) reduce_result_sums(&s, joined->sums);
}
