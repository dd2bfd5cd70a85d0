/* Pointwise convolution of float32 maps, forward and backward, as matrix products: a map's pixels are the rows of a tall matrix. One
 * vector length; included after pack.h.
 *
 * A tile of results, TILE_ROWS by two vectors, stays in registers while the sum runs: a step loads two vectors, spreads
 * TILE_ROWS values, and multiplies and adds 2 * TILE_ROWS vectors, so that multiplying is the slowest of the three. y = x w' and dL/dx = g w
 * take the tall matrix as it lies, in its order, and the small one from panels of a tile's width, which fit the caches.
 * dL/dw = g' x sums over the pixels: both matrices are copied, some pixels at a time, into what a tile reads one after the other.
 * What a band of rows reads from memory is fetched while the one before is computed. */

enum { TILE_ROWS = VL == 16 ? 14 : 6, TILE_COLS = 2 * VL };
enum { BAND_ROWS = 8 * TILE_ROWS };                          /* of the tall matrix: what is fetched ahead */
enum { MOST_DEPTH = 256, MOST_PANELS = 8 };                  /* of the small one: a panel for the L1 cache, so many for the L2 cache */
enum { MOST_PIXELS = 128, MOST_OUTPUTS = 43 * TILE_ROWS };   /* of dL/dw: what is copied at once, for the L2 cache */
enum { LEAST_OUTPUTS = 8 * TILE_ROWS };                      /* that are worth a copy of the inputs of their own */
enum { NEAR_PANELS = 4 };                                    /* copied together: whole lines of a pixel, or of a row of weights */
enum { LEAST_SHARE = 256 };                                  /* pixels that are worth a gradient of their own, to be added */

typedef vf tile[TILE_ROWS][2];

/* sum[r] += a[r][i * step] * b[i], i < depth; b: TILE_COLS values each. */
INLINE void add_products(tile sum, const float *const a[TILE_ROWS], int64_t step, const float *b, int64_t depth) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < depth; i++) {
        vf left = *(const vfu *)(b + i * TILE_COLS), right = *(const vfu *)(b + i * TILE_COLS + VL);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) {
            vf value = splat(a[r][i * step]);
            sum[r][0] += value * left;
            sum[r][1] += value * right;
        }
    }
}

INLINE void clear_tile(tile sum) {
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) sum[r][0] = sum[r][1] = splat(0);
}

/* The same as put_tile, value by value. */
INLINE void put_corner(tile sum, float *to, int64_t stride, int rows, int cols, const float *bias, int add) {
    float line[TILE_ROWS][TILE_COLS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) *(vfu *)line[r] = sum[r][0], *(vfu *)(line[r] + VL) = sum[r][1];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) to[r * stride + c] = line[r][c] + (add ? to[r * stride + c] : bias ? bias[c] : 0);
}

/* Writes rows x cols of a tile, or adds them to what is there. bias: of the columns, or NULL; only where nothing is added. A whole tile
 * goes there from its registers. */
INLINE void put_tile(tile sum, float *to, int64_t stride, int rows, int cols, const float *bias, int add) {
    if (rows < TILE_ROWS || cols < TILE_COLS) {
        put_corner(sum, to, stride, rows, cols, bias, add);
        return;
    }
    vf left = bias ? *(const vfu *)bias : splat(0), right = bias ? *(const vfu *)(bias + VL) : splat(0);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        vfu *first = (vfu *)(to + r * stride), *second = (vfu *)(to + r * stride + VL);
        *first = sum[r][0] + (add ? *first : left);
        *second = sum[r][1] + (add ? *second : right);
    }
}

/* --- a tall matrix times a small one ---------------------------------------------------------------------------------------- */

/* c (rows, cols) = a (rows, depth) * small (depth, cols) + bias. */
typedef struct {
    int64_t rows, depth, cols;
    const float *a, *panels, *bias;
    float *c;
} product;

static int64_t panels_of(int64_t cols) { return (cols + TILE_COLS - 1) / TILE_COLS; }

static int64_t panel_floats(int64_t depth, int64_t cols) { return depth * panels_of(cols) * TILE_COLS; }

/* The small matrix and its panels, [block of rows][panel][row][TILE_COLS]. Transposed: element (k, n) is small[n * depth + k]. */
typedef struct {
    const float *small;
    int64_t depth, cols;
    int transposed;
    float *panels;
} packing;

/* The panels of some columns; they are read in their order. */
static void pack_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const packing *s = context;
    const int64_t width = panels_of(s->cols), first = part * NEAR_PANELS, last = sepnet_min(first + NEAR_PANELS, width);
    const int64_t begin = first * TILE_COLS, end = sepnet_min(last * TILE_COLS, s->cols);
    for (int64_t top = 0; top < s->depth; top += MOST_DEPTH) {
        const int64_t depth = sepnet_min(MOST_DEPTH, s->depth - top), apart = depth * TILE_COLS;
        float *to = s->panels + top * width * TILE_COLS + first * apart;
        if (!s->transposed) {
            pack_columns(s->small + top * s->cols, s->cols, depth, begin, end, TILE_COLS, to, apart);
            continue;
        }
        if (end < last * TILE_COLS) memset(to + (last - 1 - first) * apart, 0, (size_t)apart * sizeof *to);
        for (int64_t col = begin; col < end; col += TILE_COLS, to += apart)
            turn_rows(s->small + col * s->depth + top, s->depth, sepnet_min(TILE_COLS, end - col), depth, to, TILE_COLS);
    }
}

static void pack_panels(packing s, int threads) {
    sepnet_run_parts(pack_part, &s, (panels_of(s.cols) + NEAR_PANELS - 1) / NEAR_PANELS, threads);
}

/* One tile of c: rows from `row` on, panel `panel` of the block of rows from `top` on. */
INLINE void product_tile(const product *s, int64_t row, int rows, int64_t panel, const float *panels, int64_t top, int64_t depth) {
    int64_t left = panel * TILE_COLS;
    float *to = s->c + row * s->cols + left;
    const float *a[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        int64_t at = r < rows ? r : 0; /* rows that are not there: one that is, its sums are not written */
        a[r] = s->a + (row + at) * s->depth + top;
        __builtin_prefetch(to + at * s->cols, 1);
    }
    tile sum;
    clear_tile(sum);
    add_products(sum, a, 1, panels + panel * depth * TILE_COLS, depth);
    put_tile(sum, to, s->cols, rows, (int)sepnet_min(TILE_COLS, s->cols - left), s->bias && !top ? s->bias + left : NULL, top > 0);
}

/* Rows [first, last) of c times panels [begin, end); the next rows of a are fetched meanwhile from `next` on, if there is one. */
INLINE void product_block(const product *s, int64_t first, int64_t last, int64_t begin, int64_t end, const float *panels,
                          int64_t top, const char *next) {
    int64_t depth = sepnet_min(MOST_DEPTH, s->depth - top);
    size_t share = (size_t)sepnet_round_up(TILE_ROWS * s->depth * (int64_t)sizeof(float) / (end - begin), 64);
    for (int64_t row = first; row < last; row += TILE_ROWS)
        for (int64_t panel = begin; panel < end; panel++) {
            if (next) next = fetch(next, share);
            product_tile(s, row, (int)sepnet_min(TILE_ROWS, last - row), panel, panels, top, depth);
        }
}

/* A band of rows: pieces so small that no thread waits long for the other's last one. */
static void product_part(void *context, int64_t band, sepnet_worker worker) {
    (void)worker;
    const product *s = context;
    int64_t width = panels_of(s->cols), first = band * BAND_ROWS, last = sepnet_min(first + BAND_ROWS, s->rows);
    for (int64_t top = 0; top < s->depth; top += MOST_DEPTH)
        for (int64_t panel = 0; panel < width; panel += MOST_PANELS) {
            const char *next = top || panel ? NULL : (const char *)(s->a + last * s->depth);
            const float *panels = s->panels + top * width * TILE_COLS;
            product_block(s, first, last, panel, sepnet_min(panel + MOST_PANELS, width), panels, top, next);
        }
}

static void run_product(product s, int threads) {
    sepnet_run_parts(product_part, &s, (s.rows + BAND_ROWS - 1) / BAND_ROWS, threads);
}

/* --- the weights' gradient --------------------------------------------------------------------------------------------------- */

/* A task is a block of outputs and a share of the pixels; the first share writes to the result, the others beside it. */
typedef struct {
    const sepnet_pointwise *conv;
    const float *x, *grad;
    float *grad_weight, *more_weight; /* (out, in): of the first share, and of the others one after the other */
    double *bias_sums;                /* [task][bias_stride]; NULL if nobody asks */
    float *scratch;                   /* a worker: outputs of some pixels, tile by tile; inputs of some panels */
    int64_t block, blocks, shares, bias_stride, scratch_floats;
} weight_job;

static int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

static weight_job make_weight_job(const sepnet_pointwise *conv) {
    weight_job s = {.conv = conv};
    const int64_t most_shares = sepnet_max(1, conv->rows / LEAST_SHARE);
    s.blocks = sepnet_min((conv->threads + most_shares - 1) / most_shares, conv->out / LEAST_OUTPUTS); /* a task for each thread */
    s.blocks = sepnet_max(s.blocks, (conv->out + MOST_OUTPUTS - 1) / MOST_OUTPUTS);
    s.block = sepnet_round_up((conv->out + s.blocks - 1) / s.blocks, TILE_ROWS);
    s.blocks = (conv->out + s.block - 1) / s.block;
    s.shares = conv->threads / gcd(conv->threads, s.blocks); /* as many tasks for each thread */
    s.shares = sepnet_min(s.shares, most_shares);
    s.bias_stride = sepnet_round_up(s.block, VL);
    s.scratch_floats = MOST_PIXELS * (s.block + NEAR_PANELS * TILE_COLS);
    return s;
}

static int64_t bias_doubles(const weight_job *s) { return s->blocks * s->shares * s->bias_stride; }

static int64_t weight_job_bytes(const weight_job *s) {
    int64_t floats = s->conv->threads * s->scratch_floats + (s->shares - 1) * s->conv->in * s->conv->out;
    return floats * (int64_t)sizeof(float) + bias_doubles(s) * (int64_t)sizeof(double);
}

/* Adds the outputs of pixels [first, last), eight in float32 first. */
INLINE void add_outputs(const weight_job *s, int64_t begin, int64_t end, int64_t first, int64_t last, double *sums) {
    for (; first < last; first += 8) {
        int64_t pixels = sepnet_min(8, last - first);
        for (int64_t n = begin; n < end; n += VL) {
            const int lanes = (int)sepnet_min(VL, end - n);
            vf sum = splat(0);
            for (int64_t i = 0; i < pixels; i++)
                sum += lanes == VL ? load_lanes(s->grad, (first + i) * s->conv->out + n, VL, SEPNET_FLOAT32)
                                   : load_lanes(s->grad, (first + i) * s->conv->out + n, lanes, SEPNET_FLOAT32);
            add_doubles(sums + n - begin, sum);
        }
    }
}

/* Adds some pixels' products to a block of the gradient, or writes them if they are the first; the next pixels are fetched. */
INLINE void correlate_pixels(const weight_job *s, int64_t begin, int64_t end, int64_t first, int64_t last, const float *outputs,
                             float *panels, float *to, int add) {
    int64_t in = s->conv->in, out = s->conv->out, tiles = panels_of(in) * ((end - begin + TILE_ROWS - 1) / TILE_ROWS);
    const char *next_x = (const char *)(s->x + last * in), *next_grad = (const char *)(s->grad + last * out);
    size_t share_x = (size_t)((last - first) * in * 4 / tiles), share_grad = (size_t)((last - first) * out * 4 / tiles);
    for (int64_t left = 0, near = 0; left < in; left += TILE_COLS, near = (near + 1) % NEAR_PANELS) {
        int cols = (int)sepnet_min(TILE_COLS, in - left);
        int64_t right = sepnet_min(left + NEAR_PANELS * TILE_COLS, in);
        if (!near) pack_columns(s->x + first * in, in, last - first, left, right, TILE_COLS, panels, TILE_COLS * MOST_PIXELS);
        const float *inputs = panels + near * TILE_COLS * MOST_PIXELS;
        for (int64_t n = begin; n < end; n += TILE_ROWS) {
            next_x = fetch(next_x, share_x), next_grad = fetch(next_grad, share_grad);
            const float *a[TILE_ROWS];
#pragma GCC unroll 16
            for (int r = 0; r < TILE_ROWS; r++) {
                a[r] = outputs + (n - begin) * MOST_PIXELS + r;
                __builtin_prefetch(to + (n + r) * in + left, 1);
            }
            tile sum;
            clear_tile(sum);
            add_products(sum, a, TILE_ROWS, inputs, last - first);
            put_tile(sum, to + n * in + left, in, (int)sepnet_min(TILE_ROWS, end - n), cols, NULL, add);
        }
    }
}

static void weight_part(void *context, int64_t task, sepnet_worker worker) {
    const weight_job *s = context;
    int64_t in = s->conv->in, out = s->conv->out, rows = s->conv->rows, share = task / s->blocks;
    int64_t begin = task % s->blocks * s->block, end = sepnet_min(begin + s->block, out);
    int64_t from = sepnet_part_begin(rows, s->shares, share), stop = sepnet_part_begin(rows, s->shares, share + 1);
    float *outputs = s->scratch + worker.index * s->scratch_floats, *panels = outputs + s->block * MOST_PIXELS;
    float *weight = share ? s->more_weight + (share - 1) * in * out : s->grad_weight;
    double *sums = s->bias_sums ? s->bias_sums + task * s->bias_stride : NULL;
    if (sums) memset(sums, 0, (size_t)s->bias_stride * sizeof *sums);
    for (int64_t first = from; first < stop; first += MOST_PIXELS) {
        int64_t last = sepnet_min(first + MOST_PIXELS, stop);
        if (sums) add_outputs(s, begin, end, first, last, sums);
        if (!s->grad_weight) continue;
        pack_columns(s->grad + first * out, out, last - first, begin, end, TILE_ROWS, outputs, TILE_ROWS * MOST_PIXELS);
        correlate_pixels(s, begin, end, first, last, outputs, panels, weight, first > from);
    }
}

static void add_shares(const weight_job *s, float *grad_bias) {
    int64_t count = s->conv->in * s->conv->out;
    const float *more = s->more_weight;
    for (int64_t share = 1; s->grad_weight && share < s->shares; share++, more += count)
        for (int64_t i = 0; i < count; i++) s->grad_weight[i] += more[i];
    for (int64_t n = 0; grad_bias && n < s->conv->out; n++) {
        double sum = 0;
        for (int64_t share = 0; share < s->shares; share++)
            sum += s->bias_sums[(share * s->blocks + n / s->block) * s->bias_stride + n % s->block];
        grad_bias[n] = (float)sum;
    }
}

static void pointwise_weight_gradient(const sepnet_pointwise *conv, const float *x, const float *grad, float *grad_weight,
                                      float *grad_bias, void *workspace) {
    weight_job s = make_weight_job(conv);
    double *sums = workspace;
    s.x = x, s.grad = grad, s.grad_weight = grad_weight, s.bias_sums = grad_bias ? sums : NULL;
    s.scratch = (float *)(sums + bias_doubles(&s));
    s.more_weight = s.scratch + conv->threads * s.scratch_floats;
    sepnet_run_parts(weight_part, &s, s.blocks * s.shares, conv->threads);
    add_shares(&s, grad_bias);
}

/* --- altogether --------------------------------------------------------------------------------------------------------------- */

static int64_t pointwise_workspace(const sepnet_pointwise *conv, int backward) {
    if (!backward) return panel_floats(conv->in, conv->out) * (int64_t)sizeof(float);
    weight_job s = make_weight_job(conv);
    return sepnet_max(panel_floats(conv->out, conv->in) * (int64_t)sizeof(float), weight_job_bytes(&s));
}

static void pointwise_forward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const float *bias, void *y, void *workspace) {
    (void)joined;
    pack_panels((packing){weight, conv->in, conv->out, 1, workspace}, conv->threads);
    product s = {.rows = conv->rows, .depth = conv->in, .cols = conv->out, .a = x, .panels = workspace, .bias = bias, .c = y};
    run_product(s, conv->threads);
}

static void pointwise_backward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                               const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    (void)joined;
    if (grad_x) {
        pack_panels((packing){weight, conv->out, conv->in, 0, workspace}, conv->threads);
        product s = {.rows = conv->rows, .depth = conv->out, .cols = conv->in, .a = grad, .panels = workspace, .c = grad_x};
        run_product(s, conv->threads);
    }
    if (grad_weight || grad_bias) pointwise_weight_gradient(conv, x, grad, grad_weight, grad_bias, workspace);
}
