"""Pointwise (1x1) convolution: by the kernels, PyTorch's convolution or its matrix product, whichever is fastest for the shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from sepnet.kernels._autograd import Function
from sepnet.kernels._choice_pointwise import Way, pointwise_way, sums_are_worth_it
from sepnet.kernels._library import Library
from sepnet.kernels._native import DTYPES, Shape
from sepnet.kernels._native_pointwise import pointwise_backward, pointwise_forward, pointwise_forward_joined
from sepnet.kernels._pixels import every_nth_pixel
from sepnet.kernels._tensors import compute_dtype, dense, has_autocast, is_plain, library_for, wants_gradients

__all__ = ["pointwise_by_kernels", "pointwise_conv2d", "summed_pointwise"]


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """1x1 convolution; the matrix product of (B * H' * W', C) and (C, N).

    Shape: (B, C, H, W), weight (N, C, 1, 1) -> (B, N, H', W'), H' = ceil(H / stride).
    """
    lib = library_for(x) if x.dim() == 4 else None
    if lib is None:
        return F.conv2d(x, weight, bias, stride)
    if stride > 1:  # of the pixels that count, which oneDNN's strided gradients are slow to find
        x = every_nth_pixel(x, stride)
    dtype = compute_dtype(x)
    way = _way(lib, x.dtype, dtype, x.shape, weight, bias)
    if way is Way.KERNELS:
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


def _way(lib: Library, given: torch.dtype, dtype: torch.dtype, shape: Shape, weight: Tensor, bias: Tensor | None) -> Way:
    """Of a map given in one type, and computed in another."""
    ours = _is_ours(given, shape[1], weight, bias)
    way = pointwise_way(dtype, shape, weight.shape[0], bias is not None, ours and lib.has_bf16_products)
    return Way.CONVOLUTION if way is Way.KERNELS and not ours else way


def pointwise_by_kernels(lib: Library, dtype: torch.dtype, shape: Shape, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels' convolution of (B, C, H, W) is the fastest way, which may take over what normalisations do."""
    return _way(lib, dtype, dtype, shape, weight, bias) is Way.KERNELS


def summed_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The convolution in training, and the sums that ``batch_norm_relu`` takes of its result, where they come with it.

    Shape: (B, C, H, W), weight (N, C, 1, 1) -> (B, N, H, W).
    """
    lib, dtype = library_for(x) if x.dim() == 4 else None, compute_dtype(x)
    if lib is None or not (sums_are_worth_it(dtype) and pointwise_by_kernels(lib, dtype, x.shape, weight, bias)):
        return pointwise_conv2d(x, weight, bias), None
    result: tuple[Tensor, Tensor] = _SummedPointwise.apply(dense(x.to(dtype)), weight, bias, lib)
    return result


def _is_ours(x_dtype: torch.dtype, channels: int, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the library can read the three, and they fit together; what does not is PyTorch's to refuse."""
    if weight.shape[1:] != (channels, 1, 1) or not is_plain(weight, bias):
        return False
    if weight.dtype != torch.float32 or (bias is not None and bias.dtype != torch.float32):
        return False
    if x_dtype != torch.float32 and not (x_dtype in DTYPES and has_autocast()):
        return False
    if forward_ad._current_level >= 0:
        return False
    dense_weight = weight.permute(0, 2, 3, 1).is_contiguous()
    return dense_weight and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))


def _by_kernels(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = dense(x)
    if not wants_gradients(x, weight, bias):
        return pointwise_forward(lib, x, weight, bias)
    y: Tensor = _PointwiseConv2d.apply(x, weight, bias, lib)
    return y


class _PointwiseConv2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lib: Library) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.lib = lib
        return pointwise_forward(lib, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad), None


class _SummedPointwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lib: Library) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.lib = lib
        y, sums = pointwise_forward_joined(lib, x, weight, bias, None, True)
        assert sums is not None
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        return y, sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:  # whoever had the result gave none back
            return None, None, None, None
        return *_gradients(ctx, grad), None


def _gradients(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled() or not is_plain(grad):  # to be differentiated again, or a stack of gradients (vmap)
        return _by_torch(x, weight, grad, wanted)
    # hooks of saved tensors may give them back in another layout
    return pointwise_backward(ctx.lib, dense(x), dense(weight), dense(grad), wanted)


def _by_torch(x: Tensor, weight: Tensor, grad: Tensor, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients by an operation that PyTorch can differentiate."""
    found = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, list(wanted)
    )
    types = x.dtype, weight.dtype, weight.dtype
    return [None if g is None else g.to(dtype) for g, dtype in zip(found, types, strict=True)]
