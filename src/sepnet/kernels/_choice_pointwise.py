"""Which way is the fastest one for a pointwise convolution on this processor. Figures: LOG.md."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch

from sepnet.kernels._processor import instructions, onednn_has, processor_has

__all__ = ["MOST_FEW", "Way", "pointwise_way", "pooling_is_faster", "sums_are_worth_it"]

_SMALL_MAP = 16  # pixels of a map up to which a pointwise convolution in bf16 is a matrix product
# channels, pixels of a batch and multiplications from which on the kernels' pointwise convolutions are faster than oneDNN's
_FEWEST_CHANNELS, _FEWEST_PIXELS, _FEWEST_PRODUCTS = 32, 512, 1 << 23
_FEW_PIXELS = 2048  # of a batch, up to which a matrix product is the fastest in bf16
_FEWER_PIXELS, _MANY_WEIGHTS = 256, 1 << 19  # up to which it is in fp32 with AVX2, from so many weights on
_MANY_CHANNELS, _MORE_PIXELS = 512, 8192  # in bf16, from so many on either side, up to so many
_BLOCK = 32  # channels that the kernels take at a time in bf16
_MANY_WEIGHTS_AMX = 1 << 18  # with AMX, from so many on not for up to _FEWER_PIXELS
_FEWER_PIXELS_IN_PAIRS = 512  # by vectors, up to which not from _MANY_WEIGHTS on
_FEWEST_AMX, _SMALL_MAP_AMX = 128, 64  # with AMX, from so many on for more pixels; with many only on maps up to so many pixels
MOST_FEW = 8  # channels that the pooled pointwise convolution takes, as SEPNET_MAX_FEW of the kernels
_FEWEST_POOLED, _WIDER = 16, 2  # outputs, and how many times the inputs they must be, for it to be the faster way


class Way(Enum):
    """Of a pointwise convolution; the value is how it is told."""

    KERNELS = "native"
    CONVOLUTION = "PyTorch convolution"
    PRODUCT = "PyTorch matrix product"


def pointwise_way(dtype: torch.dtype, shape: Sequence[int], outputs: int, bias: bool, in_bf16: bool) -> Way:
    """The fastest way for a pointwise convolution of (B, C, H, W), forward and backward together.

    In bf16 the kernels serve where they can (``in_bf16``) and channels come in 32s. Else, without AMX, oneDNN's convolution takes
    0.96 to 2.0 times as long as the same matrix product where pixels are few, and where many channels meet not too many. In fp32
    with AVX2 oneDNN's products reach 60 to 75 % of what the processor can do, its gradient of the weights 40 to 55 %, and the
    kernels' 70 to 85 %; not where there is little to multiply, or few channels, which do not fill a tile. Half a million weights
    and more with very few pixels are a matrix product: to copy them takes the time.
    """
    batch, inputs, height, width = shape
    pixels = batch * height * width
    if in_bf16 and dtype == torch.bfloat16 and _is_for_blocks(pixels, inputs, outputs):
        return Way.KERNELS
    is_product = _is_product_with_amx if processor_has("amx_bf16") and not bias else _is_product_in_bf16
    if dtype == torch.bfloat16 and is_product(height * width, pixels, min(inputs, outputs)):
        return Way.PRODUCT
    if dtype != torch.float32 or instructions() != "AVX2":
        return Way.CONVOLUTION
    many = inputs * outputs >= _MANY_WEIGHTS
    if many and pixels <= _FEWER_PIXELS:
        return Way.PRODUCT
    enough = pixels >= _FEWEST_PIXELS or many
    much = min(inputs, outputs) >= _FEWEST_CHANNELS and enough and pixels * inputs * outputs >= _FEWEST_PRODUCTS
    return Way.KERNELS if much else Way.CONVOLUTION


def _is_for_blocks(pixels: int, inputs: int, outputs: int) -> bool:
    """The kernels take channels by the block. Beside AMX the faster of product and convolution takes 1.01 to 1.6 times as long (28
    shapes of networks, median 1.25; 1.0 to 1.6 for one image), 0.8 to 0.9 where few pixels meet many weights. By
    vectors, on a Zen 4, it takes 1.0 to 1.8 times as long, 0.65 to 1.2 where up to 512 pixels meet half a million weights.
    """
    if inputs % _BLOCK or outputs % _BLOCK or pixels == 0:
        return False
    if processor_has("amx_bf16"):
        return pixels > _FEWER_PIXELS or inputs * outputs < _MANY_WEIGHTS_AMX
    return pixels > _FEWER_PIXELS_IN_PAIRS or inputs * outputs < _MANY_WEIGHTS


def _is_product_in_bf16(map_pixels: int, pixels: int, channels: int) -> bool:
    """Of ``channels`` at least on either side; 138 shapes were measured with AVX512-BF16."""
    few = pixels <= _FEW_PIXELS or (channels >= _MANY_CHANNELS and pixels <= _MORE_PIXELS)
    return map_pixels <= _SMALL_MAP or (few and onednn_has(torch.bfloat16))


def _is_product_with_amx(map_pixels: int, pixels: int, channels: int) -> bool:
    """By PyTorch. So fast are products that what oneDNN's convolution does beside them is most of it: from 128 channels on 1.0 to
    3.1 times as long, but 0.9 to 1.0 with 512 and more on large maps; with 64 0.9 to 1.1, with 32 0.7 to 1.0 (98 shapes). With a
    bias, whose gradient is another pass over the map beside a product, a step of ``separable_cnn`` took 1.03 to 1.08 times as long.
    """
    if map_pixels <= _SMALL_MAP or pixels <= _FEW_PIXELS:
        return True
    return channels >= _FEWEST_AMX and (channels < _MANY_CHANNELS or map_pixels <= _SMALL_MAP_AMX)


def pooling_is_faster(inputs: int, outputs: int) -> bool:
    """A pointwise convolution of so many channels is faster as one with the pooled normalisation behind it, in training."""
    return inputs <= MOST_FEW and outputs >= max(_FEWEST_POOLED, _WIDER * inputs)


def sums_are_worth_it(dtype: torch.dtype) -> bool:
    """Whether the kernels' convolution is to take its results' sums where it takes over nothing else.

    In float32 that is 2 to 7 % of its time: steps of ``dilated_separable`` were no faster (LOG.md).
    """
    return dtype != torch.float32
