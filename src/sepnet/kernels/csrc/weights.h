/* Weights and biases as the arithmetic takes them, and their gradients as they are in memory. */

static int64_t start_bytes(const job_state *s) { return aligned(s->conv->branches * s->blocks * VL * (int64_t)sizeof(float)); }

/* Floats of a block's sums: of its filters, then of its biases. */
static int64_t block_sums(const job_state *s) { return (s->filter_taps + s->conv->branches) * VL; }

/* Taps of a branch's filter as it is in memory. */
static int64_t memory_taps(const job_state *s, int branch) { return s->filter[branch].memory_h * s->filter[branch].memory_w; }

/* Element of a weight array that holds the first tap of a channel. */
static int64_t weight_element(const job_state *s, int64_t channel, int branch) {
    const sepnet_depthwise *conv = s->conv;
    if (conv->interleaved) return (channel * conv->branches + branch) * memory_taps(s, branch);
    int64_t base = 0;
    for (int j = 0; j < branch; j++) base += memory_taps(s, j) * conv->channels;
    return base + channel * memory_taps(s, branch);
}

/* From that one to the window's first tap of a row. */
static int64_t row_in_memory(const window *w, int64_t row) { return (w->first_row + row) * w->memory_w + w->first_col; }

/* A row of a channel's filter, in each image's lane: floats; or pairs with the same of another row, or alone, rounded likewise. */
static void pack_row(const job_state *s, const float *first, const float *second, int64_t width, float *to) {
    for (int64_t c = 0; c < width; c++, to += VL) {
        const float alone = s->pairs.filter ? rounded_to_half(first[c]) : first[c];
        const float value = second ? pair_of(first[c], second[c]) : alone;
        for (int64_t i = 0; i < s->images; i++) to[i * s->conv->channels] = value;
    }
}

/* The pairs' first half is the tap that sees the upper row: forward the filter's first one, backward its last. */
static void pack_weights(const job_state *s, int backward) {
    const sepnet_depthwise *conv = s->conv;
    const int64_t step = s->pairs.filter;
    memset(s->packed, 0, (size_t)(s->blocks * s->weight_vectors * VL) * sizeof *s->packed);
    for (int64_t channel = 0; channel < conv->channels; channel++)
        for (int j = 0; j < conv->branches; j++) {
            const sepnet_branch *b = &conv->branch[j];
            const float *filter = s->weight + weight_element(s, channel, j);
            const int64_t before = channel / VL * s->weight_vectors + packed_before(conv, &s->pairs, j);
            for (int64_t r = 0; r < b->kernel_h; r++) {
                if (step && r / step % 2) continue; /* packed with the row before */
                float *to = s->packed + (before + packed_row(&s->pairs, b->kernel_h, r) * b->kernel_w) * VL + channel % VL;
                const float *row = filter + row_in_memory(&s->filter[j], r), *other = NULL;
                if (step && r + step < b->kernel_h) other = filter + row_in_memory(&s->filter[j], r + step);
                pack_row(s, backward && other ? other : row, backward && other ? row : other, b->kernel_w, to);
            }
        }
}

/* Biases as the lanes of the sums' first values; zeros where there are none. */
static void pack_biases(const job_state *s) {
    const sepnet_depthwise *conv = s->conv;
    memset(s->start, 0, (size_t)start_bytes(s));
    for (int j = 0; s->bias && j < conv->branches; j++)
        for (int64_t c = 0; c < conv->channels; c++)
            for (int64_t i = 0; i < s->images; i++)
                s->start[j * s->blocks * VL + c + i * conv->channels] = s->bias[output_channel(conv, c, j)];
}

/* A channel's sum, of all images that share a vector. */
static float over_images(const job_state *s, const float *from) {
    float sum = 0;
    for (int64_t i = 0; i < s->images; i++) sum += from[i * s->conv->channels];
    return sum;
}

/* Sums of the parts, in their order, into the layouts of weight and bias. */
static void unpack_sums(const job_state *s, float *grad_weight, float *grad_bias) {
    const sepnet_depthwise *conv = s->conv;
    int64_t floats = s->blocks * block_sums(s);
    for (int64_t part = 1; part < s->parts; part++)
        for (int64_t i = 0; i < floats; i += VL) *(vf *)(s->partial + i) += *(const vf *)(s->partial + part * floats + i);
    int64_t in_memory = 0;
    for (int j = 0; j < conv->branches; j++) in_memory += memory_taps(s, j);
    if (grad_weight && s->filter_taps < in_memory) memset(grad_weight, 0, (size_t)(in_memory * conv->channels) * sizeof *grad_weight);
    for (int64_t channel = 0; channel < conv->channels; channel++) {
        const float *from = s->partial + channel / VL * block_sums(s) + channel % VL;
        for (int j = 0; j < conv->branches; j++) {
            float *filter = grad_weight ? grad_weight + weight_element(s, channel, j) : NULL;
            for (int64_t r = 0; r < conv->branch[j].kernel_h; r++)
                for (int64_t c = 0; c < conv->branch[j].kernel_w; c++, from += VL)
                    if (filter) filter[row_in_memory(&s->filter[j], r) + c] = over_images(s, from);
        }
        if (grad_bias)
            for (int j = 0; j < conv->branches; j++) grad_bias[output_channel(conv, channel, j)] = over_images(s, from + j * VL);
    }
}
