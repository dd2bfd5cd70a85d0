/* Filters of several depthwise layers as those of one. Between Wang et al.'s depthwise layers stands nothing nonlinear, so that each
 * branch, identity included, is one filter of the input; to find it is a few thousand multiplications, and calls by the dozen in a
 * tensor library. */
#include "sepnet_kernels.h"

#include <string.h>

enum { SIDE = 3, WIDE = 2 * SIDE - 1, SMALL = SIDE * SIDE, LARGE = WIDE * WIDE };

static int valid_multiscale(const sepnet_multiscale *unit) { return unit->channels >= 1; }

/* Where the window of SIDE x SIDE that begins at (row, column) has its element. */
static int within(int row, int column, int element) { return (row + element / SIDE) * WIDE + column + element % SIDE; }

/* The second filter moved over the first: their full convolution. */
static void stack(const float *first, const float *second, float *large) {
    memset(large, 0, LARGE * sizeof *large);
    for (int i = 0; i < SMALL; i++)
        for (int j = 0; j < SMALL; j++) large[within(i / SIDE, i % SIDE, j)] += second[i] * first[j];
}

static void unstack(const float *first, const float *second, const float *grad, float *grad_first, float *grad_second) {
    float of_first[SMALL] = {0}, of_second[SMALL] = {0};
    for (int i = 0; i < SMALL; i++)
        for (int j = 0; j < SMALL; j++) {
            float g = grad[within(i / SIDE, i % SIDE, j)];
            of_first[j] += second[i] * g, of_second[i] += first[j] * g;
        }
    if (grad_first) memcpy(grad_first, of_first, sizeof of_first);
    if (grad_second) memcpy(grad_second, of_second, sizeof of_second);
}

int sepnet_multiscale_filters(const sepnet_multiscale *unit, const float *small, const float *first, const float *second, float *filters) {
    if (!valid_multiscale(unit)) return -1;
    float *large = unit->add ? filters : filters + unit->channels * SMALL, one = unit->residual ? 1 : 0;
    for (int64_t c = 0; c < unit->channels; c++, small += SMALL, first += SMALL, second += SMALL, large += LARGE) {
        stack(first, second, large);
        large[LARGE / 2] += one;
        if (unit->add) {
            for (int j = 0; j < SMALL; j++) large[within(1, 1, j)] += small[j];
        } else {
            memcpy(filters + c * SMALL, small, SMALL * sizeof *small);
            filters[c * SMALL + SMALL / 2] += one;
        }
    }
    return 0;
}

int sepnet_multiscale_gradients(const sepnet_multiscale *unit, const float *first, const float *second, const float *grad,
                                float *grad_small, float *grad_first, float *grad_second) {
    if (!valid_multiscale(unit)) return -1;
    const float *large = unit->add ? grad : grad + unit->channels * SMALL;
    if (grad_small && !unit->add) memcpy(grad_small, grad, (size_t)unit->channels * SMALL * sizeof *grad);
    for (int64_t c = 0; c < unit->channels; c++, large += LARGE) {
        unstack(first + c * SMALL, second + c * SMALL, large, grad_first ? grad_first + c * SMALL : NULL,
                grad_second ? grad_second + c * SMALL : NULL);
        for (int j = 0; grad_small && unit->add && j < SMALL; j++) grad_small[c * SMALL + j] = large[within(1, 1, j)];
    }
    return 0;
}
