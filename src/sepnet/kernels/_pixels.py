"""Pixels averaged, or left out: PyTorch's operations, with gradients in the layout of the map.

PyTorch's own gradient of a strided slice is a map in NCHW, which is then added to a channels-last one at a fifth of the speed; that
of a mean is divided pixel by pixel, and copied once more by what wants it dense.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from sepnet.kernels._tensors import dense, library_for

__all__ = ["every_nth_pixel", "global_average"]

_TYPES = (torch.float32, torch.bfloat16, torch.float64)
_MOST_PIXELS = 1 << 10


def global_average(x: Tensor) -> Tensor:
    """The mean of each channel. Shape: (B, C, H, W) -> (B, C)."""
    if not _is_ours(x) or not _is_pooled_well(x):
        return x.mean((2, 3))
    y: Tensor = _GlobalAverage.apply(x)  # type: ignore[no-untyped-call]
    return y.flatten(1)


def every_nth_pixel(x: Tensor, stride: int) -> Tensor:
    """Rows and columns 0, stride, 2 stride, ..., channels-last.

    Shape: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).
    """
    if not _is_ours(x):
        return dense(x[:, :, ::stride, ::stride])
    y: Tensor = _EveryNthPixel.apply(x, stride)  # type: ignore[no-untyped-call]
    return y


def _is_ours(x: Tensor) -> bool:
    if library_for(x) is None or x.dim() != 4 or x.numel() == 0:
        return False
    return torch.is_grad_enabled() and x.requires_grad and forward_ad._current_level < 0


def _is_pooled_well(x: Tensor) -> bool:
    """Whether average pooling gives what a mean does: it adds pixel by pixel, and knows other types than floating-point ones."""
    return x.dtype in _TYPES and x.shape[2] * x.shape[3] <= _MOST_PIXELS and x.is_contiguous(memory_format=torch.channels_last)


class _GlobalAverage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return F.avg_pool2d(x, list(x.shape[2:]))  # twice as fast as mean() in bf16

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        mean = grad / (ctx.shape[2] * ctx.shape[3])
        spread = mean.expand(ctx.shape)
        return spread if _are_several(grad) else dense(spread)


class _EveryNthPixel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        return x[:, :, ::stride, ::stride].clone(memory_format=torch.channels_last)  # no view: it may be changed in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.new_zeros(ctx.shape) if _are_several(grad) else _zeros(ctx.shape, grad)
        whole[:, :, :: ctx.stride, :: ctx.stride] = grad
        return whole, None


def _zeros(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last).zero_()


def _are_several(grad: Tensor) -> bool:
    """Gradients at once (``is_grads_batched``, vmap), which know no layouts."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_batchedtensor(grad)
