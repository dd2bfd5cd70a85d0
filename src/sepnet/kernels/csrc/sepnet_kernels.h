/* Plain C interface of sepnet's CPU kernels. All tensors are dense and channels-last: element (n, h, w, c) of a map of
 * C channels lies at ((n * H + h) * W + w) * C + c. Activations are float32 or bfloat16; weights, biases, statistics
 * and their gradients are float32, and every sum is accumulated in float32 (statistics over a batch in float64).
 * Nothing here allocates: the caller hands in a workspace of the size that it asks for. */
#ifndef SEPNET_KERNELS_H
#define SEPNET_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define SEPNET_ABI 2
#define SEPNET_MAX_BRANCHES 4
#define SEPNET_MAX_KERNEL 7
#define SEPNET_MAX_TAPS (SEPNET_MAX_BRANCHES * SEPNET_MAX_KERNEL * SEPNET_MAX_KERNEL)

enum { SEPNET_FLOAT32 = 0, SEPNET_BFLOAT16 = 1 };

/* One depthwise filter bank: kernel_h x kernel_w taps a channel. */
typedef struct {
    int64_t kernel_h, kernel_w, pad_h, pad_w, dilation_h, dilation_w;
} sepnet_branch;

/* Depthwise convolution of one input by one or more filter banks ("branches") of equal stride and output size.
 * Output channel of channel c, branch j: c * branches + j if interleaved (a channel multiplier, as PyTorch orders it),
 * j * channels + c otherwise (the branches' outputs concatenated). Weights: (channels * branches, kernel_h, kernel_w) if
 * interleaved (all branches alike), otherwise one (channels, kernel_h, kernel_w) array after the other. */
typedef struct {
    int64_t batch, channels, in_h, in_w, out_h, out_w, stride_h, stride_w;
    int32_t branches, interleaved, dtype, threads;
    sepnet_branch branch[SEPNET_MAX_BRANCHES];
} sepnet_depthwise;

/* Batch normalisation over (batch * height * width) values a channel, 2x2 max pooling of stride 2 (if pool), ReLU (if relu). */
typedef struct {
    int64_t batch, channels, height, width;
    int32_t pool, relu, dtype, threads;
} sepnet_norm;

/* Running averages of the mean and of the unbiased variance: average = (1 - momentum) * average + momentum * new. */
typedef struct {
    float *mean, *var;
    double momentum;
} sepnet_running;

/* fn(context) may be run by several threads at once; returns when all have. The signature of libgomp's GOMP_parallel. */
typedef void (*sepnet_parallel_fn)(void (*fn)(void *), void *context, unsigned threads, unsigned flags);

int sepnet_abi(void);
/* Instruction set in use: "avx512_bf16", "avx512", "avx2" or "baseline"; select one by name (0 if it runs here). */
const char *sepnet_isa(void);
int sepnet_select_isa(const char *name);
/* Run in the team of threads of somebody else's runtime, so that there is one pool in the process; NULL: a pool of our own. */
void sepnet_set_parallel(sepnet_parallel_fn parallel);

/* Bytes of workspace; -1 if the description is one that these kernels do not take. */
int64_t sepnet_depthwise_workspace(const sepnet_depthwise *conv, int backward);
/* y = conv(x, weight) + bias (bias may be NULL). */
int sepnet_depthwise_forward(const sepnet_depthwise *conv, const void *x, const float *weight, const float *bias, void *y,
                             void *workspace);
/* Gradients from grad = dL/dy; any of the results may be NULL. They are overwritten; grad_weight is in the layout of weight. */
int sepnet_depthwise_backward(const sepnet_depthwise *conv, const void *x, const float *weight, const void *grad, void *grad_x,
                              float *grad_weight, float *grad_bias, void *workspace);

int64_t sepnet_norm_workspace(const sepnet_norm *norm);
/* y = relu(pool(gamma * (x - mean) * invstd + beta)) with x's own mean and inverse standard deviation a channel, which are
 * written to `mean` and `invstd`. argmax (pool only, may be NULL): which of the 2x2 positions 0..3 was kept. */
int sepnet_norm_forward(const sepnet_norm *norm, const void *x, const float *gamma, const float *beta, double eps,
                        const sepnet_running *running, float *mean, float *invstd, void *y, uint8_t *argmax, void *workspace);
/* y = relu(pool(x * scale + shift)): the same with given constants. */
int sepnet_norm_apply(const sepnet_norm *norm, const void *x, const float *scale, const float *shift, void *y, uint8_t *argmax);
/* Gradients of y = relu(pool(gamma * (x - mean) * invstd + beta)), mean and invstd being x's own. y is the forward's result
 * (pool: tells where ReLU cut; else unused). grad_gamma, grad_beta are overwritten. */
int sepnet_norm_backward(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                         const float *mean, const float *invstd, const float *gamma, const float *beta, void *grad_x,
                         float *grad_gamma, float *grad_beta, void *workspace);

#endif
