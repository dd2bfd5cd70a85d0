"""A pointwise convolution of few channels, batch normalisation, 2x2 max pooling and ReLU as one operation.

The convolution's map is many times as large as what it is made of, and as what pooling leaves of it: the kernels compute it again
wherever they need it, and it is never in memory. So begin the networks of Wang et al. 2018, with images of one or three channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._choice_pointwise import pooling_is_faster
from sepnet.kernels._library import Library, library
from sepnet.kernels._native_pooled import Pooled, pooled_pointwise_backward, pooled_pointwise_forward
from sepnet.kernels._norm import Normalisation
from sepnet.kernels._tensors import compute_dtype, dense, library_for

__all__ = ["pooled_pointwise", "pools"]


def pools(x: Tensor, weight: Tensor, norm: Normalisation) -> bool:
    """Whether ``pooled_pointwise`` takes these, and is the faster way."""
    if library_for(x, weight) is None or x.dim() != 4:
        return False
    if min(x.shape) == 0 or min(x.shape[2:]) < 2 or weight.shape[1:] != (x.shape[1], 1, 1):
        return False
    typed = weight.dtype == torch.float32 and compute_dtype(x) in (torch.float32, torch.bfloat16)
    if not typed or not x.is_floating_point() or not (x.dtype == weight.dtype or torch.is_autocast_enabled("cpu")):
        return False
    dense_weight = weight.permute(0, 2, 3, 1).is_contiguous()
    return pooling_is_faster(x.shape[1], weight.shape[0]) and dense_weight and norm.fits(weight.shape[0])


def pooled_pointwise(x: Tensor, weight: Tensor, norm: Normalisation) -> Tensor:
    """ReLU (with ``norm.relu``) of the 2x2 maxima of the normalised 1x1 convolution, in training; where ``pools`` says so.

    Differentiable once.

    Shape: (B, C, H, W), weight (N, C, 1, 1) -> (B, N, H // 2, W // 2), channels-last; C up to 8.
    """
    y: Tensor = _PooledPointwise.apply(x.to(compute_dtype(x)), weight, norm.weight, norm.bias, norm, library())
    return y


class _PooledPointwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, norm: Normalisation, lib: Library) -> Tensor:
        x = dense(x)
        y, pooled = pooled_pointwise_forward(lib, x, weight, gamma, beta, norm.averages, norm.eps, norm.relu)
        ctx.lib, ctx.relu = lib, norm.relu
        ctx.save_for_backward(x, weight, *pooled)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *pooled = ctx.saved_tensors
        x, weight = dense(x), dense(weight)  # hooks of saved tensors may give them back in another layout
        (grad_x, grad_weight, _), affine = pooled_pointwise_backward(
            ctx.lib, x, weight, Pooled(*pooled), dense(grad), ctx.relu, ctx.needs_input_grad[:2]
        )
        return grad_x, grad_weight, affine[0], affine[1], None, None
