"""Which forward pass of a depthwise convolution is faster on AMD's Zen 4: oneDNN's, or the kernels'.

Measured on a 2-core EPYC (1 MB of L2 cache each, 32 MB shared), 1,236 shapes of 32 to 1,024 channels, three times, and 738 of 8 to
100, of 8 and 128 images, called as training does, from the last cache and from memory: LOG.md. A ratio is how many times as long
oneDNN takes, those of nine in ten shapes of a kind. (Its backward pass is slower everywhere: 1.0 to 2.3, median 1.54, 96 shapes
without stride and dilation.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sepnet.kernels._geometry import Geometry

__all__ = ["is_for_our_zen4"]

_VECTOR = 16  # channels
_WIDE = 64  # channels from which on it is no matter in fp32 whether the last vector is full
_LITTLE = 256 << 10  # bytes of a map of which that is no matter either
_FEW_CHANNELS, _LARGE_MAP, _LARGE = 64, 28, 4 << 20
_VERY_MANY_CHANNELS = 1024
# with dilation in bf16
_NEAR, _MOST_NEAR, _MOST_FAR = 2, 512, 128
_SMALL_NEAR, _SMALL_FAR = 2 << 20, 512 << 10
_LEAST_LARGE_NEAR, _LARGE_NEAR = 256, 4 << 20  # channels, bytes
_LEAST_MAP = 8  # of 5x5 and 7x7
_MOST_5X5, _MOST_7X7 = 256, 128  # on smaller maps, the first one on all


def is_for_our_zen4(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether the kernels' forward pass of (B, C, H, W), with one filter a channel, is the faster one.

    Where vectors are not full 0.46 to 1.42, on small maps 0.98 to 2.2.
    """
    stride, dilation, size = geometry.stride, geometry.dilations[0], math.prod(shape) * dtype.itemsize
    if stride not in ((1, 1), (2, 2)) or dilation[0] != dilation[1] or geometry.kernels[0] not in ((3, 3), (5, 5), (7, 7)):
        return False
    if shape[1] % _VECTOR and size > _LITTLE and (dtype == torch.bfloat16 or shape[1] < _WIDE):
        return False
    if max(dilation) > 1:
        return geometry.kernels[0] == (3, 3) and _is_for_our_dilated(dtype, shape[1], size, geometry)
    return _is_for_our_plain(dtype, shape, size, geometry)


def _is_for_our_plain(dtype: torch.dtype, shape: Sequence[int], size: int, geometry: Geometry) -> bool:
    """3x3 0.98 to 2.1, few channels on large maps in bf16 0.65 to 1.2; 5x5 1.0 to 1.9 and 7x7 0.96 to 1.7, those of many channels
    in bf16 (5x5) and with stride 1 on maps under 8x8 0.71 to 1.2.
    """
    channels, kernel, half = shape[1], geometry.kernels[0][0], dtype == torch.bfloat16
    if kernel == 3:
        return not (half and channels <= _FEW_CHANNELS and min(shape[2:]) >= _LARGE_MAP and size >= _LARGE)
    if max(geometry.stride) > 1:
        return True
    if half and kernel == 5:
        return channels <= _MOST_5X5
    return min(shape[2:]) >= _LEAST_MAP or (half and channels <= _MOST_7X7)


def _is_for_our_dilated(dtype: torch.dtype, channels: int, size: int, geometry: Geometry) -> bool:
    """3x3 of up to 512 channels: fp32 0.93 to 1.9, with stride 2 1.04 to 2.6, and in bf16 1.02 to 2.3. In bf16 with stride 1 0.87
    to 1.8 on small maps, and with 256 channels and more on large ones, if taps are near each other; on others 0.67 to 1.14. Of
    1,024 channels 0.69 to 1.13.
    """
    if channels >= _VERY_MANY_CHANNELS:
        return False
    if dtype == torch.float32 or max(geometry.stride) > 1:
        return True
    if max(geometry.dilations[0]) > _NEAR:
        return channels <= _MOST_FAR and size <= _SMALL_FAR
    many = channels >= _LEAST_LARGE_NEAR and size >= _LARGE_NEAR
    return channels <= _MOST_NEAR and (size <= _SMALL_NEAR or many)
