/* Matrices of products and what their tiles read. One vector length; included after pack.h. With AMX they are of bfloat16.
 *
 * A matrix lies in rows of "units" of four bytes: a float, or a pair of bfloat16 values that follow one another. Zeros lie beyond its last
 * row and column, as far as tiles and panels go. */

#ifdef HAVE_AMX
enum { SQ_ROWS = 32, SQ_VECTORS = 2, SQ_UNITS = 16, GROUP_PANELS = 32 };
#else
enum { SQ_ROWS = 6, SQ_VECTORS = VL == 16 ? 4 : 2, SQ_UNITS = 1, GROUP_PANELS = 1 };
#endif
enum { GROUP_BYTES = 640 << 10 }; /* of panels: to stay in the L2 cache (256 KB to 1 MB are as fast) */
enum { SQ_COLS = SQ_VECTORS * VL };

typedef vf square_tile[SQ_ROWS][SQ_VECTORS];

/* A matrix of elements of `dtype`, `step` of them from row to row. */
typedef struct {
    char *at;
    int64_t rows, cols, step;
    int dtype;
} matrix;

INLINE int64_t values_a_unit(int dtype) { return dtype == SEPNET_BFLOAT16 ? 2 : 1; }

/* A line is left between rows, as powers of two would share few sets of the L1 cache. */
static matrix shape_matrix(int64_t rows, int64_t cols, int dtype) {
    const int64_t gap = CACHE_LINE / (int64_t)element_size(dtype);
    return (matrix){NULL, rows, cols, sepnet_round_up(cols, SQ_COLS) + gap, dtype};
}

static int64_t matrix_bytes(matrix m) {
    return aligned(sepnet_round_up(m.rows, SQ_ROWS) * m.step * (int64_t)element_size(m.dtype));
}

INLINE char *element(matrix m, int64_t row, int64_t col) { return m.at + (row * m.step + col) * (int64_t)element_size(m.dtype); }

INLINE const float *units_of(matrix m, int64_t row) { return (const float *)element(m, row, 0); }

INLINE int64_t row_units(matrix m) { return m.step / values_a_unit(m.dtype); }

/* The zeros around it. */
static void clear_around(matrix m) {
    const size_t size = element_size(m.dtype);
    for (int64_t r = 0; r < m.rows; r++) memset(element(m, r, m.cols), 0, (size_t)(m.step - m.cols) * size);
    memset(element(m, m.rows, 0), 0, (size_t)((sepnet_round_up(m.rows, SQ_ROWS) - m.rows) * m.step) * size);
}

/* --- a panel of the right matrix: [unit][SQ_COLS] -------------------------------------------------------------------------- */

typedef struct {
    matrix from;
    int across; /* of the transposed matrix, whose columns are the rows */
} right_matrix;

static int64_t depth_of(right_matrix r) {
    const int64_t values = values_a_unit(r.from.dtype);
    return sepnet_round_up(((r.across ? r.from.cols : r.from.rows) + values - 1) / values, SQ_UNITS);
}

static int64_t count_panels(right_matrix r) { return ((r.across ? r.from.rows : r.from.cols) + SQ_COLS - 1) / SQ_COLS; }

static int64_t panel_bytes(right_matrix r) { return aligned(depth_of(r) * SQ_COLS * (int64_t)sizeof(float)); }

/* Neighbouring panels that a thread packs and goes through together. */
static int64_t panels_at_once(right_matrix r) { return sepnet_min(GROUP_PANELS, sepnet_max(1, GROUP_BYTES / panel_bytes(r))); }

static int64_t panels_bytes(right_matrix r) { return panels_at_once(r) * panel_bytes(r); }

/* The rows that are the panel's columns. */
static void pack_across(right_matrix right, int64_t panel, float *to) {
    const int64_t depth = depth_of(right), top = panel * SQ_COLS, rows = sepnet_min(SQ_COLS, right.from.rows - top);
    if (rows < SQ_COLS) memset(to, 0, (size_t)(depth * SQ_COLS) * sizeof *to);
    turn_rows(units_of(right.from, top), row_units(right.from), rows, depth, to, SQ_COLS);
}

/* So many panels, `apart` floats from one to the next, in the order in which their values are in memory. */
static void pack_down(right_matrix right, int64_t panel, int64_t panels, float *to, int64_t apart) {
    const int64_t depth = depth_of(right);
    for (int64_t u = 0; u < depth; u++, to += SQ_COLS)
        for (int64_t i = 0; i < panels; i++) {
            const int64_t col = (panel + i) * SQ_COLS;
            if (right.from.dtype == SEPNET_FLOAT32) {
                memcpy(to + i * apart, element(right.from, u, col), SQ_COLS * sizeof *to);
                continue;
            }
            const uint16_t *first = (const uint16_t *)element(right.from, 2 * u, col), *second = first + right.from.step;
            for (int v = 0; v < SQ_VECTORS; v++) *(vf *)(to + i * apart + v * VL) = load_pairs(first + v * VL, second + v * VL);
        }
}

static void pack_group(right_matrix right, int64_t panel, int64_t panels, float *to, int64_t apart) {
    if (!right.across)
        pack_down(right, panel, panels, to, apart);
    else
        for (int64_t i = 0; i < panels; i++) pack_across(right, panel + i, to + i * apart);
}
