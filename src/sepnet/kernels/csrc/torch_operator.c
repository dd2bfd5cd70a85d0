/* The depthwise convolution as kernels that PyTorch's dispatcher calls, for operators whose derivative it knows:
 *
 *     aten::convolution_overrideable(input, weight, bias?, stride, padding, dilation, transposed, output_padding, groups)
 *     aten::convolution_backward_overrideable(grad, input, weight, stride, ..., groups, output_mask) -> gradients of the three
 *
 * They are there for processors that PyTorch does not know, and have no kernels for the CPU. A call of them goes through PyTorch's own
 * autograd, and not through Python. What Python has found out about a convolution it has told before (ways.c). */
#include "internal.h"
#include "torch_abi.h"
#include "ways.h"

#include <pthread.h>
#include <string.h>

enum { MOST_TENSORS = 16, DIMS = 4 };
enum { MOST_KEPT = 4 << 20 }; /* bytes a thread of workspace, as in kernels/_native.py */

static sepnet_torch torch;

int sepnet_set_torch(const sepnet_torch *functions, int64_t count) {
    if (count * (int64_t)sizeof(void (*)(void)) != (int64_t)sizeof torch) return -1;
    torch = *functions;
    return 0;
}

/* --- one call -------------------------------------------------------------------------------------------------------------------- */

/* What is ours until the call ends, and why it failed, if it did. */
typedef struct {
    torch_tensor tensors[MOST_TENSORS];
    int count;
    const char *why;
} call;

static const char *const caught = "PyTorch";

/* Whether a function of PyTorch's did what it was to do. */
static int did(call *c, int error) {
    if (error && !c->why) c->why = caught;
    return !error;
}

static int holds(call *c, int condition, const char *otherwise) {
    if (!condition && !c->why) c->why = otherwise;
    return condition;
}

static torch_tensor ours(call *c, torch_tensor tensor) { return c->tensors[c->count++] = tensor; }

/* Throws, if something went wrong: through the frames of C that the operator was called by, none of which owns anything then. */
static void end(call *c) {
    for (int i = 0; i < c->count; i++) torch.delete_tensor(c->tensors[i]);
    if (c->why) torch.check(false, "depthwise_conv2d", __FILE__, __LINE__, c->why == caught ? torch.what() : c->why);
}

static torch_tensor take_tensor(call *c, torch_value value) { return ours(c, (torch_tensor)(uintptr_t)value); }

static torch_tensor take_optional(call *c, torch_value value) {
    torch_value *at = (torch_value *)(uintptr_t)value;
    if (!at) return NULL;
    torch_tensor tensor = take_tensor(c, *at);
    torch.delete_value(at);
    return tensor;
}

/* Reads so many integers, and deletes the list. */
static void take_list(call *c, torch_value list, int count, int64_t *to) {
    size_t size = 0;
    if (did(c, torch.list_size(list, &size)) && holds(c, size == (size_t)count, "a list of another length was expected"))
        for (int i = 0; i < count; i++) {
            torch_value value = 0;
            did(c, torch.list_item(list, (size_t)i, &value));
            to[i] = (int64_t)value;
        }
    torch.delete_list(list);
}

/* --- tensors ---------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    torch_tensor handle;
    int64_t dim;
    const int64_t *sizes, *strides; /* the tensor's own */
    int32_t dtype;
    const void *data;
    void *to; /* the same, of a tensor that was made here */
} operand;

static operand look_at(call *c, torch_tensor tensor) {
    operand t = {tensor, 0, NULL, NULL, 0, NULL, NULL};
    int64_t *sizes = NULL, *strides = NULL;
    did(c, torch.get_dim(tensor, &t.dim) | torch.get_sizes(tensor, &sizes) | torch.get_strides(tensor, &strides) |
               torch.get_dtype(tensor, &t.dtype) | torch.get_const_data(tensor, &t.data));
    t.sizes = sizes, t.strides = strides;
    return t;
}

static const int channels_last[DIMS] = {1, 3, 2, 0}, contiguous[DIMS] = {3, 2, 1, 0}; /* innermost first */

static const int *order_of(int64_t dim, int last) {
    return last ? channels_last : contiguous + (DIMS - dim);
}

/* Of a tensor of such sizes without gaps, in that order of its dimensions. */
static void dense_strides(const int64_t *sizes, int64_t dim, int last, int64_t *strides) {
    const int *order = order_of(dim, last);
    int64_t step = 1;
    for (int i = 0; i < dim; i++) {
        strides[order[i]] = step;
        step *= sepnet_max(1, sizes[order[i]]);
    }
}

/* The strides of dimensions of one element do not matter. */
static int is_dense(const operand *t, int last) {
    int64_t strides[DIMS];
    dense_strides(t->sizes, t->dim, last, strides);
    for (int i = 0; i < t->dim; i++)
        if (t->sizes[i] > 1 && t->strides[i] != strides[i]) return 0;
    return 1;
}

static operand empty(call *c, int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype) {
    torch_tensor made = NULL;
    operand t = {0};
    if (!did(c, torch.empty_strided(dim, sizes, strides, dtype, TORCH_CPU, -1, &made))) return t;
    t = look_at(c, made);
    did(c, torch.get_data(made, &t.to));
    return t;
}

static operand empty_dense(call *c, int64_t dim, const int64_t *sizes, int last, int32_t dtype) {
    int64_t strides[DIMS];
    dense_strides(sizes, dim, last, strides);
    return empty(c, dim, sizes, strides, dtype);
}

/* Itself, where it is of that type and has that layout. */
static operand as(call *c, operand t, int32_t dtype, int last) {
    if (c->why || (t.dtype == dtype && is_dense(&t, last))) return t;
    operand made = empty_dense(c, t.dim, t.sizes, last, dtype);
    if (c->why) return t;
    ours(c, made.handle);
    did(c, torch.copy(made.handle, t.handle, 0));
    return made;
}

/* --- workspace -------------------------------------------------------------------------------------------------------------------- */

/* The same in every call of a thread, and so in its caches; it goes with the thread. */
typedef struct {
    torch_tensor tensor;
    void *data;
    int64_t bytes;
} memory;

static pthread_key_t kept_key;
static int has_key;
static pthread_once_t kept_once = PTHREAD_ONCE_INIT;
static _Thread_local memory kept;

static void forget(void *of_thread) {
    memory *m = of_thread;
    if (m->tensor) torch.delete_tensor(m->tensor);
}

static void make_key(void) { has_key = pthread_key_create(&kept_key, forget) == 0; }

static void *workspace(call *c, int64_t bytes, int64_t threads) {
    if (bytes <= kept.bytes) return kept.data;
    const int64_t stride = 1;
    operand made = empty(c, 1, &bytes, &stride, TORCH_UINT8);
    if (c->why) return NULL;
    pthread_once(&kept_once, make_key);
    if (bytes > MOST_KEPT * sepnet_max(2, threads) || !has_key || pthread_setspecific(kept_key, &kept) != 0) {
        ours(c, made.handle);
        return made.to;
    }
    if (kept.tensor) torch.delete_tensor(kept.tensor);
    kept.tensor = made.handle, kept.data = made.to, kept.bytes = bytes;
    return kept.data;
}

/* --- the operators ---------------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t stride[2], padding[2], dilation[2], output_padding[2], groups;
    sepnet_depthwise conv;
    int by_torch; /* which passes */
} problem;

static void take_problem(call *c, problem *p, const torch_value *stack) {
    take_list(c, stack[0], 2, p->stride);
    take_list(c, stack[1], 2, p->padding);
    take_list(c, stack[2], 2, p->dilation);
    holds(c, !(stack[3] & 1), "aten::convolution_overrideable has no transposed form on the CPU");
    take_list(c, stack[4], 2, p->output_padding);
    p->groups = (int64_t)stack[5];
}

static int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int sound = stride >= 1 && padding >= 0 && padding <= INT32_MAX && dilation >= 1 && dilation <= INT32_MAX;
    return !sound ? 0 : (in + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

/* Fills in the description that the kernels take; what else they ask of it they see for themselves. */
static int describe(call *c, problem *p, const operand *x, const operand *weight, int backward) {
    const int64_t *in = x->sizes, *filters = weight->sizes;
    const int fits = x->dim == DIMS && weight->dim == DIMS && p->groups == in[1] && in[1] > 0 && filters[0] % in[1] == 0 &&
                     filters[1] == 1;
    const int known = x->dtype == TORCH_FLOAT32 || x->dtype == TORCH_BFLOAT16;
    if (!holds(c, fits && known, "aten::convolution_overrideable is a depthwise convolution of float32 or bfloat16 on the CPU")) return 0;
    const sepnet_branch branch = {filters[2], filters[3], p->padding[0], p->padding[1], p->dilation[0], p->dilation[1]};
    sepnet_depthwise *d = &p->conv;
    memset(d, 0, sizeof *d);
    d->batch = in[0], d->channels = in[1], d->in_h = in[2], d->in_w = in[3];
    d->out_h = output_size(in[2], filters[2], p->stride[0], p->padding[0], p->dilation[0]);
    d->out_w = output_size(in[3], filters[3], p->stride[1], p->padding[1], p->dilation[1]);
    d->stride_h = p->stride[0], d->stride_w = p->stride[1];
    d->branches = (int32_t)(filters[0] / in[1]), d->interleaved = d->branches > 1;
    d->dtype = x->dtype == TORCH_FLOAT32 ? SEPNET_FLOAT32 : SEPNET_BFLOAT16;
    for (int j = 0; j < sepnet_min(d->branches, SEPNET_MAX_BRANCHES); j++) d->branch[j] = branch; /* of more, PyTorch's serves */
    sepnet_way way = {0, INT32_MAX};
    const int told = sepnet_way_of(d, &way) || backward; /* a backward pass is not left without its way, should that be forgotten */
    if (!holds(c, told, "sepnet has not been told of this convolution: depthwise_conv2d does that")) return 0;
    uint32_t threads = 1;
    did(c, torch.get_threads(&threads));
    d->threads = (int32_t)sepnet_max(1, sepnet_min(way.most_threads, threads));
    p->by_torch = way.by_torch;
    return !c->why;
}

/* Of one direction, if the kernels take it. */
static void *workspace_for(call *c, const problem *p, int backward) {
    const int64_t bytes = sepnet_depthwise_workspace(&p->conv, backward);
    return holds(c, bytes >= 0, "the kernels do not take this depthwise convolution") ? workspace(c, bytes, p->conv.threads) : NULL;
}

/* The values that the forward pass computed with: PyTorch's convolution wants them in the map's type. */
static operand seen(call *c, const problem *p, operand weight, int32_t dtype) {
    return p->by_torch & SEPNET_FORWARD_BY_TORCH ? as(c, weight, dtype, 0) : weight;
}

static torch_tensor forward(call *c, problem *p, operand x, operand weight, torch_tensor bias) {
    if (c->why || !describe(c, p, &x, &weight, 0)) return NULL;
    x = as(c, x, x.dtype, 1);
    weight = seen(c, p, weight, x.dtype);
    operand shift = bias ? look_at(c, bias) : (operand){0};
    if (bias && !holds(c, shift.dim == 1 && shift.sizes[0] == weight.sizes[0], "the bias is not of one value an output channel")) return NULL;
    if (p->by_torch & SEPNET_FORWARD_BY_TORCH) {
        torch_tensor y = NULL;
        if (bias) shift = as(c, shift, x.dtype, 0);
        if (!c->why)
            did(c, torch.convolution(x.handle, weight.handle, bias ? &shift.handle : NULL, p->stride, 2, p->padding, 2, p->dilation, 2, 0,
                                     p->output_padding, 2, p->groups, &y));
        return y;
    }
    void *scratch = workspace_for(c, p, 0);
    weight = as(c, weight, TORCH_FLOAT32, 0);
    if (bias) shift = as(c, shift, TORCH_FLOAT32, 0);
    const int64_t sizes[DIMS] = {x.sizes[0], weight.sizes[0], p->conv.out_h, p->conv.out_w};
    operand y = c->why ? (operand){0} : empty_dense(c, DIMS, sizes, 1, x.dtype);
    if (!c->why) sepnet_depthwise_forward(&p->conv, NULL, x.data, weight.data, shift.data, y.to, scratch);
    return y.handle;
}

void sepnet_convolution_forward(torch_value *stack, uint64_t inputs, uint64_t outputs) {
    (void)inputs, (void)outputs;
    call c = {.count = 0, .why = NULL};
    problem p;
    operand x = look_at(&c, take_tensor(&c, stack[0])), weight = look_at(&c, take_tensor(&c, stack[1]));
    torch_tensor bias = take_optional(&c, stack[2]);
    take_problem(&c, &p, stack + 3);
    torch_tensor y = forward(&c, &p, x, weight, bias);
    if (c.why && y) ours(&c, y);
    end(&c);
    stack[0] = (torch_value)(uintptr_t)y;
}

/* Gradients of x, weight and bias, those that are wanted. */
typedef struct {
    torch_tensor of[3];
} gradients;

static gradients gradients_by_torch(call *c, const problem *p, operand grad, operand x, operand weight, const int32_t *want) {
    gradients g = {{NULL}};
    const int64_t bias_size = grad.sizes[1], *bias_sizes = &bias_size;
    weight = as(c, weight, x.dtype, 0);
    if (!c->why)
        did(c, torch.convolution_backward(grad.handle, x.handle, weight.handle, want[2] ? &bias_sizes : NULL, 1, p->stride, 2, p->padding, 2,
                                          p->dilation, 2, 0, p->output_padding, 2, p->groups, want, 3, &g.of[0], &g.of[1], &g.of[2]));
    return g;
}

/* Autograd gives them the type of the weight, and of the bias. That of a weight without gaps has its strides, whatever they say of
 * dimensions of one element: autograd would copy it otherwise. */
static gradients gradients_by_kernels(call *c, const problem *p, operand grad, operand x, operand weight, const int32_t *want) {
    gradients g = {{NULL}};
    const int is_plain = is_dense(&weight, 0);
    void *data[3] = {NULL};
    void *scratch = workspace_for(c, p, 1);
    operand exact = as(c, seen(c, p, weight, x.dtype), TORCH_FLOAT32, 0);
    for (int i = 0; i < 3 && !c->why; i++) {
        if (!want[i]) continue;
        operand made = i == 0   ? empty_dense(c, DIMS, x.sizes, 1, x.dtype)
                       : i == 2 ? empty_dense(c, 1, grad.sizes + 1, 0, TORCH_FLOAT32)
                       : is_plain ? empty(c, DIMS, weight.sizes, weight.strides, TORCH_FLOAT32)
                                  : empty_dense(c, DIMS, weight.sizes, 0, TORCH_FLOAT32);
        g.of[i] = made.handle, data[i] = made.to;
    }
    if (!c->why)
        sepnet_depthwise_backward(&p->conv, NULL, x.data, exact.data, grad.data, data[0], (float *)data[1], (float *)data[2], scratch);
    return g;
}

static gradients backward(call *c, problem *p, operand grad, operand x, operand weight, const int32_t *want) {
    const gradients none = {{NULL}};
    if (c->why || !describe(c, p, &x, &weight, 1)) return none;
    const sepnet_depthwise *d = &p->conv;
    const int fits = grad.dim == DIMS && grad.sizes[0] == d->batch && grad.sizes[1] == weight.sizes[0] && grad.sizes[2] == d->out_h &&
                     grad.sizes[3] == d->out_w;
    if (!holds(c, fits, "the gradient is not of the output's shape")) return none;
    x = as(c, x, x.dtype, 1); /* hooks of saved tensors may give it back in another layout */
    grad = as(c, grad, x.dtype, 1);
    return (p->by_torch & SEPNET_BACKWARD_BY_TORCH ? gradients_by_torch : gradients_by_kernels)(c, p, grad, x, weight, want);
}

void sepnet_convolution_backward(torch_value *stack, uint64_t inputs, uint64_t outputs) {
    (void)inputs, (void)outputs;
    call c = {.count = 0, .why = NULL};
    problem p;
    operand grad = look_at(&c, take_tensor(&c, stack[0])), x = look_at(&c, take_tensor(&c, stack[1]));
    operand weight = look_at(&c, take_tensor(&c, stack[2]));
    take_problem(&c, &p, stack + 3);
    int64_t mask[3] = {0};
    take_list(&c, stack[9], 3, mask);
    const int32_t want[3] = {mask[0] & 1, mask[1] & 1, mask[2] & 1};
    gradients g = backward(&c, &p, grad, x, weight, want);
    for (int i = 0; i < 3; i++) {
        if (!g.of[i] && !c.why) did(&c, torch.undefined(&g.of[i]));
        if (c.why && g.of[i]) ours(&c, g.of[i]);
    }
    end(&c);
    for (int i = 0; i < 3; i++) stack[i] = (torch_value)(uintptr_t)g.of[i];
}
