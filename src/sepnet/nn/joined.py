"""A convolution and the normalisations beside it as one operation (see ``joined_depthwise``, ``joined_separable``,
``summed_pointwise`` and ``pooled_pointwise`` of ``sepnet.kernels``).
"""

from __future__ import annotations

from torch import Tensor, nn

from sepnet.kernels import (
    Geometry,
    Normalisation,
    joined_depthwise,
    joined_separable,
    joins,
    joins_pointwise,
    pooled_pointwise,
    pooling_is_faster,
    pools,
    summed_pointwise,
)
from sepnet.nn.conv import DepthwiseConv2d, PointwiseConv2d
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.pending import Pending, is_open, settle

__all__ = ["depthwise_between", "normalised_pointwise", "pointwise_before", "separable_before"]


def depthwise_between(x: Tensor | Pending, conv: nn.Conv2d, after: BatchNormReLU | None = None) -> Tensor:
    """``after(conv(settle(x)))``, as one operation where that is possible and faster: in training, for depthwise convolutions.

    Shape: (B, C, H, W) -> (B, C', H', W').
    """
    raw, before, sums = x if isinstance(x, Pending) else (x, None, None)
    geometry = _geometry(raw, before, conv, after)
    if geometry is not None:
        operands = raw, _side(before), conv.weight, conv.bias, geometry, _side(after)
        if joins(*operands):
            _count_batches(before, after)
            return joined_depthwise(*operands, sums)
    y: Tensor = conv(settle(x))
    return y if after is None else after(y)


def separable_before(
    x: Tensor | Pending, dw: nn.Conv2d, between: BatchNormReLU, pw: PointwiseConv2d, norm: BatchNormReLU
) -> Pending:
    """``pw(between(dw(settle(x))))``, to be normalised by ``norm``: as one operation where that is possible and faster.

    Shape: (B, C, H, W) -> (B, N, H', W').
    """
    raw, before, sums = x if isinstance(x, Pending) else (x, None, None)
    geometry = _geometry(raw, before, dw, between) if _may_sum(pw, norm) else None
    if geometry is not None:
        operands = raw, _side(before), dw.weight, dw.bias, geometry, between.normalisation()
        if joins(*operands) and joins_pointwise(raw, geometry, pw.weight, pw.bias):
            _count_batches(before, between)
            y, sums = joined_separable(*operands, sums, (pw.weight, pw.bias))
            return Pending(y, norm, sums)
    return pointwise_before(depthwise_between(x, dw, between), pw, norm)


def pointwise_before(x: Tensor, conv: PointwiseConv2d, norm: BatchNormReLU) -> Pending:
    """``conv(x)``, to be normalised by ``norm``, whose sums come with it where that is possible and faster.

    Shape: (B, C, H, W) -> (B, N, H', W').
    """
    if _may_sum(conv, norm):
        y, sums = summed_pointwise(x, conv.weight, conv.bias)
        return Pending(y, norm, sums)
    return Pending(conv(x), norm)


def _may_sum(conv: nn.Conv2d, norm: BatchNormReLU) -> bool:
    """Whether nobody watches the two, and the batch's statistics are wanted of what the convolution makes."""
    plain = isinstance(conv, PointwiseConv2d) and is_open(conv, PointwiseConv2d) and conv.stride == (1, 1)
    return plain and is_open(norm, BatchNormReLU) and norm.uses_batch


def _count_batches(*norms: BatchNormReLU | None) -> None:
    for norm in norms:
        if norm is not None:
            norm.count_batch()


def _side(norm: BatchNormReLU | None) -> Normalisation | None:
    return None if norm is None else norm.normalisation()


def _geometry(x: Tensor, before: BatchNormReLU | None, conv: nn.Conv2d, after: BatchNormReLU | None) -> Geometry | None:
    """The convolution's, if these layers can be joined at all; not between a normalisation and itself, which counts two batches."""
    if before is after or not isinstance(conv, DepthwiseConv2d) or not is_open(conv, DepthwiseConv2d):
        return None
    if not is_open(before, BatchNormReLU) or not is_open(after, BatchNormReLU):
        return None
    if x.dim() != 4 or not x.shape[1] == conv.in_channels == conv.out_channels:
        return None
    if any(norm is not None and (norm.pool or not norm.uses_batch) for norm in (before, after)):
        return None
    return conv.geometry


def normalised_pointwise(x: Tensor, conv: PointwiseConv2d, norm: BatchNormReLU) -> Tensor:
    """``norm(conv(x))``, as one operation where that is possible: few channels to many that are pooled, in training.

    Shape: (B, C, H, W) -> (B, N, H, W), or (B, N, H // 2, W // 2) where ``norm`` pools.
    """
    few = isinstance(conv, PointwiseConv2d) and pooling_is_faster(conv.in_channels, conv.out_channels)
    plain = few and is_open(conv, PointwiseConv2d) and conv.bias is None and conv.stride == (1, 1)
    if plain and is_open(norm, BatchNormReLU) and norm.pool and norm.uses_batch:
        operands = x, conv.weight, norm.normalisation()
        if pools(*operands):
            norm.count_batch()
            return pooled_pointwise(*operands)
    return settle(pointwise_before(x, conv, norm))
