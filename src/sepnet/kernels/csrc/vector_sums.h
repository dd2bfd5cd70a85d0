/* Sums of half_weights.h by vectors. The left map is packed as the right one is: [32 channels][step][unit][channel]. */

/* Channels [begin, end) of 32 pixels from `row` on as step `step`; 32 channels are `apart` floats. */
INLINE void pack_left(const weights_job *s, int64_t begin, int64_t end, int64_t row, int64_t stop, float *to, int64_t apart, int64_t step,
                      const int entering) {
    to += step * STEP_FLOATS;
    for (int64_t i = 0; i < STEP_PIXELS; i += 2, to += CHANNELS)
        pack_pair(s, pixel_at(s->l, s->left, row + i, stop, s->zeros), pixel_at(s->l, s->left, row + i + 1, stop, s->zeros), begin, end,
                  to, apart, entering);
}

/* A block of sums, with so many steps' products; of the first ones the sums begin. The next block's are fetched, as those of many weights
 * come from the last cache. */
INLINE void add_block(float *sums, const float *left, int64_t apart, const float *panel, int64_t steps, int first) {
    (void)apart;
    for (int top = 0; top < CHANNELS; top += ROWS) {
        row_sums sum;
        vf *at = (vf *)(sums + top * CHANNELS);
        fetch((const char *)(sums + (CHANNELS + top) * CHANNELS), ROWS * CHANNELS * sizeof *sums);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < CHANNELS / VL; v++) sum[r][v] = first ? splat(0) : at[r * (CHANNELS / VL) + v];
        add_units(sum, left + top, 1, CHANNELS, panel, steps * UNITS);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < CHANNELS / VL; v++) at[r * (CHANNELS / VL) + v] = sum[r][v];
    }
}

/* Sums over pixels of a panel's 32 channels. */
INLINE void add_bias_of_panel(double *sums, const float *panel, int64_t steps) {
    const vf one = (vf)(0x3f803f80 - (vu){0}); /* a pair of ones */
    for (int v = 0; v < CHANNELS; v += VL) {
        vf sum = splat(0);
        for (int64_t u = 0; u < steps * UNITS; u++) sum = add_product(sum, *(const vf *)(panel + u * CHANNELS + v), one, PAIRS);
        add_doubles(sums + v, sum);
    }
}

INLINE void add_bias_of_left(double *sums, const float *left, int64_t apart, int64_t steps) {
    (void)apart;
    add_bias_of_panel(sums, left, steps);
}
