/* Sides (sides.h) of maps of bfloat16: pixels as they enter, and the rows of a block of results, written and summed. Included after
 * sides.h.
 *
 * Sums are kept in the order of registers: of 32 channels, which are a cache line, first the even ones, then the odd ones, as a shift and
 * a mask make floats of a line. */

/* Two vectors of floats, rounded, one after the other. */
INLINE vf narrow_both(vf first, vf second) { return (vf)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

INLINE vf even_values(vf line) { return (vf)((vu)line << 16); }
INLINE vf odd_values(vf line) { return (vf)((vu)line & 0xffff0000u); }

/* So many pixels of a map as they enter. */
static void enter_pixels(const side *from, const uint16_t *map, int64_t rows, int64_t channels, uint16_t *to) {
    const side e = *from; /* which no store can alias */
    for (int64_t r = 0; r < rows; r++, map += channels, to += channels)
        for (int64_t c = 0; c < channels; c += 2 * VL) {
            vf value[2];
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++)
                value[v] = enter_value(&e, c + v * VL, load_lanes(map, c + v * VL, VL, SEPNET_BFLOAT16));
            *(vfu *)(to + c) = narrow_both(value[0], value[1]);
        }
}

/* As load_pairs, of two pixels as they enter, from channel c on. */
INLINE vf load_entering(const side *e, const uint16_t *first, const uint16_t *second, int64_t c) {
    const vf upper = enter_value(e, c, load_lanes(first, c, VL, SEPNET_BFLOAT16));
    const vf lower = enter_value(e, c, load_lanes(second, c, VL, SEPNET_BFLOAT16));
    return pair_halves((__m512i)narrow_both(upper, lower));
}

/* --- sums of results ---------------------------------------------------------------------------------------------------------- */

/* What writes a block's rows and sums them, in registers while it does. */
typedef struct {
    vf bias[2], origin[2];           /* MOMENTS: about these */
    vf mean[2], scale[2], shift[2];  /* GATED */
    vf first[2], second[2];          /* sums */
    vu passes;
    int streams;                     /* past the caches */
} writer;

/* gate: of GATED, in the order of registers. first_row: of the block. */
INLINE writer open_writer(const result_sums *s, const float *bias, const side *gate, int64_t col, const vf first_row[2], int fresh,
                          int streams, const int kind) {
    writer w = {.passes = gate->passes, .streams = streams};
    for (int v = 0; v < 2; v++) {
        w.bias[v] = bias ? load_lanes(bias, col + v * VL, VL, SEPNET_FLOAT32) : splat(0);
        w.first[v] = w.second[v] = splat(0);
        if (kind != GATED) continue;
        w.mean[v] = load_lanes(gate->mean, col + v * VL, VL, SEPNET_FLOAT32);
        w.scale[v] = load_lanes(gate->scale, col + v * VL, VL, SEPNET_FLOAT32);
        w.shift[v] = load_lanes(gate->shift, col + v * VL, VL, SEPNET_FLOAT32);
    }
    if (kind != MOMENTS) return w;
    vf *origin = lines_of(s, 0, col);
    if (fresh) {
        const vf line = narrow_both(first_row[0] + w.bias[0], first_row[1] + w.bias[1]);
        origin[0] = even_values(line), origin[1] = odd_values(line);
    }
    w.origin[0] = origin[0], w.origin[1] = origin[1];
    return w;
}

/* A row: a cache line. of: GATED: that of the other map; the next block's is fetched, `ahead` values on. */
INLINE void write_row(writer *w, const vf sum[2], uint16_t *to, const uint16_t *of, int64_t ahead, const int kind) {
    const vf line = narrow_both(sum[0] + w->bias[0], sum[1] + w->bias[1]);
    if (w->streams)
        stream_line(to, &line);
    else
        *(vfu *)to = line;
    if (kind == NO_SUMS) return;
    vf value[2] = {even_values(line), odd_values(line)}, other[2];
    if (kind == GATED) {
        const vf through = *(const vfu *)of;
        __builtin_prefetch(of + ahead, 0, 2);
        other[0] = even_values(through), other[1] = odd_values(through);
    }
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
        if (kind == GATED)
            value[v] = (vf)((vu)value[v] & ((vu)(other[v] * w->scale[v] + w->shift[v] > 0) | w->passes)), other[v] -= w->mean[v];
        else
            value[v] -= w->origin[v], other[v] = value[v];
        w->first[v] += value[v], w->second[v] += value[v] * other[v];
    }
}

INLINE void close_writer(const writer *w, const result_sums *s, int64_t col, const int kind) {
    if (kind == NO_SUMS) return;
    vf *first = lines_of(s, 1, col), *second = lines_of(s, 2, col);
    for (int v = 0; v < 2; v++) first[v] += w->first[v], second[v] += w->second[v];
}

/* --- of all parts ------------------------------------------------------------------------------------------------------------- */

/* Where a channel is in the order of registers. */
static int64_t place_of(int64_t channel) { return channel / (2 * VL) * (2 * VL) + channel % 2 * VL + channel % (2 * VL) / 2; }

/* Constants in that order: mean, scale and shift. */
static side in_register_order(const side *from, int64_t channels, float *to) {
    for (int64_t c = 0; c < channels; c++) {
        const int64_t at = place_of(c);
        to[at] = from->mean[c], to[channels + at] = from->scale[c], to[2 * channels + at] = from->shift[c];
    }
    return (side){.mean = to, .scale = to + channels, .shift = to + 2 * channels, .passes = from->passes};
}
