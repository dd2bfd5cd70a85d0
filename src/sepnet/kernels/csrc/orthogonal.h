/* A step of Muon: the momentum of a weight matrix's gradient, made near orthogonal by Newton-Schulz iterations, and added to it. One
 * vector length; included after products.h.
 *
 * An iteration makes a X + b G X + c G G X of X, G = X X', and so multiplies X by a polynomial of G, and G by its square. All of them are
 * taken on G, which is symmetric and as large as X's shorter side (X lies with its longer side across): X is read twice in all. With
 * P = (b G + c G G) / a an iteration is X -> a (I + P) X and G -> a^2 G (I + P)^2; the product of all (I + P) is kept without its
 * identity, within which the bits of bfloat16 would drown what is small beside it. */

enum { SQUARES = 5 }; /* G, G (I + P), P, the product so far, and the next one */
#define LEAST_NORM 1e-7 /* of the gradient: what is less stays as small as it is */

typedef struct {
    const sepnet_muon *step;
    int threads;
    int64_t rows, cols; /* of X */
    int tall;           /* the weight is X transposed */
    matrix x, square[SQUARES];
    char *panels;
    double *row_sums; /* of squares, a row of the gradient */
    int64_t parts;
} muon_job;

static muon_job make_muon_job(const sepnet_muon *step, int threads, void *workspace) {
    muon_job s = {.step = step, .threads = threads, .rows = sepnet_min(step->rows, step->cols), .cols = sepnet_max(step->rows, step->cols)};
    s.tall = step->rows > step->cols;
    s.x = shape_matrix(s.rows, s.cols, step->dtype);
    int64_t at = aligned((int64_t)(intptr_t)workspace);
    s.row_sums = (double *)at, at += aligned(step->rows * (int64_t)sizeof(double));
    s.x.at = (char *)at, at += matrix_bytes(s.x);
    for (int i = 0; i < SQUARES; i++) {
        s.square[i] = shape_matrix(s.rows, s.rows, step->dtype);
        s.square[i].at = (char *)at, at += matrix_bytes(s.square[i]);
    }
    s.panels = (char *)at;
    return s;
}

static int64_t muon_bytes(const sepnet_muon *step, int threads) {
    const muon_job s = make_muon_job(step, threads, NULL);
    /* X's as they are for its own product, each as deep as X's longer side, and those of the others, as deep as its shorter one */
    const int64_t bytes = sepnet_max(panels_bytes((right_matrix){s.x, 1}), panels_bytes((right_matrix){s.x, 0}));
    return ALIGN + (int64_t)(intptr_t)s.panels + threads * bytes;
}

/* --- the gradient's way into X ------------------------------------------------------------------------------------------------ */

/* A vector of the gradient, looking ahead by Nesterov's rule where there is a mean, which it moves. */
INLINE vf nesterov_of(const muon_job *s, int64_t at, int lanes) {
    const float momentum = (float)s->step->momentum;
    const vf grad = load_lanes(s->step->grad, at, lanes, SEPNET_FLOAT32);
    if (!s->step->mean) return grad;
    vf mean = load_lanes(s->step->mean, at, lanes, SEPNET_FLOAT32);
    mean += (grad - mean) * (1 - momentum);
    store_lanes(s->step->mean, at, lanes, SEPNET_FLOAT32, mean);
    return grad + (mean - grad) * momentum;
}

INLINE double sum_of(vf squares) {
    double sum = 0;
    for (int i = 0; i < VL; i++) sum += (double)squares[i];
    return sum;
}

/* A row of the gradient is one of X. */
INLINE void enter_row(const muon_job *s, int64_t row, int dtype) {
    const int64_t cols = s->step->cols;
    vf squares = splat(0);
    for (int64_t col = 0; col < cols; col += VL) {
        const int lanes = (int)sepnet_min(VL, cols - col);
        const vf value = lanes == VL ? nesterov_of(s, row * cols + col, VL) : nesterov_of(s, row * cols + col, lanes);
        squares += value * value;
        if (lanes == VL)
            store_lanes(element(s->x, row, col), 0, VL, dtype, value);
        else
            store_lanes(element(s->x, row, col), 0, lanes, dtype, value);
    }
    s->row_sums[row] = sum_of(squares);
}

/* Rows of the gradient that are columns of X: up to VL of them, a square at a time. */
INLINE void enter_columns(const muon_job *s, int64_t row, int dtype) {
    const int64_t cols = s->step->cols, rows = sepnet_min(VL, s->step->rows - row);
    vf squares[VL], square[VL] = {splat(0)}, turned[VL];
    for (int r = 0; r < VL; r++) squares[r] = splat(0);
    for (int64_t col = 0; col < cols; col += VL) {
        const int lanes = (int)sepnet_min(VL, cols - col);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t at = (row + r) * cols + col;
            square[r] = lanes == VL ? nesterov_of(s, at, VL) : nesterov_of(s, at, lanes);
            squares[r] += square[r] * square[r];
        }
        turn_block((const float *)square, VL, VL, (float *)turned);
        for (int c = 0; c < lanes; c++) store_lanes(element(s->x, col + c, row), 0, (int)rows, dtype, turned[c]);
    }
    for (int64_t r = 0; r < rows; r++) s->row_sums[row + r] = sum_of(squares[r]);
}

/* Rows of the gradient that are entered together. */
INLINE int64_t rows_at_once(const muon_job *s) { return s->tall ? VL : 1; }

INLINE void enter_rows(const muon_job *s, int64_t row, int dtype) {
    if (s->tall)
        enter_columns(s, row, dtype);
    else
        enter_row(s, row, dtype);
}

static void enter_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    muon_job copy = *(const muon_job *)context, *s = &copy;
    const sepnet_muon step = *copy.step; /* of our own, which no store can alias */
    copy.step = &step;
    const int64_t once = rows_at_once(s), groups = (step.rows + once - 1) / once;
    const int64_t first = sepnet_part_begin(groups, s->parts, part), end = sepnet_part_begin(groups, s->parts, part + 1);
    for (int64_t row = first * once; row < end * once; row += once)
        if (HAVE_PAIRS && step.dtype == SEPNET_BFLOAT16)
            enter_rows(s, row, SEPNET_BFLOAT16);
        else
            enter_rows(s, row, SEPNET_FLOAT32);
}

/* Clears what lies around the matrices, and fills X. Returns one over its norm. */
static double enter_all(muon_job *s) {
    double sum = 0;
    clear_around(s->x);
    for (int i = 0; i < SQUARES; i++) clear_around(s->square[i]);
    s->parts = sepnet_min(s->step->rows, s->threads);
    sepnet_run_parts(enter_part, s, s->parts, s->threads);
    for (int64_t row = 0; row < s->step->rows; row++) sum += s->row_sums[row];
    const double norm = __builtin_sqrt(sum);
    return 1 / (norm < LEAST_NORM ? LEAST_NORM : norm);
}

/* --- iterations ---------------------------------------------------------------------------------------------------------------- */

/* to = alpha * left * right + beta * (add + more) */
static product_of square_product(matrix to, matrix left, double alpha, matrix add, matrix more, double beta) {
    return (product_of){.left = left, .add = add, .more = more, .to = to, .alpha = (float)alpha, .beta = (float)beta};
}

static void run_square(const muon_job *s, product_of one, matrix right, int across) {
    multiply((multiplication){.one = one, .products = 1, .right = {right, across}, .panels = s->panels}, s->threads);
}

static void run_squares(const muon_job *s, product_of one, product_of other, matrix right) {
    multiply((multiplication){.one = one, .other = other, .products = 2, .right = {right, 0}, .panels = s->panels}, s->threads);
}

/* The product of all (I + P), less the identity. `scale`: of X. */
static matrix iterate(const muon_job *s, double scale) {
    static const matrix none = {0};
    const double a = s->step->a, b = s->step->b, c = s->step->c;
    const matrix gram = s->square[0], half = s->square[1]; /* half: G (I + P), on the way to G (I + P)^2 */
    matrix p = s->square[2], product = s->square[3], next = s->square[4];
    run_square(s, square_product(gram, s->x, scale * scale, none, none, 0), s->x, 1);
    for (int i = 0; i < s->step->steps; i++) {
        const matrix power = i ? p : product; /* the first one is the product */
        const int last = i + 1 == s->step->steps;
        run_square(s, square_product(power, gram, c / a, gram, none, b / a), gram, 0);
        const product_of to_half = square_product(half, gram, 1, gram, none, 1), to_next = square_product(next, product, 1, product, p, 1);
        if (i && !last)
            run_squares(s, to_half, to_next, power);
        else if (i || !last)
            run_square(s, i ? to_next : to_half, power, 0);
        if (i) {
            const matrix before = product;
            product = next, next = before;
        }
        if (!last) run_square(s, square_product(gram, half, a * a, half, none, a * a), power, 0);
    }
    return product;
}

static void step_one(const sepnet_muon *step, int threads, void *workspace) {
    muon_job s = make_muon_job(step, threads, workspace);
    const double scale = enter_all(&s);
    double rate = step->rate * scale;
    for (int i = 0; i < step->steps; i++) rate *= step->a;
    const product_of update = {.left = iterate(&s, scale), .add = s.x, .cols = s.cols, .alpha = (float)rate, .beta = (float)rate,
                               .keep = (float)step->keep, .weight = step->weight, .transposed = s.tall};
    run_square(&s, update, s.x, 0);
}

/* --- several weights --------------------------------------------------------------------------------------------------------- */

/* A thread for each weight, the most work first: they have nothing to tell each other. But one whose work is more than a thread's share
 * is all threads', before the others. */
typedef struct {
    const sepnet_muon *weights;
    int64_t count, *order; /* of the weights; the first `shared` of them are all threads' */
    int64_t shared, bytes; /* of a weight's workspace, where each is one thread's */
    int threads;
    char *workspace;
} muon_list;

#ifndef LEAST_WORK
#define LEAST_WORK (1 << 26) /* multiplications that are worth all threads, which wait for each other between products */
#endif

/* Multiplications, about. */
static double work_of(const sepnet_muon *w) {
    const double n = (double)sepnet_min(w->rows, w->cols), m = (double)sepnet_max(w->rows, w->cols);
    return n * n * (1.5 * m + 1.5 * n * (double)w->steps);
}

static void sort_by_work(muon_list *s) {
    for (int64_t i = 0; i < s->count; i++) {
        int64_t at = i;
        for (; at > 0 && work_of(s->weights + s->order[at - 1]) < work_of(s->weights + i); at--) s->order[at] = s->order[at - 1];
        s->order[at] = i;
    }
}

static int shares_work(const muon_list *s, double work, double rest) {
    return s->threads > 1 && work > LEAST_WORK && work * s->threads > rest;
}

/* What is left for the threads after the shared ones decides whether one more is shared. */
static muon_list make_muon_list(const sepnet_muon *weights, int64_t count, int threads, int64_t *order) {
    muon_list s = {.weights = weights, .count = count, .order = order, .threads = threads};
    double rest = 0;
    for (int64_t i = 0; i < count; i++) rest += work_of(weights + i);
    sort_by_work(&s);
    for (; s.shared < count && shares_work(&s, work_of(weights + order[s.shared]), rest); s.shared++)
        rest -= work_of(weights + order[s.shared]);
    for (int64_t i = s.shared; i < count; i++) s.bytes = sepnet_max(s.bytes, muon_bytes(weights + order[i], 1));
    return s;
}

/* One at a time in all threads, then one in each: of those that are certain to be shared none. */
static int64_t muon_workspace(const sepnet_muon *weights, int64_t count, int threads) {
    const muon_list s = {.threads = threads};
    int64_t alone = 0, together = 0;
    double all = 0;
    for (int64_t i = 0; i < count; i++) all += work_of(weights + i);
    for (int64_t i = 0; i < count; i++) {
        if (!shares_work(&s, work_of(weights + i), all)) alone = sepnet_max(alone, muon_bytes(weights + i, 1));
        together = sepnet_max(together, muon_bytes(weights + i, threads));
    }
    return ALIGN + aligned(count * (int64_t)sizeof(int64_t)) + sepnet_max(threads * alone, together);
}

static void step_part(void *context, int64_t part, sepnet_worker worker) {
    const muon_list *s = context;
    step_one(s->weights + s->order[s->shared + part], 1, s->workspace + worker.index * s->bytes);
}

static void muon_step(const sepnet_muon *weights, int64_t count, int threads, void *workspace) {
    int64_t *order = (int64_t *)aligned((int64_t)(intptr_t)workspace);
    muon_list s = make_muon_list(weights, count, threads, order);
    s.workspace = (char *)order + aligned(count * (int64_t)sizeof *order);
    for (int64_t i = 0; i < s.shared; i++) step_one(weights + order[i], threads, s.workspace);
    if (s.shared < count) sepnet_run_parts(step_part, &s, count - s.shared, threads);
}
