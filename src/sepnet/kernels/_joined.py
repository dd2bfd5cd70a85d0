"""A depthwise convolution together with the batch normalisations at its sides, which then need fewer passes over memory.

Forward: the normalisation before, and its ReLU, are applied while the convolution reads; the sums for the one after are taken from
what it has just computed. Backward: the gradient passes the normalisation after while it is read, and the sums for the one before
are taken from what has just been computed. For maps beyond the cache 14 readings or writings of a map are left of 21.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sepnet.kernels import _native, _native_norm
from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._choice_depthwise import choose, has_few_channels, torch_backward_is_faster
from sepnet.kernels._depthwise import fits
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import Library, library
from sepnet.kernels._norm import Normalisation
from sepnet.kernels._tensors import compute_dtype, dense, exact, library_for

__all__ = ["joined_depthwise", "joins"]


def joins(
    x: Tensor, before: Normalisation | None, weight: Tensor, bias: Tensor | None, geometry: Geometry, after: Normalisation | None
) -> bool:
    """Whether ``joined_depthwise`` takes these, and is the faster way."""
    if library_for(x, weight, bias) is None or x.dim() != 4 or not fits(geometry, x.shape[1], weight, bias):
        return False
    size, dtype = (x.shape[2], x.shape[3]), compute_dtype(x)
    if (
        min(x.shape) == 0
        or choose(dtype, x.shape, geometry) is None
        or torch_backward_is_faster(dtype, x.shape, geometry)
        or has_few_channels(x.shape)
    ):
        return False
    out = geometry.output_size(*size)
    alone = x.shape[0] * min(size[0] * size[1], out[0] * out[1]) == 1  # one value a channel has no variance
    return not alone and all(norm is None or norm.fits(x.shape[1]) for norm in (before, after))


def joined_depthwise(
    x: Tensor, before: Normalisation | None, weight: Tensor, bias: Tensor | None, geometry: Geometry, after: Normalisation | None
) -> Tensor:
    """``after(conv(before(x)))`` in training; where ``joins`` says so. Differentiable once.

    Args:
        weight: (C, 1, kh, kw): one filter bank, channel multiplier 1.

    Shape: (B, C, H, W) -> (B, C, H', W'), channels-last.
    """
    x = x.to(compute_dtype(x))
    affine = [t for norm in (before, after) for t in ((None, None) if norm is None else (norm.weight, norm.bias))]
    y: Tensor = _JoinedDepthwise.apply(x, weight, bias, *affine, geometry, before, after)
    return y


def _statistics(lib: Library, x: Tensor, sums: Tensor | None, norm: Normalisation | None) -> _native.Side | None:
    if norm is None:
        return None
    constants = _native_norm.norm_statistics(lib, x, sums, norm.weight.detach(), norm.bias.detach(), norm.averages, norm.eps)
    return _native.Side(constants, norm.relu)


class _JoinedDepthwise(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *rest: Any,  # gamma and beta of both normalisations, for their gradients; geometry; the normalisations
    ) -> Tensor:
        geometry, before, after = rest[4:]
        lib = library()
        assert lib is not None
        x = dense(x)
        ahead = _statistics(lib, x, None, before)
        weight_exact, bias_exact = exact(weight), None if bias is None else exact(bias)
        y, sums = _native.depthwise_forward_joined(lib, x, weight_exact, bias_exact, geometry, ahead, after is not None)
        behind = _statistics(lib, y, sums, after)
        ctx.lib, ctx.geometry, ctx.types = lib, geometry, (weight.dtype, None if bias is None else bias.dtype)
        ctx.relu = (None if ahead is None else ahead.relu, None if behind is None else behind.relu)
        ctx.save_for_backward(
            x, weight_exact, None if behind is None else y, *(None if side is None else side.constants for side in (ahead, behind))
        )
        return y if behind is None else _native_norm.norm_apply_constants(lib, y, behind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        lib: Library = ctx.lib
        x, weight, y, *constants = ctx.saved_tensors
        x = dense(x)  # hooks of saved tensors may give it back in another layout
        ahead, behind = (None if c is None else _native.Side(c, r) for c, r in zip(constants, ctx.relu, strict=True))
        grad = dense(grad)
        affine_after: tuple[Tensor | None, ...] = (None, None)
        if behind is not None:
            y = dense(y)
            affine_after = _native_norm.norm_gradients(lib, y, _native_norm.norm_sums(lib, y, grad, behind), behind)
        want = (ahead is not None or ctx.needs_input_grad[0], *ctx.needs_input_grad[1:3])
        (grad_x, grad_weight, grad_bias), sums = _native.depthwise_backward_joined(
            lib, x, weight, grad, ctx.geometry, want, ahead, None if behind is None else (y, behind)
        )
        affine_before: tuple[Tensor | None, ...] = (None, None)
        if ahead is not None:
            assert grad_x is not None
            assert sums is not None
            affine_before = _native_norm.norm_gradients(lib, x, sums, ahead)
            grad_x = _native_norm.norm_input_gradient_(lib, x, grad_x, ahead)
        return (
            grad_x,
            None if grad_weight is None else grad_weight.to(ctx.types[0]),
            None if grad_bias is None else grad_bias.to(ctx.types[1]),
            *affine_before,
            *affine_after,
            None,
            None,
            None,
        )
