/* Blocks of half_pointwise.h by vectors: the sums of a few of a block's pixels stay in registers, and are written from them. */

enum { ROWS = 8 }; /* pixels */

typedef vf row_sums[ROWS][CHANNELS / VL];

/* Of a band. */
typedef struct {
    result_sums sums;
} results;

static void set_up_tiles(void) {}

static void give_tiles_back(void) {}

INLINE void begin_blocks(results *r) { (void)r; }

INLINE void clear_sums(row_sums sum) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < CHANNELS / VL; v++) sum[r][v] = splat(0);
}

/* So many units, each of left[r * row + u * step] with row u of a panel. */
INLINE void add_units(row_sums sum, const float *left, int64_t row, int64_t step, const float *panel, int64_t units) {
    for (int64_t u = 0; u < units; u++, left += step, panel += CHANNELS) {
        vf right[CHANNELS / VL];
#pragma GCC unroll 2
        for (int v = 0; v < CHANNELS / VL; v++) right[v] = *(const vf *)(panel + v * VL);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const vf value = splat(left[r * row]);
#pragma GCC unroll 2
            for (int v = 0; v < CHANNELS / VL; v++) sum[r][v] = add_product(sum[r][v], value, right[v], PAIRS);
        }
    }
}

INLINE void multiply_block(const tall_product *s, results *r, place to, const float *a, const float *panel, lines_ahead *next,
                           const int kind) {
    const int64_t depth = s->depth / 2, shares = PIXELS / ROWS, lines = (next->lines * (depth / UNITS) + shares - 1) / shares;
    writer w;
    for (int64_t row = 0; row < to.rows; row += ROWS) {
        row_sums sum;
        next->at = fetch(next->at, (size_t)(lines * CACHE_LINE));
        clear_sums(sum);
        add_units(sum, a + row * depth, depth, 1, panel, depth);
        if (row == 0) w = open_writer(&r->sums, s->bias, &s->gate, to.col, sum[0], to.fresh, s->streams, kind);
        const int64_t rows = sepnet_min(ROWS, to.rows - row);
        if (rows < ROWS) {
            for (int64_t i = 0; i < rows; i++) write_block_row(s, &w, to, row + i, sum[i], kind);
            continue;
        }
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) write_block_row(s, &w, to, row + i, sum[i], kind);
    }
    close_writer(&w, &r->sums, to.col, kind);
}

INLINE void finish_blocks(const tall_product *s, results *r, const int kind) { (void)s, (void)r, (void)kind; }
