/* The gradient of the pixels that no tap sees (lattice): zeros. */

/* Past the caches where these are whole lines. */
static void write_zeros(char *to, int64_t bytes, int stream) {
    static const vf zeros[2] = {{0}}; /* a line at least, where lines are streamed */
    if (!stream || line_vectors(SEPNET_FLOAT32) == 0 || ((intptr_t)to | bytes) % CACHE_LINE != 0) {
        memset(to, 0, (size_t)bytes);
        return;
    }
    for (int64_t i = 0; i < bytes; i += CACHE_LINE) stream_line(to + i, zeros);
}

/* `piece` bytes of each of so many neighbouring pixels, which are `step` bytes apart. */
static void clear_pixels(char *to, int64_t pixels, int64_t piece, int64_t step, int stream) {
    if (piece == step) piece *= pixels, pixels = pixels > 0;
    for (int64_t c = 0; c < pixels; c++, to += step) write_zeros(to, piece, stream);
}

/* Of a row of the map that taps see, the pixels before, between and behind those that they see. */
static void clear_between(const lattice *l, char *row, int64_t piece, int64_t step) {
    int64_t col = 0;
    for (int64_t seen = l->first_col; seen < l->map_w; col = seen + 1, seen += l->every_col)
        clear_pixels(row + col * step, seen - col, piece, step, 1);
    clear_pixels(row + col * step, l->map_w - col, piece, step, 1);
}

/* In rows of the map: those before the seen rows [row0, row1), between them and up to the next ones. In cache it is faster to clear the
 * seen pixels as well, as those follow at once. */
static void clear_gradient(const job_state *s, const task *at, int64_t row0, int64_t row1) {
    const lattice *l = &s->seen;
    if (sees_all(l)) return;
    const int64_t first = row0 == 0 ? 0 : l->first_row + row0 * l->every_row;
    const int64_t last = row1 == s->conv->in_h ? l->map_h : l->first_row + row1 * l->every_row;
    const int64_t size = (int64_t)element_size(s->conv->dtype), step = l->map_channels * size;
    const int64_t piece = ((at->blocks - 1) * VL + at->lanes) * size;
    for (int64_t i = 0; i < at->images; i++) {
        char *row = (char *)s->grad_x + ((at->image + i) * image_step(l) + at->channel) * size + first * l->map_w * step;
        if (!s->stream_zeros) clear_pixels(row, (last - first) * l->map_w, piece, step, 0);
        for (int64_t r = first; s->stream_zeros && r < last; r++, row += l->map_w * step) {
            if (r >= l->first_row && (r - l->first_row) % l->every_row == 0)
                clear_between(l, row, piece, step);
            else
                clear_pixels(row, l->map_w, piece, step, 1);
        }
    }
}
