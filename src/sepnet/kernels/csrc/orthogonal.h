/* A step of Muon: the momentum of a weight matrix's gradient, made near orthogonal by Newton-Schulz iterations, and added to it. One
 * vector length; included after products.h.
 *
 * An iteration makes a X + b G X + c G G X of X, G = X X', and so multiplies X by a polynomial of G, and G by its square. All of them are
 * taken on G, which is symmetric and as large as X's shorter side (X lies with its longer side across): X is read twice in all. With
 * P = (b G + c G G) / a an iteration is X -> a (I + P) X and G -> a^2 G (I + P)^2; the product of all (I + P) is kept without its
 * identity, within which the bits of bfloat16 would drown what is small beside it. */

enum { SQUARES = 5 };
#define LEAST_NORM 1e-7 /* of the gradient: what is less stays as small as it is */

typedef struct {
    const sepnet_muon *step;
    int64_t rows, cols; /* of X */
    int tall;           /* the weight is X transposed */
    matrix x, square[SQUARES];
    float *panels, *mean;
    const float *grad;
    double *row_sums; /* of squares, a row of the gradient */
    int64_t parts;
} muon_job;

static muon_job make_muon_job(const sepnet_muon *step, void *workspace) {
    muon_job s = {.step = step, .rows = sepnet_min(step->rows, step->cols), .cols = sepnet_max(step->rows, step->cols)};
    s.tall = step->rows > step->cols;
    s.x = shape_matrix(s.rows, s.cols, step->dtype);
    char *at = (char *)aligned((int64_t)(intptr_t)workspace);
    s.row_sums = (double *)at, at += aligned(step->rows * (int64_t)sizeof(double));
    s.x.at = at, at += matrix_bytes(s.x);
    for (int i = 0; i < SQUARES; i++) {
        s.square[i] = shape_matrix(s.rows, s.rows, step->dtype);
        s.square[i].at = at, at += matrix_bytes(s.square[i]);
    }
    s.panels = (float *)at;
    return s;
}

static int64_t muon_workspace(const sepnet_muon *step) {
    const muon_job s = make_muon_job(step, NULL);
    const int64_t across = panels_bytes((packed){s.x, 1, NULL}), down = panels_bytes((packed){s.x, 0, NULL});
    return ALIGN + (int64_t)(intptr_t)s.panels + sepnet_max(across, down);
}

/* --- the gradient's way into X ------------------------------------------------------------------------------------------------ */

/* A vector of the gradient, looking ahead by Nesterov's rule where there is a mean, which it moves. */
INLINE vf look_ahead_of(const muon_job *s, int64_t at, int lanes) {
    const float momentum = (float)s->step->momentum;
    const vf grad = load_lanes(s->grad, at, lanes, SEPNET_FLOAT32);
    if (!s->mean) return grad;
    vf mean = load_lanes(s->mean, at, lanes, SEPNET_FLOAT32);
    mean += (grad - mean) * (1 - momentum);
    store_lanes(s->mean, at, lanes, SEPNET_FLOAT32, mean);
    return grad + (mean - grad) * momentum;
}

INLINE void enter_values(const muon_job *s, int64_t row, int64_t col, int lanes, vf value, int dtype) {
    if (!s->tall) {
        store_lanes(element(s->x, row, col), 0, lanes, dtype, value);
        return;
    }
    float spread[VL] __attribute__((aligned(CACHE_LINE)));
    store_lanes(spread, 0, VL, dtype, value);
    for (int i = 0; i < lanes; i++)
        if (dtype == SEPNET_BFLOAT16)
            *(uint16_t *)element(s->x, col + i, row) = ((const uint16_t *)spread)[i];
        else
            *(float *)element(s->x, col + i, row) = spread[i];
}

INLINE double enter_row(const muon_job *s, int64_t row, int dtype) {
    const int64_t cols = s->step->cols;
    vf squares = splat(0);
    for (int64_t col = 0; col < cols; col += VL) {
        const int lanes = (int)sepnet_min(VL, cols - col);
        const vf value = lanes == VL ? look_ahead_of(s, row * cols + col, VL) : look_ahead_of(s, row * cols + col, lanes);
        squares += value * value;
        if (lanes == VL)
            enter_values(s, row, col, VL, value, dtype);
        else
            enter_values(s, row, col, lanes, value, dtype);
    }
    double sum = 0;
    for (int i = 0; i < VL; i++) sum += (double)squares[i];
    return sum;
}

static void enter_part(void *context, int64_t part, sepnet_worker worker) {
    (void)worker;
    const muon_job copy = *(const muon_job *)context, *s = &copy;
    const int64_t end = sepnet_part_begin(s->step->rows, s->parts, part + 1);
    for (int64_t row = sepnet_part_begin(s->step->rows, s->parts, part); row < end; row++)
        s->row_sums[row] = HAVE_PAIRS && s->step->dtype == SEPNET_BFLOAT16 ? enter_row(s, row, SEPNET_BFLOAT16)
                                                                            : enter_row(s, row, SEPNET_FLOAT32);
}

/* One over the norm of what has entered. */
static double enter_all(muon_job *s) {
    double sum = 0;
    clear_around(s->x);
    for (int i = 0; i < SQUARES; i++) clear_around(s->square[i]);
    s->parts = sepnet_min(s->step->rows, s->step->threads);
    sepnet_run_parts(enter_part, s, s->parts, s->step->threads);
    for (int64_t row = 0; row < s->step->rows; row++) sum += s->row_sums[row];
    const double norm = __builtin_sqrt(sum);
    return 1 / (norm < LEAST_NORM ? LEAST_NORM : norm);
}

/* --- iterations ---------------------------------------------------------------------------------------------------------------- */

static void pack(const muon_job *s, matrix m, int across) { pack_matrix((packed){m, across, s->panels}, s->step->threads); }

/* to = alpha * left * (what is packed) + beta * (add + more). */
static void square_product(const muon_job *s, matrix to, matrix left, double alpha, matrix add, matrix more, double beta) {
    multiply((product_of){.left = left, .add = add, .more = more, .to = to, .panels = s->panels, .cols = s->rows,
                          .alpha = (float)alpha, .beta = (float)beta},
             s->step->threads);
}

/* The product of all (I + P), less the identity. `scale`: of X. */
static matrix iterate(const muon_job *s, double scale) {
    static const matrix none = {0};
    const double a = s->step->a, b = s->step->b, c = s->step->c;
    const matrix gram = s->square[0], half = s->square[1];
    matrix p = s->square[2], product = s->square[3], next = s->square[4];
    pack(s, s->x, 1);
    square_product(s, gram, s->x, scale * scale, none, none, 0);
    for (int i = 0; i < s->step->steps; i++) {
        const matrix power = i ? p : product; /* the first one is the product */
        pack(s, gram, 0);
        square_product(s, power, gram, c / a, gram, none, b / a);
        const int last = i + 1 == s->step->steps;
        if (i || !last) pack(s, power, 0);
        if (!last) square_product(s, half, gram, 1, gram, none, 1);
        if (i) {
            square_product(s, next, product, 1, product, p, 1);
            const matrix before = product;
            product = next, next = before;
        }
        if (!last) square_product(s, gram, half, a * a, half, none, a * a);
    }
    return product;
}

static void muon_step(const sepnet_muon *step, const float *grad, float *mean, float *weight, void *workspace) {
    muon_job s = make_muon_job(step, workspace);
    s.grad = grad, s.mean = mean;
    const double scale = enter_all(&s);
    double rate = step->rate * scale;
    for (int i = 0; i < step->steps; i++) rate *= step->a;
    const matrix product = iterate(&s, scale);
    pack(&s, s.x, 0);
    multiply((product_of){.left = product, .add = s.x, .panels = s.panels, .cols = s.cols, .alpha = (float)rate, .beta = (float)rate,
                          .keep = (float)step->keep, .weight = weight, .transposed = s.tall},
             step->threads);
}
