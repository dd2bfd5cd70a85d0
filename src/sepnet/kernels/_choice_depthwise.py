"""Which way is the faster one for a depthwise convolution on this processor: PyTorch's (oneDNN's), or the kernels.

oneDNN's depthwise convolutions are written for one instruction set each. What they are fast with was measured on AMD EPYC
processors of the generations Zen 3 (AVX2), Zen 4 (AVX-512, which stands for others with it) and Zen 5 (AVX-512), and on Intel's
Xeon 6 (``_choice_intel``): LOG.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from sepnet.kernels._choice_intel import is_for_our_intel
from sepnet.kernels._choice_zen4 import is_for_our_zen4
from sepnet.kernels._geometry import Geometry, Pair
from sepnet.kernels._library import MAX_BRANCHES, MAX_KERNEL
from sepnet.kernels._lookup import looked_up
from sepnet.kernels._processor import instructions, is_intel_with_bf16, is_zen5, multiplies_pairs, onednn_has

__all__ = [
    "TYPES",
    "ByTorch",
    "by_torch",
    "choose",
    "has_few_channels",
    "torch_backward_is_faster",
    "torch_forward_is_faster",
]

_FEW_CHANNELS = 4  # as MAX_FOLDED of the kernels
_MOST_PADDING, _MOST_PADDING_AVX2 = 6, 4  # beyond them oneDNN has only a way that is 4 to a hundred times slower
_NARROW, _MIDDLING, _LEAST_OUTPUT = 2, 4, 8  # paddings with AVX-512, and the output from which on more than the second is no matter
_VECTOR_AVX2 = 8  # channels
# with AVX2: channels from which on the kernels' forward pass is faster, with stride 2 on maps as large as that from more on
_FEWEST_AVX2, _LARGE_MAP_AVX2 = 32, 32
_MANY_AVX2 = 1024  # and with 3x3 of stride 2 below how many
# with stride and dilation 2: up to so many channels the kernels' is, and up to how many from which map on
_LESS_AVX2, _MORE_AVX2, _MIDDLING_MAP_AVX2 = 128, 256, 8
# and with dilation alone from so many channels to so many, from so many bytes on
_FEWEST_DILATED_AVX2, _MOST_DILATED_AVX2, _DILATED_BYTES_AVX2 = 48, 256, 8 << 20
# with AVX-512: channels and bytes of a map from which on, and channels up to which, the kernels' forward pass is faster with 3x3
_LEAST_CHANNELS, _LEAST_CHANNELS_BF16, _MOST_CHANNELS = 128, 192, 512
_LARGE_BYTES, _LARGE_BYTES_STRIDE_2 = 12 << 20, 32 << 20
_LARGE_RESULTS, _CACHE_LINE = 16 << 20, 64  # bytes: from which on the kernels gain most by writing whole lines past the caches
_FEWEST_CHANNELS_3X3 = 32  # from which on their forward pass is faster there in fp32
_FEWEST_DILATED, _MOST_DILATED = 64, 256  # the same with dilation 2
# with Zen 5: the fewest channels in bf16, how many are many and a small batch for them in bytes, images that are few for stride 2
_FEWEST_ZEN5, _MANY_ZEN5, _SMALL_BYTES_ZEN5, _FEW_IMAGES_ZEN5 = 32, 512, 8 << 20, 16
# and with dilation the most channels, the least map, and how far apart taps are at most, in bf16 and fp32
_MOST_DILATED_ZEN5, _LEAST_DILATED_MAP_ZEN5, _FARTHEST_ZEN5_BF16, _FARTHEST_ZEN5 = 64, 16, 3, 5


TYPES = (torch.float32, torch.bfloat16)
# The kernels unpack a map with its padding, and have a table for each remainder of the strides: beyond these, needless megabytes.
_MAX_REACH = 512
_MAX_STRIDE = 16


class ByTorch(NamedTuple):
    """Whether PyTorch's pass is the faster one, by direction."""

    forward: bool
    backward: bool

    @property
    def wholly(self) -> bool:
        """In every direction that is wanted now."""
        return self.forward and (self.backward or not torch.is_grad_enabled())


@looked_up
def choose(dtype: torch.dtype, shape: tuple[int, ...], geometry: Geometry) -> ByTorch | None:
    """Which way a convolution of (B, C, H, W) goes on the CPU; None if the kernels do not take it. A network asks the same of each
    layer at every step.
    """
    return by_torch(dtype, shape, geometry) if dtype in TYPES and _fits(geometry) else None


def _fits(geometry: Geometry) -> bool:
    if len(geometry.kernels) > MAX_BRANCHES or max(map(max, geometry.kernels)) > MAX_KERNEL or max(geometry.stride) > _MAX_STRIDE:
        return False
    branches = zip(geometry.kernels, geometry.paddings, geometry.dilations, strict=True)
    return all(max(p, d * (k - 1)) <= _MAX_REACH for branch in branches for k, p, d in zip(*branch, strict=True))


def by_torch(dtype: torch.dtype, shape: tuple[int, ...], geometry: Geometry) -> ByTorch:
    """The choice for a convolution of (B, C, H, W)."""
    return ByTorch(torch_forward_is_faster(dtype, shape, geometry), torch_backward_is_faster(dtype, shape, geometry))


def has_few_channels(shape: Sequence[int]) -> bool:
    """Whether several images of a batch (B, C, H, W) share a vector, which is the faster way for all sizes."""
    return shape[1] <= _FEW_CHANNELS and shape[0] > 1


def torch_forward_is_faster(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """PyTorch's forward pass of (B, C, H, W) is the faster one for a single filter bank; with bf16, where the processor has it.

    Not where the padding is more than 6 (4 with AVX2) or much for a map of this size, nor for 3x3 on large maps, and with AVX2, on
    AMD and Intel with bf16 rarely for filters without dilation and not for some dilated 3x3.
    """
    if len(geometry.kernels) > 1 or has_few_channels(shape) or shape[0] == 0:  # PyTorch's output of no images is not channels-last
        return False
    if shape[1] == 1:  # with stride and dilation, oneDNN 3.x gives a single bf16 image of one channel values that nobody wrote
        return False
    avx2 = instructions() == "AVX2"
    if _is_padded_much(shape, geometry, avx2):
        return False
    return onednn_has(dtype) and not _is_for_ours(dtype, shape, geometry)


def _is_for_ours(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    if is_intel_with_bf16():
        return is_for_our_intel(dtype, shape, geometry)
    if is_zen5():
        return _is_for_our_zen5(dtype, shape, geometry)
    if instructions() == "AVX2":
        return _is_for_our_avx2(shape, geometry)
    if multiplies_pairs():
        return is_for_our_zen4(dtype, shape, geometry)
    return _is_for_our_avx512(dtype, shape, geometry)


def _is_for_our_zen5(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """Without dilation oneDNN takes 1.0 to 2.4 times as long as the kernels (stride 2 1.0 to 1.7), which fetch maps ahead; but with
    few channels in bf16 (16, 24) 0.5 to 0.8, with many in a small batch 0.7 to 1.1, and with stride 2 in fp32 for a few images 0.9
    to 1.0. Dilated 3x3 on all but small maps of up to 64 channels: 1.1 to 1.7; the others 0.5 to 1.3.
    """
    (_, channels, *size), half, dilation = shape, dtype == torch.bfloat16, max(geometry.dilations[0])
    if geometry.kernels[0] not in ((3, 3), (5, 5), (7, 7)) or max(geometry.stride) > 2:
        return False
    if dilation > 1:
        near = dilation <= (_FARTHEST_ZEN5_BF16 if half else _FARTHEST_ZEN5) and min(size) >= _LEAST_DILATED_MAP_ZEN5
        return near and (geometry.kernels[0], geometry.stride) == ((3, 3), (1, 1)) and channels <= _MOST_DILATED_ZEN5
    if half:
        small = math.prod(shape) * dtype.itemsize < _SMALL_BYTES_ZEN5
        return channels >= _FEWEST_ZEN5 and not (channels >= _MANY_ZEN5 and small)
    return max(geometry.stride) == 1 or shape[0] > _FEW_IMAGES_ZEN5


def _is_padded_much(shape: Sequence[int], geometry: Geometry, avx2: bool) -> bool:
    """Whether oneDNN has only its slow way, or is slower on a map of a few pixels. With AVX-512 its blocks of results must not be
    narrower than the padding (2,464 shapes were measured): the other way is 5 to 200 times slower.
    """
    padding = max(geometry.paddings[0])
    over_half = 2 * padding >= min(shape[2:])
    if avx2:
        return padding > _MOST_PADDING_AVX2 or over_half
    if padding <= _NARROW:
        return over_half
    output = min(geometry.output_size(shape[2], shape[3]))
    if padding <= _MIDDLING:
        return over_half and output <= padding
    return padding > _MOST_PADDING or output < _LEAST_OUTPUT


def _is_for_our_avx2(shape: Sequence[int], geometry: Geometry) -> bool:
    """What needs no planes: oneDNN's forward pass takes at least 0.95 times as long at 405 of 410 shapes of 3x3 and 435 of 436 of
    5x5, or stride 2 with more dilation; 2.0 in the median.

    Else 7x7, and filters of up to 3x3 and 5x5 from 32 channels on. With stride 1 oneDNN's takes 1.0 to 2.1 times as long as the
    kernels' (35 shapes), with stride 2 1.0 to 1.9 but for few channels on large maps (0.8 to 1.0) and, with 3x3, 1,024 (0.85 to
    1.06). Dilated 3x3: with stride and dilation 2 1.05 to 1.7 up to 128 channels, 256 on maps from 8x8 0.98 to 1.6, else 0.65 to
    1.15; with stride 1 1.0 to 1.6 from 48 to 256 channels and 8 MiB on (but for one of 26 shapes), else 0.7 to 1.4. Dilated 5x5:
    0.7 to 1.3.
    """
    size, channels, stride, dilation = max(geometry.kernels[0]), shape[1], geometry.stride, geometry.dilations[0]
    if _needs_no_planes(channels, geometry):
        return True
    if size > 5 or size < 3 or max(stride) > 2:
        return size > 5
    if dilation != (1, 1):
        return size == 3 and _is_for_our_dilated_avx2(shape, stride, dilation)
    if channels < _FEWEST_AVX2 or max(stride) == 1:
        return channels >= _FEWEST_AVX2
    if channels == _FEWEST_AVX2 and max(shape[2:]) >= _LARGE_MAP_AVX2:
        return False
    return size > 3 or channels < _MANY_AVX2


def _needs_no_planes(channels: int, geometry: Geometry) -> bool:
    """As csrc/direct.h says: 3x3 and 5x5 of whole vectors, with the padding that keeps the size or, with stride 2, halves it."""
    (kernel,), (padding,), (dilation,), stride = geometry.kernels, geometry.paddings, geometry.dilations, geometry.stride
    if channels % _VECTOR_AVX2 or kernel not in ((3, 3), (5, 5)) or padding != tuple(kernel[0] // 2 * d for d in dilation):
        return False
    even = {d % 2 == 0 for d in dilation}  # with stride 2 such a one leaves pixels that nobody sees, and stride 1 on the others
    return stride == (1, 1) or (stride == (2, 2) and (even == {True} or (even == {False} and kernel == (3, 3))))


def _is_for_our_dilated_avx2(shape: Sequence[int], stride: Pair, dilation: Pair) -> bool:
    channels = shape[1]
    if stride == dilation == (2, 2):
        return channels <= (_MORE_AVX2 if min(shape[2:]) >= _MIDDLING_MAP_AVX2 else _LESS_AVX2)
    large = math.prod(shape) * torch.float32.itemsize >= _DILATED_BYTES_AVX2
    return stride == (1, 1) and large and _FEWEST_DILATED_AVX2 <= channels <= _MOST_DILATED_AVX2


def _is_for_our_avx512(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """3x3 on maps of many bytes and neither few nor very many channels. Where results are 16 MiB and more, oneDNN's forward pass
    takes 0.88 to 2.0 times as long (179 shapes, medians of a type and stride 1.2 to 1.5), with dilation 2 in fp32 0.87 to 1.5 times
    (40 shapes, 1.18); on smaller maps 0.93 to 1.5 times; on others 0.5 to 1.4. Not where oneDNN's backward pass serves, of whose
    weights the output must be.
    """
    stride, half = max(geometry.stride), dtype == torch.bfloat16
    if geometry.kernels[0] != (3, 3) or stride > 2 or instructions() != "AVX512":
        return False
    if torch_backward_is_faster(dtype, shape, geometry):
        return False
    large_results = _has_large_results(dtype, shape, geometry)
    if geometry.dilations[0] != (1, 1):
        measured = geometry.dilations[0] == (2, 2) and stride == 1 and not half
        return measured and large_results and _FEWEST_DILATED <= shape[1] <= _MOST_DILATED
    if large_results:
        return (_LEAST_CHANNELS if half else _FEWEST_CHANNELS_3X3) <= shape[1] <= _MOST_CHANNELS
    least = _LEAST_CHANNELS_BF16 if half and stride == 1 else _LEAST_CHANNELS
    large = math.prod(shape) * dtype.itemsize >= (_LARGE_BYTES if stride == 1 else _LARGE_BYTES_STRIDE_2)
    return large and least <= shape[1] <= _MOST_CHANNELS


def _has_large_results(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether results are so many bytes, and a pixel's whole cache lines, that writing them past the caches (results.h) makes the
    kernels faster than oneDNN.
    """
    return shape[1] * dtype.itemsize % _CACHE_LINE == 0 and _result_bytes(dtype, shape, geometry) >= _LARGE_RESULTS


def _result_bytes(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> int:
    try:
        height, width = geometry.output_size(shape[2], shape[3])
    except ValueError:  # there is no output: PyTorch refuses
        return 0
    return shape[0] * shape[1] * height * width * dtype.itemsize


def torch_backward_is_faster(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """PyTorch's backward pass of (B, C, H, W) is the faster one for a filter bank of up to 3x3 on a map of 4x4 to 8x8, even where
    ours could share the passes over memory of the normalisations beside it. With AVX2, with pairs of bf16 and on Intel with bf16
    ours is (oneDNN takes 1.0 to 2.3 times as long).
    """
    if len(geometry.kernels) > 1 or geometry.stride != (1, 1) or geometry.dilations[0] != (1, 1) or has_few_channels(shape):
        return False
    if instructions() == "AVX2" or multiplies_pairs() or is_intel_with_bf16():
        return False
    small = min(shape[2:]) >= 4 and max(shape[2:]) <= 8
    return small and max(geometry.kernels[0]) <= 3 and max(geometry.paddings[0]) <= 1 and onednn_has(dtype)
