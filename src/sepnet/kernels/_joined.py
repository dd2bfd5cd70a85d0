"""A depthwise convolution together with the batch normalisations at its sides, which then need fewer passes over memory.

Forward: the normalisation before, and its ReLU, are applied while the convolution reads; the sums for the one after are taken from
what it has just computed. Backward: the gradient passes the normalisation after while it is read, and the sums for the one before
are taken from what has just been computed. For maps beyond the cache 14 readings or writings of a map are left of 21.

A pointwise convolution behind it, by the kernels, takes the normalisation between them in the same way, and the sums for
the next one: of the 20 of a separable block 14 are left, in float32 16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from sepnet.kernels import _native, _native_norm, _native_pointwise
from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._choice_depthwise import choose, has_few_channels, torch_backward_is_faster
from sepnet.kernels._depthwise import fits
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import Library, library
from sepnet.kernels._norm import Normalisation
from sepnet.kernels._pointwise import pointwise_by_kernels
from sepnet.kernels._tensors import compute_dtype, dense, exact, library_for

__all__ = ["joined_depthwise", "joined_separable", "joins", "joins_pointwise"]


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


def joins_pointwise(x: Tensor, geometry: Geometry, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether ``joined_separable`` takes this pointwise convolution behind what ``joins``, and a normalisation after that."""
    lib = library()
    shape = (*x.shape[:2], *geometry.output_size(x.shape[2], x.shape[3]))
    return lib is not None and pointwise_by_kernels(lib, compute_dtype(x), shape, weight, bias)


def joined_depthwise(
    x: Tensor,
    before: Normalisation | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    after: Normalisation | None,
    sums: Tensor | None = None,
) -> Tensor:
    """``after(conv(before(x)))`` in training; where ``joins`` says so. Differentiable once.

    Args:
        weight: (C, 1, kh, kw): one filter bank, channel multiplier 1.
        sums: of x, where they are known (``summed_pointwise``).

    Shape: (B, C, H, W) -> (B, C, H', W'), channels-last.
    """
    x = x.to(compute_dtype(x))
    y: Tensor = _JoinedDepthwise.apply(x, weight, bias, *_affine(before, after), geometry, before, after, sums)
    return y


def joined_separable(
    x: Tensor,
    before: Normalisation | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    after: Normalisation,
    sums: Tensor | None,
    pointwise: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """``pointwise_conv2d(joined_depthwise(...), *pointwise)``, and the sums of that; where ``joins_pointwise`` says so, too.

    Shape: (B, C, H, W), pointwise weight (N, C, 1, 1) -> (B, N, H', W'), channels-last; (3, N).
    """
    x = x.to(compute_dtype(x))
    result: tuple[Tensor, Tensor] = _JoinedSeparable.apply(
        x, weight, bias, *_affine(before, after), geometry, before, after, sums, *pointwise
    )
    return result


def _affine(*norms: Normalisation | None) -> list[Tensor | None]:
    """Weights and biases, for their gradients."""
    return [t for norm in norms for t in ((None, None) if norm is None else (norm.weight, norm.bias))]


def _statistics(lib: Library, x: Tensor, sums: Tensor | None, norm: Normalisation | None) -> _native.Side | None:
    if norm is None:
        return None
    constants = _native_norm.norm_statistics(lib, x, sums, norm.weight.detach(), norm.bias.detach(), norm.averages, norm.eps)
    return _native.Side(constants, norm.relu)


def _convolve(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, _native.Side | None]:
    """The convolution's output, and its normalisation, not yet applied. Saves all that ``_gradients`` needs.

    Args:
        rest: weights and biases of both normalisations, which autograd is to know of; geometry; the normalisations; sums of x; and
            what is to be saved with all that.
    """
    geometry, before, after, sums, *more = rest[4:]
    lib = library()
    assert lib is not None
    x = dense(x)
    ahead = _statistics(lib, x, sums, before)
    weight_exact, bias_exact = exact(weight), None if bias is None else exact(bias)
    y, sums_after = _native.depthwise_forward_joined(lib, x, weight_exact, bias_exact, geometry, ahead, after is not None)
    behind = _statistics(lib, y, sums_after, after)
    ctx.lib, ctx.geometry, ctx.types = lib, geometry, (weight.dtype, None if bias is None else bias.dtype)
    ctx.relu = (None if ahead is None else ahead.relu, None if behind is None else behind.relu)
    constants = (None if side is None else side.constants for side in (ahead, behind))
    ctx.save_for_backward(x, weight_exact, None if behind is None else y, *constants, *more)
    return y, behind


class _Saved(NamedTuple):
    x: Tensor
    weight: Tensor
    y: Tensor | None
    ahead: _native.Side | None
    behind: _native.Side | None
    more: tuple[Tensor, ...]


def _saved(ctx: Any) -> _Saved:
    """All that was saved, asked for once: hooks may count, and may give maps back in another layout."""
    x, weight, y, first, second, *more = ctx.saved_tensors
    ahead, behind = (None if c is None else _native.Side(c, r) for c, r in zip((first, second), ctx.relu, strict=True))
    return _Saved(dense(x), weight, None if y is None else dense(y), ahead, behind, tuple(map(dense, more)))


def _gradients(ctx: Any, saved: _Saved, grad: Tensor, sums: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of x, weight, bias and the normalisations' weights and biases, from that of the normalised output and its ``sums``."""
    lib: Library = ctx.lib
    x, weight, y, ahead, behind, _ = saved
    affine_after: tuple[Tensor | None, ...] = (None, None)
    if behind is not None:
        assert y is not None
        affine_after = _native_norm.norm_gradients(lib, y, _sums_of(lib, y, grad, behind, sums), behind)
    want = (ahead is not None or ctx.needs_input_grad[0], *ctx.needs_input_grad[1:3])
    (grad_x, grad_weight, grad_bias), sums_before = _native.depthwise_backward_joined(
        lib, x, weight, grad, ctx.geometry, want, ahead, None if behind is None or y is None else (y, behind)
    )
    affine_before: tuple[Tensor | None, ...] = (None, None)
    if ahead is not None:
        assert grad_x is not None
        assert sums_before is not None
        affine_before = _native_norm.norm_gradients(lib, x, sums_before, ahead)
        grad_x = _native_norm.norm_input_gradient_(lib, x, grad_x, ahead)
    return (
        grad_x,
        None if grad_weight is None else grad_weight.to(ctx.types[0]),
        None if grad_bias is None else grad_bias.to(ctx.types[1]),
        *affine_before,
        *affine_after,
    )


def _sums_of(lib: Library, y: Tensor, grad: Tensor, behind: _native.Side, known: Tensor | None) -> Tensor:
    return _native_norm.norm_sums(lib, y, grad, behind) if known is None else known


class _JoinedDepthwise(Function):
    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Tensor:
        y, behind = _convolve(ctx, *operands)
        return y if behind is None else _native_norm.norm_apply_constants(ctx.lib, y, behind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, _saved(ctx), dense(grad), None), None, None, None, None


class _JoinedSeparable(Function):
    @staticmethod
    def forward(ctx: Any, *operands: Any) -> tuple[Tensor, Tensor]:
        *joined, weight, bias = operands  # these of the pointwise convolution
        y, behind = _convolve(ctx, *joined, weight)
        result, sums = _native_pointwise.pointwise_forward_joined(ctx.lib, y, weight, bias, behind, True)
        assert sums is not None
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        return result, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:  # whoever had the result gave none back
            return (None,) * len(ctx.needs_input_grad)
        saved = _saved(ctx)
        assert saved.y is not None
        assert saved.behind is not None
        want = (True, *ctx.needs_input_grad[-2:])
        (grad_y, *pointwise), sums = _native_pointwise.pointwise_backward_joined(
            ctx.lib, saved.y, saved.more[0], dense(grad), want, saved.behind
        )
        assert grad_y is not None
        return *_gradients(ctx, saved, grad_y, sums), None, None, None, None, *pointwise
