"""Pointwise (1x1) convolution: by the kernels, PyTorch's convolution or its matrix product, whichever is fastest for the shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._choice_pointwise import Way, pointwise_way
from sepnet.kernels._library import Library
from sepnet.kernels._native import DTYPES
from sepnet.kernels._native_pointwise import pointwise_backward, pointwise_forward
from sepnet.kernels._pixels import every_nth_pixel
from sepnet.kernels._tensors import compute_dtype, dense, is_plain, library_for, wants_gradients

__all__ = ["pointwise_conv2d"]


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """1x1 convolution; the matrix product of (B * H' * W', C) and (C, N). Differentiable once where the kernels serve.

    Shape: (B, C, H, W), weight (N, C, 1, 1) -> (B, N, H', W'), H' = ceil(H / stride).
    """
    lib = library_for(x) if x.dim() == 4 else None
    if lib is None:
        return F.conv2d(x, weight, bias, stride)
    if stride > 1:  # of the pixels that count, which oneDNN's strided gradients are slow to find
        x = every_nth_pixel(x, stride)
    dtype = compute_dtype(x)
    way = pointwise_way(dtype, x.shape, weight.shape[0], bias is not None, lib.has_tiles)
    if way is Way.KERNELS and _is_ours(x, weight, bias):
        return _by_kernels(lib, x.to(dtype), weight, bias)
    if way is Way.PRODUCT:
        rows = x.permute(0, 2, 3, 1)  # a view, where x is channels-last
        return F.linear(rows, _matrix(weight), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def _matrix(weight: Tensor) -> Tensor:
    """(N, C, 1, 1) -> (N, C); the gradient comes back with the weight's own strides, as DistributedDataParallel wants it."""
    if weight.stride(2) == 1:
        return weight.flatten(1)
    return weight.permute(0, 2, 3, 1).flatten(0, 2)  # channels-last


def _is_ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the library can read the three, and they fit together; what does not is PyTorch's to refuse."""
    if weight.shape[1:] != (x.shape[1], 1, 1) or not is_plain(weight, bias):
        return False
    if x.dtype not in DTYPES or any(t.dtype != torch.float32 for t in (weight, bias) if t is not None):
        return False
    dense_weight = weight.permute(0, 2, 3, 1).is_contiguous()
    return dense_weight and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))


def _by_kernels(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not wants_gradients(x, weight, bias):
        return pointwise_forward(lib, dense(x), weight, bias)
    y: Tensor = _PointwiseConv2d.apply(x, weight, bias, lib)
    return y


class _PointwiseConv2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lib: Library) -> Tensor:
        x = dense(x)
        ctx.save_for_backward(x, weight)
        ctx.lib = lib
        return pointwise_forward(lib, x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (dense(t) for t in ctx.saved_tensors)  # hooks of saved tensors may give them back in another layout
        return *pointwise_backward(ctx.lib, x, weight, dense(grad), ctx.needs_input_grad[:3]), None
