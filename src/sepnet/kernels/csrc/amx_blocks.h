/* Blocks of half_pointwise.h by AMX. Tiles' instructions run beside vectors': a block's rows are written while the next one is multiplied. */

/* Of a band: the last block's are still to be written. */
typedef struct {
    square_tile sum[2];
    int at; /* which of the two */
    place last;
    result_sums sums;
} results;

INLINE void begin_blocks(results *r) { r->at = 0, r->last = (place){0}; }

/* The writer of that block. */
INLINE writer open_last(const tall_product *s, const results *r, const int kind) {
    return open_writer(&r->sums, s->bias, &s->gate, r->last.col, r->sum[r->at][0], r->last.fresh, s->streams, kind);
}

INLINE void write_rows(const tall_product *s, const results *r, writer *w, int64_t begin, int64_t end, const int kind) {
    for (int64_t row = begin; row < end; row++) write_block_row(s, w, r->last, row, r->sum[r->at][row], kind);
}

/* A block's products, and meanwhile the rows of the one before, so many with a step: nothing would be multiplied while they are written.
 * Some of the next pixels' lines are fetched with each step, as many as it reads: in one go they would wait for each other. */
INLINE void multiply_block(const tall_product *s, results *r, place to, const float *a, const float *panel, lines_ahead *next,
                           const int kind) {
    const int64_t depth = s->depth / 2, steps = depth / UNITS, share = (r->last.rows + steps - 1) / steps;
    writer w = open_last(s, r, kind);
    clear_sums();
    compiler_stores_all(panel);
    for (int64_t u = 0, row = 0; u < depth; u += UNITS, row += share, panel += UNITS * CHANNELS) {
        next->at = fetch(next->at, (size_t)(next->lines * CACHE_LINE));
        multiply_step(a + u, a + u + VL * depth, depth * (int64_t)sizeof(float), panel);
        write_rows(s, r, &w, row, sepnet_min(row + share, r->last.rows), kind);
    }
    close_writer(&w, &r->sums, r->last.col, kind);
    r->at ^= 1;
    store_sums((float *)r->sum[r->at]);
    r->last = to;
}

INLINE void finish_blocks(const tall_product *s, results *r, const int kind) {
    writer w = open_last(s, r, kind);
    write_rows(s, r, &w, 0, r->last.rows, kind);
    close_writer(&w, &r->sums, r->last.col, kind);
    r->last = (place){0};
}
