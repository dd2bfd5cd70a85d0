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

from sepnet.kernels._library import library
from sepnet.kernels._tensors import dense, is_plain
from sepnet.kernels._tracing import is_traced

__all__ = ["every_nth_pixel", "global_average"]


def global_average(x: Tensor) -> Tensor:
    """The mean of each channel. Shape: (B, C, H, W) -> (B, C)."""
    if not _is_ours(x) or not x.is_contiguous(memory_format=torch.channels_last):
        return x.mean((2, 3))
    y: Tensor = _GlobalAverage.apply(x)  # type: ignore[no-untyped-call]
    return y


def every_nth_pixel(x: Tensor, stride: int) -> Tensor:
    """Rows and columns 0, stride, 2 stride, ..., channels-last.

    Shape: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).
    """
    if not _is_ours(x):
        return dense(x[:, :, ::stride, ::stride])
    y: Tensor = _EveryNthPixel.apply(x, stride)  # type: ignore[no-untyped-call]
    return y


def _is_ours(x: Tensor) -> bool:
    if not is_plain(x) or x.dim() != 4 or x.numel() == 0 or is_traced():
        return False
    return forward_ad._current_level < 0 and library() is not None


class _GlobalAverage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return F.avg_pool2d(x, list(x.shape[2:])).flatten(1)  # twice as fast as mean() in bf16

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        mean = grad / (ctx.shape[2] * ctx.shape[3])
        return dense(mean[:, :, None, None].expand(ctx.shape))


class _EveryNthPixel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        return dense(x[:, :, ::stride, ::stride])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last).zero_()
        whole[:, :, :: ctx.stride, :: ctx.stride] = grad
        return whole, None
