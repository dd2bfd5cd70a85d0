/* Products of matrices whose result is symmetric, and others of the same operands: what orthogonal.h is made of. One vector length;
 * included after product_tiles.h.
 *
 * Of a symmetric result only what is on and below the diagonal is computed; it is copied across. A thread takes whole panels, as far as
 * that comes out even, and packs them itself: between the threads' caches goes what other threads have computed, and nothing else. */

/* One product, or two, of the same right matrix and of equal shapes. */
typedef struct {
    product_of one, other;
    int products;
    right_matrix right;
    char *panels; /* some for each worker */
    int64_t parts;
} multiplication;

/* A part's tiles of some neighbouring panels: all that are in [begin, end) of all tiles, panel after panel. */
typedef struct {
    int64_t first, panels, begin, end; /* begin, end: counted from the first panel's first tile on */
} group;

/* The first tile of a panel that is needed, and how many are. */
static int64_t first_tile(const multiplication *m, int64_t panel) { return m->one.weight ? 0 : panel * SQ_COLS / SQ_ROWS; }

static int64_t count_tiles(const multiplication *m, int64_t panel) {
    return (m->one.left.rows + SQ_ROWS - 1) / SQ_ROWS - first_tile(m, panel);
}

/* (A function of its own keeps AVX2's sums in registers.) */
static __attribute__((noinline)) void put_one(const product_of *s, int64_t row, int64_t col, const float *panel, int64_t depth) {
    const product_of own = *s; /* which no store can alias */
    if (HAVE_PAIRS && own.left.dtype == SEPNET_BFLOAT16)
        put_product(&own, row, col, panel, depth, SEPNET_BFLOAT16);
    else
        put_product(&own, row, col, panel, depth, SEPNET_FLOAT32);
}

/* Row after row of tiles, so that the left matrix is read once. */
static void put_group(const multiplication *m, const product_of *s, group g, const float *packed) {
    const int64_t rows = (s->left.rows + SQ_ROWS - 1) / SQ_ROWS, depth = depth_of(m->right);
    for (int64_t t = first_tile(m, g.first); t < rows; t++) {
        const float *panel = packed;
        int64_t at = t - first_tile(m, g.first); /* in the order of all tiles */
        for (int64_t p = g.first; p < g.first + g.panels && first_tile(m, p) <= t; p++) {
            if (at >= g.begin && at < g.end) put_one(s, t * SQ_ROWS, p * SQ_COLS, panel, depth);
            at += count_tiles(m, p) + first_tile(m, p) - first_tile(m, p + 1);
            panel += panel_bytes(m->right) / (int64_t)sizeof *panel;
        }
    }
}

static void multiply_group(const multiplication *m, group g, float *packed) {
    pack_group(m->right, g.first, g.panels, packed, panel_bytes(m->right) / (int64_t)sizeof *packed);
    put_group(m, &m->one, g, packed);
    if (m->products > 1) put_group(m, &m->other, g, packed);
}

static void multiply_part(void *context, int64_t part, sepnet_worker worker) {
    const multiplication *m = context;
    const int64_t panels = count_panels(m->right), at_once = panels_at_once(m->right);
    float *packed = (float *)(m->panels + worker.index * panels_bytes(m->right));
    int64_t tiles = 0, before = 0;
    for (int64_t p = 0; p < panels; p++) tiles += count_tiles(m, p);
    const int64_t begin = sepnet_part_begin(tiles, m->parts, part), end = sepnet_part_begin(tiles, m->parts, part + 1);
    set_up_tiles();
    int64_t p = 0;
    for (; p < panels && before + count_tiles(m, p) <= begin; p++) before += count_tiles(m, p);
    while (p < panels && before < end) {
        group g = {.first = p, .begin = begin - before, .end = end - before};
        for (; p < panels && before < end && g.panels < at_once; p++, g.panels++) before += count_tiles(m, p);
        multiply_group(m, g, packed);
    }
    give_tiles_back();
}

static void multiply(multiplication m, int threads) {
    m.parts = threads;
    sepnet_run_parts(multiply_part, &m, m.parts, threads);
}
