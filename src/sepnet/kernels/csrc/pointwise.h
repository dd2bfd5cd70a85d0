/* Pointwise convolution of float32 maps, forward and dL/dx, as matrix products: a map's pixels are the rows of a tall matrix. One
 * vector length; included after pack.h and sides.h.
 *
 * A tile of results, TILE_ROWS by two vectors, stays in registers while the sum runs: a step loads two vectors, spreads
 * TILE_ROWS values, and multiplies and adds 2 * TILE_ROWS vectors, so that multiplying is the slowest of the three. y = x w' and dL/dx = g w
 * take the tall matrix as it lies, in its order, or a band of it as it enters behind a normalisation, and the small one from panels of a
 * tile's width, which fit the caches. What a band of rows reads from memory is fetched while the one before is computed. */

enum { TILE_ROWS = VL == 16 ? 14 : 6, TILE_COLS = 2 * VL };
enum { BAND_ROWS = 8 * TILE_ROWS };                          /* of the tall matrix: what is fetched ahead */
enum { MOST_DEPTH = 256, MOST_PANELS = 8 };                  /* of the small one: a panel for the L1 cache, so many for the L2 cache */
enum { NEAR_PANELS = 4 };                                    /* copied together: whole lines of a pixel, or of a row of weights */
enum { SUM_PARTS = 8 };                                      /* of a thread, which each have sums of their own */

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

static int64_t panels_of(int64_t cols) { return (cols + TILE_COLS - 1) / TILE_COLS; }

static int64_t panel_floats(int64_t depth, int64_t cols) { return depth * panels_of(cols) * TILE_COLS; }

/* c (rows, cols) = a (rows, depth) * small (depth, cols) + bias. `transposed`: small lies as (cols, depth). */
typedef struct {
    int64_t rows, depth, cols;
    const float *a, *small, *bias;
    int transposed, threads;
    float *c;
    side enters;       /* of a */
    int sums;
    side gate;         /* GATED: of the map that c is the gradient of */
    const float *of;   /* that map */
    int64_t parts;     /* of the bands */
    float *panels;     /* [block of rows][panel][row][TILE_COLS] */
    double *part_sums; /* [part][SIDE_ROWS][whole panels] */
    char *scratch;     /* a worker: a band as it enters; floats of sums */
} product;

static int64_t bands_of(int64_t rows) { return (rows + BAND_ROWS - 1) / BAND_ROWS; }

/* Floats from row to row of a band that enters: an odd number of lines, so that rows do not share sets of a cache. */
static int64_t room_step(int64_t depth) {
    const int64_t line = CACHE_LINE / (int64_t)sizeof(float);
    return ((depth + line - 1) / line | 1) * line;
}

static int64_t room_bytes(int64_t depth) { return aligned(BAND_ROWS * room_step(depth) * (int64_t)sizeof(float)); }
static int64_t line_bytes(int64_t cols) { return aligned(SIDE_ROWS * panels_of(cols) * TILE_COLS * (int64_t)sizeof(float)); }
static int64_t packed_bytes(int64_t depth, int64_t cols) { return aligned(panel_floats(depth, cols) * (int64_t)sizeof(float)); }

static int64_t product_bytes(int64_t depth, int64_t cols, int64_t threads) {
    const int64_t sums = SUM_PARTS * threads * SIDE_ROWS * panels_of(cols) * TILE_COLS * (int64_t)sizeof(double);
    return ALIGN + packed_bytes(depth, cols) + threads * (room_bytes(depth) + line_bytes(cols)) + sums;
}

static void place_product(product *s, void *workspace) {
    s->panels = (float *)aligned((int64_t)(intptr_t)workspace);
    s->scratch = (char *)s->panels + packed_bytes(s->depth, s->cols);
    s->part_sums = (double *)(s->scratch + s->threads * (room_bytes(s->depth) + line_bytes(s->cols)));
    s->parts = s->sums ? sepnet_min(bands_of(s->rows), SUM_PARTS * s->threads) : bands_of(s->rows);
}

/* The panels of some columns; they are read in their order. */
static void pack_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const product *s = context;
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

/* A tile of c. `fresh`: its first row is the part's, which sums are about. */
typedef struct {
    int64_t row, left;
    int rows, cols, fresh;
} place;

/* Sums of a tile of which a part is there, from what was written. */
static void sum_corner(const product *s, const result_sums *sums, place at, const int kind) {
    float *origin = sums->line + at.left, *first = origin + sums->channels, *second = first + sums->channels;
    for (int r = 0; r < at.rows; r++)
        for (int c = 0; c < at.cols; c++) {
            const int64_t channel = at.left + c, index = (at.row + r) * s->cols + channel;
            float value = s->c[index], other;
            if (kind == GATED) {
                const float through = s->of[index] * s->gate.scale[channel] + s->gate.shift[channel];
                value = through > 0 || s->gate.passes[0] ? value : 0, other = s->of[index] - s->gate.mean[channel];
            } else {
                if (at.fresh && r == 0) origin[c] = value;
                value -= origin[c], other = value;
            }
            first[c] += value, second[c] += value * other;
        }
}

/* A column of a whole tile, written and summed in registers. What no store can alias is at hand before the first one. */
INLINE void put_summed(const product *s, const result_sums *sums, tile sum, place at, const int v, int add, const int kind) {
    const int64_t left = at.left + v * VL, step = s->cols;
    float *to = s->c + at.row * step + left;
    const float *of = kind == GATED ? s->of + at.row * step + left : NULL;
    const vu passes = s->gate.passes;
    vf *first = lines_of(sums, 1, left), *second = lines_of(sums, 2, left), total = *first, products = *second;
    vf value[TILE_ROWS], about, scale, shift;
    const vf bias = s->bias && !add ? load_lanes(s->bias, left, VL, SEPNET_FLOAT32) : splat(0);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) value[r] = sum[r][v] + (add ? *(const vfu *)(to + r * step) : bias);
    if (kind == GATED) {
        about = load_lanes(s->gate.mean, left, VL, SEPNET_FLOAT32);
        scale = load_lanes(s->gate.scale, left, VL, SEPNET_FLOAT32), shift = load_lanes(s->gate.shift, left, VL, SEPNET_FLOAT32);
    } else {
        if (at.fresh) *lines_of(sums, 0, left) = value[0];
        about = *lines_of(sums, 0, left);
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        *(vfu *)(to + r * step) = value[r];
        vf passing = value[r] - about, other = passing;
        if (kind == GATED) {
            const vf through = *(const vfu *)(of + r * step);
            passing = (vf)((vu)value[r] & ((vu)(through * scale + shift > 0) | passes)), other = through - about;
        }
        total += passing, products += passing * other;
    }
    *first = total, *second = products;
}

/* `add`: to what is there, of other rows of small; `sums`: with these rows the tile is complete. */
INLINE void put_results(const product *s, tile sum, place at, int add, const result_sums *sums, const int kind) {
    const int whole = at.rows == TILE_ROWS && at.cols == TILE_COLS;
    if (kind == NO_SUMS || !sums || !whole) {
        put_tile(sum, s->c + at.row * s->cols + at.left, s->cols, at.rows, at.cols, s->bias && !add ? s->bias + at.left : NULL, add);
        if (kind != NO_SUMS && sums) sum_corner(s, sums, at, kind);
        return;
    }
    put_summed(s, sums, sum, at, 0, add, kind);
    put_summed(s, sums, sum, at, 1, add, kind);
}

/* Rows of a: where they lie, or in a worker's room. */
typedef struct {
    const float *at;
    int64_t step;
} rows_at;

/* One tile of c, from a panel of the block of rows of small from `top` on. `sums`: NULL: it is not yet complete. */
typedef struct {
    const product *s;
    rows_at from; /* of the tile's first */
    place at;
    const float *panel;
    int64_t top, depth;
    const result_sums *sums;
} product_tile;

INLINE void multiply_rows(const product_tile *t, const int kind) {
    const product *s = t->s;
    float *to = s->c + t->at.row * s->cols + t->at.left;
    const float *a[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        const int64_t row = r < t->at.rows ? r : 0; /* rows that are not there: one that is, its sums are not written */
        a[r] = t->from.at + row * t->from.step + t->top;
        __builtin_prefetch(to + row * s->cols, 1);
        if (kind == GATED) __builtin_prefetch(s->of + (t->at.row + row) * s->cols + t->at.left);
    }
    tile sum;
    clear_tile(sum);
    add_products(sum, a, 1, t->panel, t->depth);
    put_results(s, sum, t->at, t->top > 0, t->sums, kind);
}

/* Functions by themselves, so that all registers are the loop's. */
static __attribute__((noinline)) void plain_tile(const product_tile *t) { multiply_rows(t, NO_SUMS); }
static __attribute__((noinline)) void moments_tile(const product_tile *t) { multiply_rows(t, MOMENTS); }
static __attribute__((noinline)) void gated_tile(const product_tile *t) { multiply_rows(t, GATED); }

/* What the rows of a band have in common. */
typedef struct {
    int64_t first, last;
    rows_at from;      /* of the first */
    const char *next;  /* that are fetched meanwhile */
    result_sums *sums;
    int fresh;         /* the part's first ones */
} row_band;

/* A band times panels [begin, end) of the block of rows of small from `top` on. */
static void multiply_panels(const product *s, const row_band *b, int64_t begin, int64_t end, int64_t top) {
    void (*const multiply)(const product_tile *) = s->sums == MOMENTS ? moments_tile : s->sums == GATED ? gated_tile : plain_tile;
    product_tile t = {.s = s, .from = b->from, .top = top, .depth = sepnet_min(MOST_DEPTH, s->depth - top)};
    t.sums = top + t.depth < s->depth ? NULL : b->sums;
    const float *panels = s->panels + top * panels_of(s->cols) * TILE_COLS;
    const char *next = top || begin ? NULL : b->next;
    const size_t share = (size_t)sepnet_round_up(TILE_ROWS * s->depth * (int64_t)sizeof(float) / (end - begin), CACHE_LINE);
    for (int64_t row = b->first; row < b->last; row += TILE_ROWS, t.from.at += TILE_ROWS * t.from.step) {
        t.at.row = row, t.at.rows = (int)sepnet_min(TILE_ROWS, b->last - row), t.at.fresh = b->fresh && row == b->first;
        for (int64_t panel = begin; panel < end; panel++) {
            if (next) next = fetch(next, share);
            t.at.left = panel * TILE_COLS, t.at.cols = (int)sepnet_min(TILE_COLS, s->cols - t.at.left);
            t.panel = panels + panel * t.depth * TILE_COLS;
            multiply(&t);
        }
    }
}

static void multiply_band(const product *s, const row_band *b) {
    const int64_t width = panels_of(s->cols);
    for (int64_t top = 0; top < s->depth; top += MOST_DEPTH)
        for (int64_t panel = 0; panel < width; panel += MOST_PANELS)
            multiply_panels(s, b, panel, sepnet_min(panel + MOST_PANELS, width), top);
}

/* Rows of a as they enter. */
static void enter_band(const product *s, int64_t first, int64_t last, float *room, int64_t step) {
    const side e = s->enters; /* which no store can alias */
    const float *a = s->a + first * s->depth;
    for (int64_t r = first; r < last; r++, a += s->depth, room += step) {
        int64_t c = 0;
        for (; c + VL <= s->depth; c += VL) *(vfu *)(room + c) = enter_value(&e, c, load_lanes(a, c, VL, SEPNET_FLOAT32));
        const int lanes = (int)(s->depth - c);
        if (lanes) store_lanes(room, c, lanes, SEPNET_FLOAT32, enter_lanes(&e, c, lanes, load_lanes(a, c, lanes, SEPNET_FLOAT32)));
    }
}

static rows_at entered_rows(const product *s, int64_t first, int64_t last, float *room) {
    if (!s->enters.scale) return (rows_at){s->a + first * s->depth, s->depth};
    const int64_t step = room_step(s->depth);
    enter_band(s, first, last, room, step);
    return (rows_at){room, step};
}

/* Rows [begin, end) of a part, a band at a time. */
static void multiply_bands(const product *s, int64_t begin, int64_t end, int64_t part, int64_t worker) {
    char *room = s->scratch + worker * (room_bytes(s->depth) + line_bytes(s->cols));
    const int64_t channels = panels_of(s->cols) * TILE_COLS;
    double *own = s->sums ? s->part_sums + part * SIDE_ROWS * channels : NULL;
    result_sums sums = {(float *)(room + room_bytes(s->depth)), own, channels};
    if (s->sums) memset(sums.line, 0, (size_t)channels * sizeof *sums.line); /* origins of columns that are not there */
    for (int64_t first = begin; first < end; first += BAND_ROWS) {
        const int64_t last = sepnet_min(first + BAND_ROWS, end);
        if (s->sums) begin_sums(&sums);
        const rows_at from = entered_rows(s, first, last, (float *)room);
        multiply_band(s, &(row_band){first, last, from, (const char *)(s->a + last * s->depth), &sums, first == begin});
        if (s->sums) keep_sums(&sums, first == begin);
    }
}

/* Pieces so small, where nothing is summed, that no thread waits long for the other's last one. */
static void product_part(void *context, int64_t part, sepnet_worker worker) {
    const product own = *(const product *)context, *s = &own; /* which no store can alias */
    const int64_t begin = first_pixel(s->rows, BAND_ROWS, s->parts, part), end = first_pixel(s->rows, BAND_ROWS, s->parts, part + 1);
    multiply_bands(s, begin, end, part, worker.index);
}

static int64_t same_place(int64_t channel) { return channel; }

/* sums: rows as sepnet_joined says, or NULL. */
static void run_product(product s, double *sums, void *workspace) {
    place_product(&s, workspace);
    sepnet_run_parts(pack_part, &s, (panels_of(s.cols) + NEAR_PANELS - 1) / NEAR_PANELS, s.threads);
    sepnet_run_parts(product_part, &s, s.parts, s.threads);
    const int64_t stride = panels_of(s.cols) * TILE_COLS;
    if (s.sums) add_parts(&(parts_sums){s.part_sums, s.cols, stride, s.parts, s.rows, BAND_ROWS, s.sums, same_place}, sums);
}
