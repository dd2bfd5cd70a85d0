"""Pointwise (1x1) convolution: as a convolution or as a matrix product, whichever PyTorch computes faster for the shape."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sepnet.kernels._library import library
from sepnet.kernels._tensors import compute_dtype, dense, is_plain
from sepnet.kernels._tracing import is_traced

__all__ = ["matmul_is_faster", "pointwise_conv2d"]

_SMALL_MAP = 16  # pixels


def matmul_is_faster(dtype: torch.dtype, pixels: int) -> bool:
    """On maps of up to 4x4 in bf16 oneDNN's gradient of the weights takes 1.7 times as long as the same matrix product."""
    return dtype == torch.bfloat16 and pixels <= _SMALL_MAP


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """1x1 convolution; the matrix product of (B * H' * W', C) and (C, N).

    Shape: (B, C, H, W), weight (N, C, 1, 1) -> (B, N, H', W'), H' = ceil(H / stride).
    """
    if not is_plain(x) or x.dim() != 4 or is_traced() or library() is None:
        return F.conv2d(x, weight, bias, stride)
    if stride > 1:  # of the pixels that count, which oneDNN's strided gradients are slow to find
        x = dense(x[:, :, ::stride, ::stride])
    if matmul_is_faster(compute_dtype(x), x.shape[2] * x.shape[3]):
        rows = x.permute(0, 2, 3, 1)  # a view, where x is channels-last
        return F.linear(rows, _matrix(weight), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def _matrix(weight: Tensor) -> Tensor:
    """(N, C, 1, 1) -> (N, C); the gradient comes back with the weight's own strides, as DistributedDataParallel wants it."""
    if weight.stride(2) == 1:
        return weight.flatten(1)
    return weight.permute(0, 2, 3, 1).flatten(0, 2)  # channels-last
