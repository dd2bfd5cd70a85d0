/* Which rows of planes and of filters make pairs of bfloat16 values, two of which a processor multiplies where it multiplies one float. */

/* In planes of pairs: how many rows below the first half's the second half's is, for x and for dL/dy, and how many the rows of a
 * filter are apart whose weights make a pair. All 0 in planes of floats. */
typedef struct {
    int64_t x, grad, filter;
} pairing;

/* Two taps of a column, neighbours among those that one pixel sees, are multiplied at once where a processor multiplies pairs
 * of bfloat16 values. (dL/dy's of dilated filters would need pairs of other rows for dL/dx than for dL/dweight.) Low filters
 * save too few products for what pairing costs: forward, and backward with strides, where few of their rows are two that one
 * pixel sees. */
static pairing find_pairs(const sepnet_depthwise *conv, int64_t images, int backward) {
    int64_t tallest = 1, dilation = 0;
    if (!HAVE_PAIRS || !sepnet_multiplies_pairs() || conv->dtype != SEPNET_BFLOAT16 || images > 1) return (pairing){0};
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        if (b->kernel_h == 1) continue;
        if (dilation && b->dilation_h != dilation) return (pairing){0};
        dilation = b->dilation_h, tallest = sepnet_max(tallest, b->kernel_h);
    }
    const int64_t least = backward && conv->stride_h == 1 ? 2 : 4;
    if (tallest < least || (backward && dilation > 1)) return (pairing){0};
    return backward ? (pairing){conv->stride_h, 1, conv->stride_h} : (pairing){dilation, 0, 1};
}

/* Rows of packed weights that the filter's rows first, first + step, ... make. */
static int64_t count_packed(int64_t kernel_h, int64_t step, int64_t first) {
    const int64_t rows = (kernel_h - first + step - 1) / step;
    return (rows + 1) / 2;
}

/* The row of packed weights that a filter's row r is in: pairs of rows lie in the order of their remainders by the distance. */
static int64_t packed_row(const pairing *p, int64_t kernel_h, int64_t r) {
    if (!p->filter) return r;
    int64_t row = r / p->filter / 2;
    for (int64_t i = 0; i < r % p->filter; i++) row += count_packed(kernel_h, p->filter, i);
    return row;
}

static int64_t packed_rows(const pairing *p, int64_t kernel_h) {
    if (!p->filter) return kernel_h;
    int64_t rows = 0;
    for (int64_t i = 0; i < p->filter; i++) rows += count_packed(kernel_h, p->filter, i);
    return rows;
}

/* Vectors of packed weights of a block in the branches before one. */
static int64_t packed_before(const sepnet_depthwise *conv, const pairing *p, int branch) {
    int64_t vectors = 0;
    for (int j = 0; j < branch; j++) vectors += packed_rows(p, conv->branch[j].kernel_h) * conv->branch[j].kernel_w;
    return vectors;
}
