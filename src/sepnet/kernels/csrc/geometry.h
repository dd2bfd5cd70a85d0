/* Where a depthwise convolution's taps, planes, bands and tasks lie. Nothing here touches a tensor. */

enum { SPARSE = 4 };              /* cache lines of a pixel: fewer, in a larger map, leave the hardware's prefetcher behind */
enum { MAX_FOLDED = 4 };          /* channels: with so few, several images share a vector */
enum { PARTS_PER_THREAD = 2 };    /* evens out threads that are disturbed; parts are fixed, so sums keep their order */

/* Bytes of a pixel's results up to which large maps (processor.c) are written past the caches, from planes with AVX2: a tile writes a
 * line of each of several pixels, and the farther apart these lie the slower that is (114 shapes in float32: 128 channels 1.1 to 1.4
 * times as fast past the caches, 512 and more 0.55 to 0.95 times). No such bound is known for AVX-512. (Tests set less.) */
#ifndef STREAM_PIXEL
#define STREAM_PIXEL (VL >= 16 ? INT64_MAX : 1 << 10)
#endif

/* Rows and columns of an unpacked plane, and where it begins in the map it was taken from. */
typedef struct {
    int64_t first_row, rows, first_col, cols, pixel; /* floats from pixel to pixel */
} plane;

/* The taps that one class of output pixels needs: where they lie in the planes and in a block's weights, in floats. They come in
 * rows from left to right, which in each of the segments (one a branch) are alike: `width` taps, `spacing` floats apart. */
typedef struct {
    int64_t rows, width;
    ptrdiff_t spacing;
    int odd; /* of pairs: the last row is of first halves alone */
} segment;

typedef struct {
    int64_t count, segments;
    int paired; /* the planes hold pairs, and each tap is two of the filter's in one column, but for an odd last row's */
    segment segment[SEPNET_MAX_BRANCHES];
    ptrdiff_t offset[SEPNET_MAX_TAPS], weight[SEPNET_MAX_TAPS];
} taps;

/* How the work is cut into tasks: slabs of neighbouring blocks of channels, bands of rows. */
typedef struct {
    int64_t slab, slabs, bands, pixel; /* slab: blocks of one (fewer in the last); pixel: floats from pixel to pixel in its planes */
} cut;

/* Planes of dL/dy: how many there are, and in each how many branches, floats from pixel to pixel, floats at all in the largest band's,
 * and floats from one branch's gradients to the next's. */
typedef struct {
    int64_t planes, branches, pixel, floats, step;
} gradient_planes;

/* The pixels of a map that some tap sees: every so many rows and columns, from the first on. All of them, as a rule. */
typedef struct {
    int64_t first_row, first_col, every_row, every_col;
    int64_t map_h, map_w, map_channels; /* of the map in memory */
} lattice;

/* The part of a filter whose taps meet the map at all, in the filter as it is in memory. */
typedef struct {
    int64_t first_row, first_col, memory_h, memory_w; /* of memory_h rows by memory_w columns */
} window;

/* A convolution without the taps that see nothing but padding and the pixels that no tap sees, and where its rest is in memory. */
typedef struct {
    sepnet_depthwise conv;
    lattice seen;
    window filter[SEPNET_MAX_BRANCHES];
} reduced;

/* What all tasks of a call share. */
typedef struct {
    const sepnet_depthwise *conv; /* of the lattice's pixels and the windows' taps alone */
    lattice seen;
    const window *filter; /* one a branch */
    const sepnet_joined *joined; /* may be NULL */
    const void *x, *grad;
    const float *weight, *bias;
    void *y, *grad_x;
    taps *classes;           /* forward: one a branch; backward: one for each remainder of row and column by the strides */
    float *packed, *partial; /* weights by [block][packed row, column][VL]; gradients' sums by [part][block][tap, then branch's bias][VL] */
    float *start;            /* forward: biases by [branch][block][VL] */
    float *origin;           /* a value of each output channel, [branch][block][VL] */
    double *joined_sums;     /* [part][first or second][branch][block][VL] */
    char *scratch;           /* one piece a thread */
    int64_t images; /* that share a vector, more than one where channels are few: lane i * channels + c is the i-th one's channel c */
    int64_t blocks, filter_taps, parts, scratch_bytes, x_floats; /* floats: of the largest band's plane */
    pairing pairs;
    gradient_planes grads;
    int64_t weight_vectors, spare_floats, x_halves, grad_halves; /* vectors of packed weights a block; halves: see unpack_pairs.h */
    cut cut;
    int want_x, want_weight, want_bias;
    int stream, stream_zeros; /* results, and gradients of pixels that no tap sees, are written past the caches */
    int fetch; /* whether what comes next is fetched while results are computed */
    int direct; /* without planes (direct.h) */
} job_state;

static int64_t greatest_common_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

/* The first position that taps see, which lie `every` positions apart from `pad` before the map on. */
static int64_t first_seen(int64_t pad, int64_t every) { return (every - pad % every) % every; }

/* Every so many rows and columns, from some on, are all that the taps of every branch see. */
static lattice find_seen(const sepnet_depthwise *conv) {
    int64_t rows = conv->stride_h, cols = conv->stride_w;
    const sepnet_branch *one = &conv->branch[0];
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        rows = greatest_common_divisor(rows, b->kernel_h > 1 ? b->dilation_h : 0);
        cols = greatest_common_divisor(cols, b->kernel_w > 1 ? b->dilation_w : 0);
    }
    for (int j = 1; j < conv->branches; j++) { /* branches that begin at different ones see more together */
        rows = (conv->branch[j].pad_h - one->pad_h) % rows == 0 ? rows : 1;
        cols = (conv->branch[j].pad_w - one->pad_w) % cols == 0 ? cols : 1;
    }
    if (first_seen(one->pad_h, rows) >= conv->in_h) rows = 1; /* none: nothing but padding */
    if (first_seen(one->pad_w, cols) >= conv->in_w) cols = 1;
    return (lattice){first_seen(one->pad_h, rows), first_seen(one->pad_w, cols), rows, cols, conv->in_h, conv->in_w, conv->channels};
}

/* Whether positions first, first + step, ... (count of them) meet [0, size): a tap that never does sees nothing but padding. */
static int meets(int64_t first, int64_t step, int64_t count, int64_t size) {
    return first < size && first + (count - 1) * step >= 0;
}

/* The taps of one dimension that do, which follow one another: narrows kernel and padding to them, and returns the first. All of them
 * where none does. (The padding comes out negative where the first one that is left begins within the map.) */
static int64_t keep_alive(int64_t *kernel, int64_t *pad, int64_t dilation, int64_t stride, int64_t out, int64_t in) {
    int64_t first = 0, last = *kernel;
    while (first < last && !meets(first * dilation - *pad, stride, out, in)) first++;
    while (last > first && !meets((last - 1) * dilation - *pad, stride, out, in)) last--;
    if (first == last) return 0;
    *kernel = last - first, *pad -= first * dilation;
    return first;
}

/* With dilation 5, one tap of nine meets a map of 4x4; with stride 2 and dilation 2 three quarters of the pixels are never looked at,
 * and the convolution of the rest is one of smaller stride and dilation. */
static reduced reduce(const sepnet_depthwise *whole) {
    reduced r = {.conv = *whole};
    for (int j = 0; j < whole->branches; j++) {
        sepnet_branch *b = &r.conv.branch[j];
        window *w = &r.filter[j];
        w->memory_h = b->kernel_h, w->memory_w = b->kernel_w;
        w->first_row = keep_alive(&b->kernel_h, &b->pad_h, b->dilation_h, whole->stride_h, whole->out_h, whole->in_h);
        w->first_col = keep_alive(&b->kernel_w, &b->pad_w, b->dilation_w, whole->stride_w, whole->out_w, whole->in_w);
    }
    const lattice seen = r.seen = find_seen(&r.conv);
    const int64_t rows = seen.every_row, cols = seen.every_col;
    r.conv.in_h = (whole->in_h - seen.first_row + rows - 1) / rows, r.conv.in_w = (whole->in_w - seen.first_col + cols - 1) / cols;
    r.conv.stride_h /= rows, r.conv.stride_w /= cols;
    for (int j = 0; j < whole->branches; j++) {
        sepnet_branch *b = &r.conv.branch[j];
        b->pad_h = (b->pad_h + seen.first_row) / rows, b->pad_w = (b->pad_w + seen.first_col) / cols;
        b->dilation_h = sepnet_max(1, b->dilation_h / rows), b->dilation_w = sepnet_max(1, b->dilation_w / cols);
    }
    return r;
}

static int sees_all(const lattice *l) { return l->every_row * l->every_col == 1; }

/* Elements of the map of inputs from image to image, from row to row and from pixel to pixel of those seen. */
static int64_t image_step(const lattice *l) { return l->map_h * l->map_w * l->map_channels; }
static int64_t row_step(const lattice *l) { return l->every_row * l->map_w * l->map_channels; }
static int64_t col_step(const lattice *l) { return l->every_col * l->map_channels; }

/* Element of a pixel's first channel; row and column are of the lattice. */
static int64_t seen_element(const lattice *l, int64_t image, int64_t row, int64_t col) {
    return image * image_step(l) + (l->first_row * l->map_w + l->first_col) * l->map_channels + row * row_step(l) + col * col_step(l);
}

static int64_t filter_taps(const sepnet_depthwise *conv) {
    int64_t total = 0;
    for (int j = 0; j < conv->branches; j++) total += conv->branch[j].kernel_h * conv->branch[j].kernel_w;
    return total;
}

/* Input rows and columns that the output rows [row0, row1) read. */
static plane input_plane(const sepnet_depthwise *conv, int64_t pixel, int64_t row0, int64_t row1) {
    int64_t top = 0, left = 0, below = INT64_MIN, right = INT64_MIN;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        top = sepnet_max(top, b->pad_h);
        left = sepnet_max(left, b->pad_w);
        below = sepnet_max(below, (b->kernel_h - 1) * b->dilation_h - b->pad_h);
        right = sepnet_max(right, (b->kernel_w - 1) * b->dilation_w - b->pad_w);
    }
    return (plane){row0 * conv->stride_h - top, (row1 - row0 - 1) * conv->stride_h + top + below + 1, -left,
                   (conv->out_w - 1) * conv->stride_w + left + right + 1, pixel};
}

/* Output rows and columns whose gradient reaches the input rows [row0, row1), and those of [out0, out1) as well.
 * Input row s * q + r takes from output row q + (r + pad - k * dilation) / s, for the k that leave no remainder. */
static plane gradient_plane(const sepnet_depthwise *conv, int64_t pixel, int64_t row0, int64_t row1, int64_t out0, int64_t out1) {
    int64_t rows[2] = {out0, out1 - 1}, cols[2] = {0, conv->out_w - 1};
    int64_t sh = conv->stride_h, sw = conv->stride_w;
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        rows[0] = sepnet_min(rows[0], sepnet_floor_div(row0 + b->pad_h - (b->kernel_h - 1) * b->dilation_h, sh));
        rows[1] = sepnet_max(rows[1], sepnet_floor_div(row1 - 1 + b->pad_h, sh));
        cols[0] = sepnet_min(cols[0], sepnet_floor_div(b->pad_w - (b->kernel_w - 1) * b->dilation_w, sw));
        cols[1] = sepnet_max(cols[1], sepnet_floor_div(conv->in_w - 1 + b->pad_w, sw));
    }
    return (plane){rows[0], rows[1] - rows[0] + 1, cols[0], cols[1] - cols[0] + 1, pixel};
}

static int64_t plane_floats(plane p) { return p.rows * p.cols * p.pixel; }

typedef struct {
    int64_t out0, out1, in0, in1; /* rows of output and of input that a band computes */
} band_rows;

static band_rows nth_band(const sepnet_depthwise *conv, int64_t bands, int64_t band) {
    return (band_rows){sepnet_part_begin(conv->out_h, bands, band), sepnet_part_begin(conv->out_h, bands, band + 1),
                       sepnet_part_begin(conv->in_h, bands, band), sepnet_part_begin(conv->in_h, bands, band + 1)};
}

static void add_tap(taps *to, segment *in, ptrdiff_t offset, ptrdiff_t weight) {
    if (in->width++ == 1) in->spacing = offset - to->offset[to->count - 1];
    to->offset[to->count] = offset;
    to->weight[to->count++] = weight;
}

/* What add_tap has counted into `in` are `rows` rows. */
static void end_segment(taps *to, segment in, int64_t rows) {
    if (rows == 0) return;
    in.rows = rows, in.width /= rows;
    if (in.width == 1) in.spacing = 0;
    if (in.width > 0) to->segment[to->segments++] = in;
}

static void open_taps(taps *out, const pairing *pairs) {
    out->count = out->segments = 0, out->segment[0] = (segment){0}, out->paired = pairs->filter > 0;
}

/* Taps of a branch, for all output pixels. The plane begins where the most padded branch does. */
static void forward_taps(const sepnet_depthwise *conv, const pairing *pairs, plane p, int branch, taps *out) {
    const sepnet_branch *b = &conv->branch[branch];
    const ptrdiff_t weight = packed_before(conv, pairs, branch) * VL;
    int64_t rows = 0;
    segment in = {0};
    open_taps(out, pairs);
    for (int64_t r = 0; r < b->kernel_h; r += 1 + out->paired) {
        rows++, in.odd = out->paired && r + 1 == b->kernel_h;
        for (int64_t c = 0; c < b->kernel_w; c++) {
            int64_t row = r * b->dilation_h - b->pad_h, col = c * b->dilation_w - b->pad_w - p.first_col;
            add_tap(out, &in, (row * p.cols + col) * p.pixel, weight + (packed_row(pairs, b->kernel_h, r) * b->kernel_w + c) * VL);
        }
    }
    end_segment(out, in, rows);
}

/* Taps of the input pixels whose row and column leave the remainders (r, c) modulo the strides; the branches' gradients
 * lie `branch_step` floats apart. The last column of a filter reaches the leftmost gradient. */
static void backward_taps(const sepnet_depthwise *conv, const pairing *pairs, plane p, int64_t branch_step, int64_t r, int64_t c,
                          taps *out) {
    open_taps(out, pairs);
    for (int j = 0; j < conv->branches; j++) {
        const sepnet_branch *b = &conv->branch[j];
        const ptrdiff_t weight = packed_before(conv, pairs, j) * VL;
        int64_t rows = 0;
        segment in = {0};
        for (int64_t kr = 0; kr < b->kernel_h; kr++) {
            int64_t row = r + b->pad_h - kr * b->dilation_h, to_row = sepnet_floor_div(row, conv->stride_h);
            if (to_row * conv->stride_h != row) continue;
            const int64_t vector = packed_row(pairs, b->kernel_h, kr) * b->kernel_w;
            rows++;
            if (out->paired) {
                in.odd = kr + pairs->filter >= b->kernel_h;
                if (!in.odd) to_row--, kr += pairs->filter; /* with the next tap of the filter, which sees the row above */
            }
            for (int64_t kc = b->kernel_w - 1; kc >= 0; kc--) {
                int64_t col = c + b->pad_w - kc * b->dilation_w, to_col = sepnet_floor_div(col, conv->stride_w);
                if (to_col * conv->stride_w != col) continue;
                add_tap(out, &in, j * branch_step + (to_row * p.cols + to_col - p.first_col) * p.pixel,
                        weight + (vector + kc) * VL);
            }
        }
        end_segment(out, in, rows);
    }
}

/* Floats of the largest band's planes, of x and of dL/dy. */
static int64_t input_floats(const sepnet_depthwise *conv, int64_t pixel, int64_t bands) {
    int64_t most = 0;
    for (int64_t i = 0; i < bands; i++) {
        const band_rows b = nth_band(conv, bands, i);
        most = sepnet_max(most, plane_floats(input_plane(conv, pixel, b.out0, b.out1)));
    }
    return most;
}

static int64_t gradient_floats(const sepnet_depthwise *conv, int64_t pixel, int64_t bands) {
    int64_t most = 0;
    for (int64_t i = 0; i < bands; i++) {
        const band_rows b = nth_band(conv, bands, i);
        most = sepnet_max(most, plane_floats(gradient_plane(conv, pixel, b.in0, b.in1, b.out0, b.out1)));
    }
    return most;
}

static int64_t count_blocks(const sepnet_depthwise *conv) { return (conv->channels + VL - 1) / VL; }

/* An image of the nets' first layers has 1 or 3 channels: alone it would leave most of a vector empty. */
static int64_t count_images(const sepnet_depthwise *conv) {
    if (conv->channels > MAX_FOLDED) return 1;
    return sepnet_max(1, sepnet_min(conv->batch, VL / sepnet_max(1, conv->channels)));
}

static int64_t count_groups(const sepnet_depthwise *conv, int64_t images) { return (conv->batch + images - 1) / images; }

/* Floats from pixel to pixel: an odd number of cache lines, as powers of two would share few sets of the L1 cache. */
static int64_t plane_pixel(int64_t blocks) {
    const int64_t line = CACHE_LINE / (int64_t)sizeof(float), lines = (blocks * VL + line - 1) / line;
    return blocks * VL <= line ? blocks * VL : (lines | 1) * line;
}

/* The gradients of several branches lie side by side in one plane, where they do so in memory, which is then read in its order; else
 * each has a plane, with a slab's channels. (A slab may be rounded up: beyond the blocks that there are nothing lies.) */
static gradient_planes lay_gradients(const sepnet_depthwise *conv, const cut *c, int64_t images) {
    const int64_t blocks = count_blocks(conv), all = conv->branches;
    if (all == 1 || conv->interleaved || images > 1 || c->slabs > 1 || conv->channels % VL) {
        const int64_t floats = gradient_floats(conv, c->pixel, c->bands);
        return (gradient_planes){.planes = all, .branches = 1, .pixel = c->pixel, .floats = floats, .step = floats};
    }
    const int64_t pixel = plane_pixel(all * blocks), floats = gradient_floats(conv, pixel, c->bands);
    return (gradient_planes){.planes = 1, .branches = all, .pixel = pixel, .floats = floats, .step = blocks * VL};
}

static int64_t planes_bytes(const sepnet_depthwise *conv, const cut *c, int64_t images, int backward) {
    int64_t floats = input_floats(conv, c->pixel, c->bands);
    if (backward) {
        const gradient_planes g = lay_gradients(conv, c, images);
        floats += g.planes * g.floats;
    }
    return floats * (int64_t)sizeof(float);
}

/* Whether bands unpack less than half as many rows again as there are: the rows at their edges belong to two. */
static int bands_pay(const sepnet_depthwise *conv, int64_t bands) {
    int64_t rows = (conv->out_h + bands - 1) / bands;
    return bands == 1 || 2 * input_plane(conv, VL, 0, rows).rows <= 3 * rows * conv->stride_h;
}

/* Whether a slab of so many blocks is a piece of each pixel that neither the cache's lines nor its prefetcher are made for. */
static int is_sparse(const sepnet_depthwise *conv, int64_t blocks) {
    int64_t bytes = blocks * VL * (conv->dtype == SEPNET_BFLOAT16 ? 2 : 4);
    return bytes < SPARSE * CACHE_LINE && bytes != CACHE_LINE;
}

/* Slabs as wide as possible, so that memory is read and written in its order; bands as few as keep the planes in cache and the
 * threads busy. */
static cut cut_up(const sepnet_depthwise *conv, int64_t images, int backward) {
    const int64_t room = sepnet_band_bytes();
    const int64_t blocks = count_blocks(conv), groups = sepnet_max(1, count_groups(conv, images));
    const int64_t limit = sepnet_max(1, sepnet_min(conv->out_h, conv->in_h) / 2), lines = sepnet_max(1, line_vectors(conv->dtype));
    for (int64_t slabs = 1;; slabs *= 2) {
        cut c = {.slab = (blocks + slabs - 1) / slabs};
        if (c.slab > lines) c.slab = sepnet_round_up(c.slab, lines); /* slabs of whole cache lines, where they are not too small */
        const int last = c.slab == 1;
        if (!last && slabs > 1 && is_sparse(conv, c.slab)) continue;
        c.slabs = (blocks + c.slab - 1) / c.slab, c.pixel = plane_pixel(c.slab);
        c.bands = 1;
        const int64_t least = planes_bytes(conv, &c, images, backward) / room; /* not fewer */
        if (last) c.bands = (conv->threads + groups * c.slabs - 1) / (groups * c.slabs);
        c.bands = sepnet_min(limit, sepnet_max(c.bands, least));
        while (c.bands < limit && planes_bytes(conv, &c, images, backward) > room) c.bands++;
        if (last) return c;
        if (groups * c.slabs * c.bands < conv->threads || !bands_pay(conv, c.bands)) continue;
        if (planes_bytes(conv, &c, images, backward) <= room) return c;
    }
}

static int64_t count_tasks(const job_state *s) { return count_groups(s->conv, s->images) * s->cut.bands * s->cut.slabs; }

static int64_t count_parts(const job_state *s) {
    if (s->conv->threads <= 1) return 1;
    return sepnet_max(1, sepnet_min(count_tasks(s), PARTS_PER_THREAD * s->conv->threads));
}

typedef struct {
    int64_t image, block, blocks, channel; /* the first block and channel, and how many blocks */
    band_rows rows;
    int lanes;      /* of the last block */
    int64_t images; /* from the first one on */
} task;

static task nth_task(const job_state *s, int64_t index) {
    const cut *c = &s->cut;
    int64_t block = index % c->slabs * c->slab, band = index / c->slabs % c->bands;
    int64_t image = index / (c->slabs * c->bands) * s->images, blocks = sepnet_min(c->slab, s->blocks - block);
    int64_t lanes = sepnet_min(VL, s->conv->channels - (block + blocks - 1) * VL);
    return (task){image, block, blocks, block * VL, nth_band(s->conv, c->bands, band), (int)lanes,
                  sepnet_min(s->images, s->conv->batch - image)};
}

/* First output channel of a block in a branch, and from one of its channels to the next. */
static int64_t output_channel(const sepnet_depthwise *conv, int64_t channel, int branch) {
    return conv->interleaved ? channel * conv->branches + branch : branch * conv->channels + channel;
}

static int64_t output_step(const sepnet_depthwise *conv) { return conv->interleaved ? conv->branches : 1; }
