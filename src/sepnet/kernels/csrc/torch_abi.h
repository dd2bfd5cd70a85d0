/* Functions of libtorch's stable C interface (torch/csrc/stable/c/shim.h, torch/csrc/inductor/aoti_torch/c/shim.h), by address: nothing of
 * PyTorch is there when this is compiled. All but the last two return 0, or that an exception was caught, of which `what` tells. */
#ifndef SEPNET_TORCH_ABI_H
#define SEPNET_TORCH_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sepnet_kernels.h"

typedef void *torch_tensor; /* a reference of its own to a tensor, to be deleted */
typedef uint64_t torch_value; /* on an operator's stack: a number, a torch_tensor, a list, or the address of another one */

/* In the order in which kernels/_dispatcher.py names them. */
struct sepnet_torch {
    int (*delete_tensor)(torch_tensor);
    int (*undefined)(torch_tensor *);
    int (*empty_strided)(int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device, int32_t index,
                         torch_tensor *);
    int (*copy)(torch_tensor to, torch_tensor from, int32_t without_waiting);
    int (*get_dim)(torch_tensor, int64_t *);
    int (*get_sizes)(torch_tensor, int64_t **);
    int (*get_strides)(torch_tensor, int64_t **);
    int (*get_dtype)(torch_tensor, int32_t *);
    int (*get_data)(torch_tensor, void **);
    int (*get_const_data)(torch_tensor, const void **); /* what is shared until somebody writes stays shared */
    int (*list_size)(torch_value, size_t *);
    int (*list_item)(torch_value, size_t, torch_value *);
    int (*delete_list)(torch_value);
    int (*delete_value)(torch_value *);
    int (*convolution)(torch_tensor x, torch_tensor weight, torch_tensor *bias, const int64_t *stride, int64_t, const int64_t *padding,
                       int64_t, const int64_t *dilation, int64_t, int32_t transposed, const int64_t *output_padding, int64_t,
                       int64_t groups, torch_tensor *y);
    int (*convolution_backward)(torch_tensor grad, torch_tensor x, torch_tensor weight, const int64_t **bias_sizes, int64_t,
                                const int64_t *stride, int64_t, const int64_t *padding, int64_t, const int64_t *dilation, int64_t,
                                int32_t transposed, const int64_t *output_padding, int64_t, int64_t groups, const int32_t *want, int64_t,
                                torch_tensor *grad_x, torch_tensor *grad_weight, torch_tensor *grad_bias);
    int (*get_threads)(uint32_t *);
    const char *(*what)(void);
    void (*check)(bool holds, const char *function, const char *file, uint32_t line, const char *message); /* or throws */
};

/* c10::ScalarType; c10::DeviceType's CPU is 0. */
enum { TORCH_UINT8 = 0, TORCH_FLOAT32 = 6, TORCH_BFLOAT16 = 15, TORCH_CPU = 0 };

#endif
