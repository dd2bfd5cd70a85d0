/* Sums of half_weights.h by AMX. Of the left map 16 channels of 32 pixels are a tile, whose rows are channels: [tile][step][16][unit]. */

enum { TILE_UNITS = VL * UNITS };

/* Channels [begin, end) of 32 pixels from `row` on as step `step`; 32 channels are `apart` floats. */
INLINE void pack_left(const weights_job *s, int64_t begin, int64_t end, int64_t row, int64_t stop, float *to, int64_t apart, int64_t step,
                      const int entering) {
    to += step * TILE_UNITS;
    for (int64_t c = begin; c < end; c += VL, to += apart / 2) {
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

/* A block of sums, with so many steps' products; of the first ones the sums begin. */
INLINE void add_block(float *sums, const float *left, int64_t apart, const float *panel, int64_t steps, int first) {
    enum { SUMS_STEP = CHANNELS * sizeof(float) };
    compiler_stores_all(panel);
    if (first) {
        clear_sums();
    } else {
        _tile_loadd(0, sums, SUMS_STEP);
        _tile_loadd(1, sums + VL, SUMS_STEP);
        _tile_loadd(2, sums + VL * CHANNELS, SUMS_STEP);
        _tile_loadd(3, sums + VL * CHANNELS + VL, SUMS_STEP);
    }
    for (int64_t k = 0; k < steps; k++, left += TILE_UNITS, panel += STEP_FLOATS)
        multiply_step(left, left + apart / 2, VL * sizeof(float), panel);
    store_sums(sums);
}

static const uint32_t ones[VL] __attribute__((aligned(CACHE_LINE))) = {
    0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80,
    0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};

/* Sums over pixels of 16 channels of each of two left tiles, or of a panel's 32. */
INLINE void add_bias(double *sums, const float *one, const float *other, int64_t apart, int64_t row_bytes, int64_t steps,
                     const int of_left) {
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

INLINE void add_bias_of_left(double *sums, const float *left, int64_t apart, int64_t steps) {
    add_bias(sums, left, left + apart / 2, TILE_UNITS, VL * sizeof(float), steps, 1);
}

INLINE void add_bias_of_panel(double *sums, const float *panel, int64_t steps) {
    add_bias(sums, panel, panel + VL, STEP_FLOATS, CHANNELS * sizeof(float), steps, 0);
}
