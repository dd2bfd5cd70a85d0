"""Which forward pass of a depthwise convolution is faster on Intel's processors with AVX512-BF16: oneDNN's, or the kernels'.

Measured on a Xeon 6 (2 cores, 2 MB of L2 cache each), 414 shapes of 8 and 128 images with 2 threads, from memory and from the last
cache: LOG.md. A ratio is how many times as long oneDNN takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sepnet.kernels._geometry import Geometry

__all__ = ["is_for_our_intel"]

_SMALL, _MIDDLING, _LARGE, _LARGEST = 2 << 20, 4 << 20, 8 << 20, 16 << 20  # bytes of the map
_FEW_IMAGES = 16
_FEW_CHANNELS, _MANY_CHANNELS, _VERY_MANY_CHANNELS = 64, 128, 1024
_NARROW_7X7 = 32  # channels up to which, and _MANY_CHANNELS from which on, 7x7 is faster in fp32
_MOST_5X5 = 4 << 20  # bytes up to which 5x5 of many channels is faster in bf16


def is_for_our_intel(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether the kernels' forward pass of (B, C, H, W), with one filter a channel, is the faster one."""
    stride, dilation = geometry.stride, geometry.dilations[0]
    if stride not in ((1, 1), (2, 2)) or dilation[0] != dilation[1] or geometry.kernels[0] not in ((3, 3), (5, 5), (7, 7)):
        return False
    measure = _in_bf16 if dtype == torch.bfloat16 else _in_fp32
    return measure(math.prod(shape) * dtype.itemsize, shape, geometry)


def _in_fp32(size: int, shape: Sequence[int], geometry: Geometry) -> bool:
    """Maps up to 4 MiB 0.95 to 2.6, large ones with stride 1 1.0 to 1.5 (few images of few channels 0.85), those between 0.7 to
    1.4, but with 3x3 of 8x8 and less 1.0 to 1.4. With stride 2 0.55 to 1.1 unless small, or many images of up to 8 MiB (0.95 to
    1.1), but with dilation 2 as well 0.9 to 2.6 (1,024 channels and more than 8 MiB 0.85 to 1.0). Dilated farther 0.7 to 1.1 unless
    small, or large and of many channels (1.0 to 1.3). 7x7 of 64 channels 0.8 to 1.0, others 0.9 to 1.5.
    """
    few, channels, kernel = shape[0] <= _FEW_IMAGES, shape[1], geometry.kernels[0][0]
    stride, dilation = max(geometry.stride), max(geometry.dilations[0])
    if stride > 1 and dilation == stride:
        return channels < _VERY_MANY_CHANNELS or size <= _LARGE
    if stride > 1:
        return size <= (_MIDDLING if few else _LARGE)
    if dilation > 2:
        return size <= _SMALL // 2 or (size >= _LARGEST and channels >= _MANY_CHANNELS)
    if kernel > 5:
        return not _NARROW_7X7 < channels < _MANY_CHANNELS
    if size >= _LARGE:
        return channels >= _MANY_CHANNELS or not few
    return size <= _MIDDLING or (max(shape[2:]) <= 8 and kernel == 3)


def _in_bf16(size: int, shape: Sequence[int], geometry: Geometry) -> bool:
    """3x3 of small maps 0.9 to 2.0, of many images up to 8 MiB 0.9 to 1.2 and with stride 2 0.85 to 1.25, of others 0.6 to 1.3;
    dilated by 2 1.0 to 2.3, farther 0.6 to 1.2 with many channels and 0.9 to 1.7 with few. 5x5 0.9 to 1.7, of many channels and
    bytes 0.85 to 1.1. 7x7 0.9 to 1.6, and 5x5 of stride 2 0.9 to 1.8.
    """
    channels, kernel, dilation, stride = shape[1], geometry.kernels[0][0], max(geometry.dilations[0]), max(geometry.stride)
    if dilation > 1:
        return dilation == 2 or (channels <= _FEW_CHANNELS and stride == 1)
    if kernel == 3:
        return size <= _SMALL or (shape[0] > _FEW_IMAGES and (stride > 1 or size <= _LARGE))
    return kernel > 5 or stride > 1 or channels <= _FEW_CHANNELS or size <= _MOST_5X5
