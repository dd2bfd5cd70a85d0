/* The public functions: checks, then the kernels of the best instruction set that the processor has. */
#include "internal.h"

#include <stdatomic.h>
#include <string.h>

/* Kernels by the name of what they compute with. */
typedef struct {
    const char *name;
    const sepnet_ops *ops;
    int (*runs)(void), (*suits)(void); /* can be selected here; is chosen where nobody selects */
    int pairs_in_planes; /* of bfloat16 values (pairing.h) */
    const sepnet_pointwise_ops *half_pointwise; /* of bfloat16; NULL: there are none */
    const sepnet_muon_ops *half_muon;           /* the same; NULL: those of `ops` */
} choice;

static int always(void) { return 1; }

#if defined(__x86_64__)
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static int has_avx512_bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
#if defined(SEPNET_AMX)
static int has_amx(void) { return has_avx512_bf16() && sepnet_has_amx_bf16(); }
#endif

/* Best first. */
static const choice choices[] = {
#if defined(__x86_64__)
#if defined(SEPNET_AMX)
    {"avx512_bf16_amx", &sepnet_ops_avx512_bf16, has_amx, sepnet_is_intel_with_bf16, 0, &sepnet_amx_pointwise, &sepnet_amx_muon},
#endif
    {"avx512_bf16_floats", &sepnet_ops_avx512_bf16, has_avx512_bf16, sepnet_is_intel_with_bf16, 0, NULL, NULL},
    {"avx512_bf16", &sepnet_ops_avx512_bf16, has_avx512_bf16, always, 1, &sepnet_pair_pointwise, NULL},
    {"avx512", &sepnet_ops_avx512, has_avx512, always, 0, NULL, NULL},
    {"avx2", &sepnet_ops_avx2, has_avx2, always, 0, NULL, NULL},
#endif
    {"baseline", &sepnet_ops_baseline, always, always, 0, NULL, NULL},
};

static _Atomic(const choice *) selected = NULL;

static const choice *chosen(void) {
    const choice *now = atomic_load_explicit(&selected, memory_order_acquire);
    if (now) return now;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    const choice *c = choices;
    while (!c->runs() || !c->suits()) c++;
    atomic_store_explicit(&selected, c, memory_order_release);
    return c;
}

static const sepnet_ops *ops(void) { return chosen()->ops; }

int sepnet_multiplies_pairs(void) { return chosen()->pairs_in_planes; }

int sepnet_abi(void) { return SEPNET_ABI; }

const char *sepnet_isa(void) { return chosen()->name; }

int sepnet_select_isa(const char *name) {
    chosen(); /* looks at the processor */
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        if (strcmp(choices[i].name, name) == 0 && choices[i].runs()) {
            atomic_store_explicit(&selected, choices + i, memory_order_release);
            return 0;
        }
    return -1;
}

static int valid_branch(const sepnet_depthwise *conv, const sepnet_branch *b) {
    if (b->kernel_h < 1 || b->kernel_w < 1 || b->kernel_h > SEPNET_MAX_KERNEL || b->kernel_w > SEPNET_MAX_KERNEL) return 0;
    if (b->pad_h < 0 || b->pad_w < 0 || b->dilation_h < 1 || b->dilation_w < 1) return 0;
    int64_t span_h = conv->in_h + 2 * b->pad_h - (b->kernel_h - 1) * b->dilation_h - 1;
    int64_t span_w = conv->in_w + 2 * b->pad_w - (b->kernel_w - 1) * b->dilation_w - 1;
    return span_h >= 0 && span_w >= 0 && conv->out_h == span_h / conv->stride_h + 1 && conv->out_w == span_w / conv->stride_w + 1;
}

static int valid_depthwise(const sepnet_depthwise *conv) {
    if (conv->batch < 0 || conv->channels < 1 || conv->in_h < 1 || conv->in_w < 1) return 0;
    if (conv->stride_h < 1 || conv->stride_w < 1 || conv->threads < 1) return 0;
    if (conv->branches < 1 || conv->branches > SEPNET_MAX_BRANCHES) return 0;
    if (conv->dtype != SEPNET_FLOAT32 && conv->dtype != SEPNET_BFLOAT16) return 0;
    for (int j = 0; j < conv->branches; j++) {
        if (!valid_branch(conv, &conv->branch[j])) return 0;
        if (conv->interleaved && memcmp(&conv->branch[j], &conv->branch[0], sizeof conv->branch[0]) != 0) return 0;
    }
    return 1;
}

int64_t sepnet_depthwise_workspace(const sepnet_depthwise *conv, int backward) {
    return valid_depthwise(conv) ? ops()->depthwise_workspace(conv, backward) : -1;
}

/* A normalisation's constants are read by whole vectors of neighbouring channels. */
static int valid_joined(const sepnet_depthwise *conv, const sepnet_joined *joined) {
    return valid_depthwise(conv) && !(joined && conv->interleaved && conv->branches > 1);
}

int sepnet_depthwise_forward(const sepnet_depthwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                             const float *bias, void *y, void *workspace) {
    if (!valid_joined(conv, joined)) return -1;
    ops()->depthwise_forward(conv, joined, x, weight, bias, y, workspace);
    return 0;
}

int sepnet_depthwise_backward(const sepnet_depthwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    if (!valid_joined(conv, joined)) return -1;
    ops()->depthwise_backward(conv, joined, x, weight, grad, grad_x, grad_weight, grad_bias, workspace);
    return 0;
}

static int valid_norm(const sepnet_norm *norm) {
    if (norm->batch < 1 || norm->channels < 1 || norm->height < 1 || norm->width < 1 || norm->threads < 1) return 0;
    if (norm->pool && (norm->height < 2 || norm->width < 2)) return 0;
    return norm->dtype == SEPNET_FLOAT32 || norm->dtype == SEPNET_BFLOAT16;
}

int64_t sepnet_norm_workspace(const sepnet_norm *norm) { return valid_norm(norm) ? ops()->norm_workspace(norm) : -1; }

int sepnet_norm_statistics(const sepnet_norm *norm, const void *x, const double *rows, const float *gamma, const float *beta,
                           double eps, const sepnet_running *running, float *constants, void *workspace) {
    if (!valid_norm(norm)) return -1;
    ops()->norm_statistics(norm, x, rows, gamma, beta, eps, running, constants, workspace);
    return 0;
}

/* A shortcut ends in ReLU, and nothing is pooled. */
static int valid_sum(const sepnet_norm *norm, const void *shortcut) {
    return valid_norm(norm) && !(shortcut && (norm->pool || !norm->relu));
}

int sepnet_norm_apply(const sepnet_norm *norm, const void *x, const void *shortcut, const float *scale, const float *shift, void *y,
                      uint8_t *argmax) {
    if (!valid_sum(norm, shortcut)) return -1;
    ops()->norm_apply(norm, x, shortcut, scale, shift, y, argmax);
    return 0;
}

int sepnet_norm_forward(const sepnet_norm *norm, const void *x, const double *rows, const void *shortcut, const float *gamma,
                        const float *beta, double eps, const sepnet_running *running, float *constants, void *y, uint8_t *argmax,
                        void *workspace) {
    if (!valid_sum(norm, shortcut)) return -1;
    ops()->norm_forward(norm, x, rows, shortcut, gamma, beta, eps, running, constants, y, argmax, workspace);
    return 0;
}

int sepnet_norm_sums(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                     const float *constants, void *grad_shortcut, double *rows, void *workspace) {
    if (!valid_sum(norm, grad_shortcut)) return -1;
    ops()->norm_sums(norm, x, y, argmax, grad, constants, grad_shortcut, rows, workspace);
    return 0;
}

int sepnet_norm_gradients(const sepnet_norm *norm, const double *rows, float *constants, float *grad_gamma, float *grad_beta) {
    if (!valid_norm(norm)) return -1;
    ops()->norm_gradients(norm, rows, constants, grad_gamma, grad_beta);
    return 0;
}

int sepnet_norm_input_gradient(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                               const float *constants, void *grad_x) {
    if (!valid_norm(norm)) return -1;
    ops()->norm_input_gradient(norm, x, y, argmax, grad, constants, grad_x);
    return 0;
}

int sepnet_norm_backward(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                         float *constants, void *grad_x, void *grad_shortcut, float *grad_gamma, float *grad_beta, void *workspace) {
    if (!valid_sum(norm, grad_shortcut)) return -1;
    ops()->norm_backward(norm, x, y, argmax, grad, constants, grad_x, grad_shortcut, grad_gamma, grad_beta, workspace);
    return 0;
}

static int valid_pooled(const sepnet_norm *norm, int64_t inputs) {
    return valid_norm(norm) && norm->pool && inputs >= 1 && inputs <= SEPNET_MAX_FEW;
}

int64_t sepnet_pooled_pointwise_workspace(const sepnet_norm *norm, int64_t inputs, int backward) {
    return valid_pooled(norm, inputs) ? ops()->pooled_pointwise_workspace(norm, inputs, backward) : -1;
}

int sepnet_pooled_pointwise_forward(const sepnet_norm *norm, int64_t inputs, const void *x, const float *weight, const float *gamma,
                                    const float *beta, double eps, const sepnet_running *running, float *constants, double *moments,
                                    void *y, uint8_t *kept, void *workspace) {
    if (!valid_pooled(norm, inputs)) return -1;
    ops()->pooled_pointwise_forward(norm, inputs, x, weight, gamma, beta, eps, running, constants, moments, y, kept, workspace);
    return 0;
}

int sepnet_pooled_pointwise_backward(const sepnet_norm *norm, int64_t inputs, const void *x, const float *weight, const uint8_t *kept,
                                     const void *grad, float *constants, const double *moments, void *grad_x, float *grad_weight,
                                     float *grad_gamma, float *grad_beta, void *workspace) {
    if (!valid_pooled(norm, inputs)) return -1;
    ops()->pooled_pointwise_backward(norm, inputs, x, weight, kept, grad, constants, moments, grad_x, grad_weight, grad_gamma, grad_beta,
                                     workspace);
    return 0;
}

/* NULL: there are none for such a convolution. */
static const sepnet_pointwise_ops *pointwise_ops(const sepnet_pointwise *conv, const sepnet_joined *joined) {
    const sepnet_pointwise_ops *half = chosen()->half_pointwise;
    if (conv->rows < 1 || conv->in < 1 || conv->out < 1 || conv->threads < 1 || (joined && joined->after)) return NULL;
    if (conv->dtype == SEPNET_FLOAT32) return &ops()->pointwise;
    return conv->dtype == SEPNET_BFLOAT16 && half && half->workspace(conv, 0) >= 0 ? half : NULL;
}

int64_t sepnet_pointwise_workspace(const sepnet_pointwise *conv, int backward) {
    const sepnet_pointwise_ops *found = pointwise_ops(conv, NULL);
    return found ? found->workspace(conv, backward) : -1;
}

int sepnet_pointwise_forward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                             const float *bias, void *y, void *workspace) {
    const sepnet_pointwise_ops *found = pointwise_ops(conv, joined);
    if (!found) return -1;
    found->forward(conv, joined, x, weight, bias, y, workspace);
    return 0;
}

int sepnet_pointwise_backward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace) {
    const sepnet_pointwise_ops *found = pointwise_ops(conv, joined);
    if (!found) return -1;
    found->backward(conv, joined, x, weight, grad, grad_x, grad_weight, grad_bias, workspace);
    return 0;
}

static int valid_muon(const sepnet_muon *weight) {
    if (weight->rows < 1 || weight->cols < 1 || weight->steps < 1) return 0;
    return weight->dtype == SEPNET_FLOAT32 || (weight->dtype == SEPNET_BFLOAT16 && ops()->has_pairs);
}

static int all_valid(const sepnet_muon *weights, int64_t count, int threads) {
    if (count < 1 || threads < 1) return 0;
    for (int64_t i = 0; i < count; i++)
        if (!valid_muon(weights + i)) return 0;
    return 1;
}

static const sepnet_muon_ops *muon_ops(const sepnet_muon *weights, int64_t count) {
    const sepnet_muon_ops *half = chosen()->half_muon;
    for (int64_t i = 0; half && i < count; i++)
        if (weights[i].dtype != SEPNET_BFLOAT16) half = NULL;
    return half ? half : &ops()->muon;
}

int64_t sepnet_muon_workspace(const sepnet_muon *weights, int64_t count, int threads) {
    return all_valid(weights, count, threads) ? muon_ops(weights, count)->workspace(weights, count, threads) : -1;
}

int sepnet_muon_step(const sepnet_muon *weights, int64_t count, int threads, void *workspace) {
    if (!all_valid(weights, count, threads)) return -1;
    muon_ops(weights, count)->step(weights, count, threads, workspace);
    return 0;
}
