/* Plain C interface of sepnet's CPU kernels. All tensors are dense and channels-last: element (n, h, w, c) of a map of
 * C channels lies at ((n * H + h) * W + w) * C + c. Activations are float32 or bfloat16; weights, biases, statistics
 * and their gradients are float32, and every sum is accumulated in float32 (statistics over a batch in float64). With maps of
 * bfloat16 a depthwise convolution may round its weights to it, as PyTorch does under autocast.
 * Nothing here allocates: the caller hands in a workspace of the size that it asks for. */
#ifndef SEPNET_KERNELS_H
#define SEPNET_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define SEPNET_ABI 12
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

/* Depthwise branches of one input, 3x3 and two 3x3 one after the other: their outputs concatenated or added, each with the identity if
 * residual. Filters are (channels, 3, 3). */
typedef struct {
    int64_t channels;
    int32_t add, residual;
} sepnet_multiscale;

/* Pointwise (1x1) convolution: rows (pixels of all images) of `in` channels to rows of `out`. Of bfloat16 where the instruction set in use
 * is "avx512_bf16" or "avx512_bf16_amx", and both numbers of channels are multiples of 32; weights are rounded to it. */
typedef struct {
    int64_t rows, in, out;
    int32_t dtype, threads;
} sepnet_pointwise;

/* A step of Muon for a weight of (rows, cols): its gradient's momentum (none where there is no mean), made near orthogonal by so many
 * Newton-Schulz iterations a X + b X X' X + c (X X')^2 X, computed in dtype; weight = keep * weight + rate * that. mean (may be NULL)
 * moves towards grad, and X is Nesterov's look ahead. With keep == 0 the weight is overwritten. */
typedef struct {
    int64_t rows, cols;
    int32_t steps, dtype;
    double a, b, c, momentum, keep, rate;
    const float *grad;
    float *mean, *weight;
} sepnet_muon;

/* Running averages of the mean and of the unbiased variance: average = (1 - momentum) * average + momentum * new. */
typedef struct {
    float *mean, *var;
    double momentum;
} sepnet_running;

/* fn(context) may be run by several threads at once; returns when all have. The signature of libgomp's GOMP_parallel. */
typedef void (*sepnet_parallel_fn)(void (*fn)(void *), void *context, unsigned threads, unsigned flags);
/* Which thread of its team the caller is, from 0: libgomp's omp_get_thread_num. */
typedef int (*sepnet_thread_fn)(void);

int sepnet_abi(void);
/* Instruction set in use: "avx512_bf16", "avx512_bf16_floats" (the same, but depthwise convolutions multiply floats, and pointwise ones of
 * bfloat16 there are none), "avx512_bf16_amx" ("avx512_bf16_floats", and products of bfloat16 matrices by AMX), "avx512", "avx2" or
 * "baseline"; select one by name (0 if it runs here). */
const char *sepnet_isa(void);
int sepnet_select_isa(const char *name);
/* Run in the team of threads of somebody else's runtime, so that there is one pool in the process; both NULL: a pool of our own.
 * By its number a thread is given the same piece of a map in each call. */
void sepnet_set_parallel(sepnet_parallel_fn parallel, sepnet_thread_fn number);

/* A normalisation's constants: rows of a float a channel, in this order. The forward pass is x * scale + shift; the gradient is
 * scale * g + slope * (x - mean) + constant, g being the gradient that passes the ReLU. */
enum { SEPNET_MEAN, SEPNET_INVSTD, SEPNET_SCALE, SEPNET_SHIFT, SEPNET_SLOPE, SEPNET_CONSTANT, SEPNET_CONSTANTS };

/* What a convolution takes over from the normalisations at its sides, so that they need fewer passes over memory.
 * Any pointer may be NULL. Depthwise: not with a channel multiplier. Pointwise: without `after`.
 * before: constants; the convolution's input is z = relu(x * scale + shift) with them (relu if before_relu), zero padding after
 *     that. Backward: grad_x is dL/dz, not yet cut by the ReLU.
 * sums: forward: three rows of a double an output channel, as sepnet_norm_statistics takes them, of y. Backward (with before
 *     and grad_x): two rows a channel, as sepnet_norm_gradients takes them, of dL/dz and x.
 * after, y: backward: grad is the gradient of relu(y * scale + shift) (relu if after_relu) instead of that of y. */
typedef struct {
    const float *before, *after;
    const void *y;
    double *sums;
    int32_t before_relu, after_relu;
} sepnet_joined;

/* Bytes of workspace; -1 if the description is one that these kernels do not take. */
int64_t sepnet_depthwise_workspace(const sepnet_depthwise *conv, int backward);
/* y = conv(x, weight) + bias (bias, joined may be NULL). */
int sepnet_depthwise_forward(const sepnet_depthwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                             const float *bias, void *y, void *workspace);
/* Gradients from grad = dL/dy; any of the results may be NULL. They are overwritten; grad_weight is in the layout of weight. x is read
 * whichever of them are wanted. */
int sepnet_depthwise_backward(const sepnet_depthwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace);

/* The same as kernels that PyTorch's dispatcher calls (torch_operator.c), with functions of PyTorch's that must be known before. -1: there
 * are not so many of them. */
typedef struct sepnet_torch sepnet_torch;
int sepnet_set_torch(const sepnet_torch *functions, int64_t count);
void sepnet_convolution_forward(uint64_t *stack, uint64_t inputs, uint64_t outputs);
void sepnet_convolution_backward(uint64_t *stack, uint64_t inputs, uint64_t outputs);
/* Which passes of such a convolution are to be those of PyTorch's, and in how many threads at most ours work; the description's threads
 * do not matter, and what it leaves unused is zero. -1: no more can be remembered. */
enum { SEPNET_FORWARD_BY_TORCH = 1, SEPNET_BACKWARD_BY_TORCH = 2 };
int sepnet_tell_way(const sepnet_depthwise *conv, int by_torch, int64_t most_threads);
void sepnet_forget_ways(void); /* while no such kernel runs */

int64_t sepnet_norm_workspace(const sepnet_norm *norm);
/* Writes the first four rows of the constants and the next running averages (may be NULL). rows: an origin a channel, the sum of
 * x - origin and the sum of its square; NULL: they are found from x. */
int sepnet_norm_statistics(const sepnet_norm *norm, const void *x, const double *rows, const float *gamma, const float *beta,
                           double eps, const sepnet_running *running, float *constants, void *workspace);
/* y = relu(pool(x * scale + shift + shortcut)). shortcut (may be NULL): with relu and without pool only. argmax (pool only, may be
 * NULL): which of the 2x2 positions 0..3 was kept. */
int sepnet_norm_apply(const sepnet_norm *norm, const void *x, const void *shortcut, const float *scale, const float *shift, void *y,
                      uint8_t *argmax);
/* Both: y = relu(pool(gamma * (x - mean) * invstd + beta + shortcut)) with x's own statistics (rows: see there). */
int sepnet_norm_forward(const sepnet_norm *norm, const void *x, const double *rows, const void *shortcut, const float *gamma,
                        const float *beta, double eps, const sepnet_running *running, float *constants, void *y, uint8_t *argmax,
                        void *workspace);

/* rows: of a double a channel, the sum of g and the sum of g * (x - mean). y is the forward's result (pool, shortcut: tells where
 * ReLU cut; else unused). grad_shortcut: NULL if there was no shortcut; else g is written there. */
int sepnet_norm_sums(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                     const float *constants, void *grad_shortcut, double *rows, void *workspace);
/* From those sums: the last two rows of the constants, and the gradients of gamma and beta, which are overwritten. */
int sepnet_norm_gradients(const sepnet_norm *norm, const double *rows, float *constants, float *grad_gamma, float *grad_beta);
/* After a shortcut: with grad = grad_shortcut and without relu. */
int sepnet_norm_input_gradient(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                               const float *constants, void *grad_x);
/* All three. */
int sepnet_norm_backward(const sepnet_norm *norm, const void *x, const void *y, const uint8_t *argmax, const void *grad,
                         float *constants, void *grad_x, void *grad_shortcut, float *grad_gamma, float *grad_beta, void *workspace);

/* Pointwise convolution of x, a map of `inputs` channels (up to SEPNET_MAX_FEW), then batch normalisation by the batch's statistics, 2x2
 * max pooling and ReLU (if relu) as one operation; the description is that of the normalisation, pool set. weight: (channels, inputs).
 * moments (SEPNET_FEW_MOMENTS doubles): mean and covariance of x's channels, written by the forward pass for the backward pass, as are the
 * constants. kept: which of the 2x2 positions 0..3 was kept, SEPNET_CUT where ReLU cut it. */
#define SEPNET_MAX_FEW 8
#define SEPNET_FEW_MOMENTS (SEPNET_MAX_FEW + SEPNET_MAX_FEW * SEPNET_MAX_FEW)
enum { SEPNET_CUT = 4 };
int64_t sepnet_pooled_pointwise_workspace(const sepnet_norm *norm, int64_t inputs, int backward);
int sepnet_pooled_pointwise_forward(const sepnet_norm *norm, int64_t inputs, const void *x, const float *weight, const float *gamma,
                                    const float *beta, double eps, const sepnet_running *running, float *constants, double *moments,
                                    void *y, uint8_t *kept, void *workspace);
/* Gradients from grad = dL/dy; grad_x and grad_weight may be NULL. They are overwritten. */
int sepnet_pooled_pointwise_backward(const sepnet_norm *norm, int64_t inputs, const void *x, const float *weight, const uint8_t *kept,
                                     const void *grad, float *constants, const double *moments, void *grad_x, float *grad_weight,
                                     float *grad_gamma, float *grad_beta, void *workspace);

/* The branches' filters as those of sepnet_depthwise: (channels, 3, 3) and (channels, 5, 5), or with add (channels, 5, 5). The two
 * stacked convolutions see zeros beyond the map's border once, not between them. */
int sepnet_multiscale_filters(const sepnet_multiscale *unit, const float *small, const float *first, const float *second, float *filters);
/* Gradients from those of the filters; any of the results may be NULL. They are overwritten. */
int sepnet_multiscale_gradients(const sepnet_multiscale *unit, const float *first, const float *second, const float *grad,
                                float *grad_small, float *grad_first, float *grad_second);

int64_t sepnet_pointwise_workspace(const sepnet_pointwise *conv, int backward);
/* y (rows, out) = x (rows, in) * weight (out, in), transposed, + bias (may be NULL). */
int sepnet_pointwise_forward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                             const float *bias, void *y, void *workspace);
/* Gradients from grad = dL/dy; any of the results may be NULL. They are overwritten. */
int sepnet_pointwise_backward(const sepnet_pointwise *conv, const sepnet_joined *joined, const void *x, const float *weight,
                              const void *grad, void *grad_x, float *grad_weight, float *grad_bias, void *workspace);

/* Of several weights, in rows without gaps like their gradients and means; none lies over another. Gradients up to a norm of 1e18. The
 * workspace is that of the same list and as many threads. -1 also for bfloat16 where the instruction set in use does not multiply it. */
int64_t sepnet_muon_workspace(const sepnet_muon *weights, int64_t count, int threads);
int sepnet_muon_step(const sepnet_muon *weights, int64_t count, int threads, void *workspace);

#endif
