"""The depthwise branches of Wang et al.'s unit as one convolution, whose filters the library composes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from sepnet.kernels import _depthwise
from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import Library, Multiscale, library
from sepnet.kernels._native_multiscale import SIDE, WIDE, compose_filters, filter_gradients

__all__ = ["multiscale_branches"]


def multiscale_branches(x: Tensor, small: Tensor, first: Tensor, second: Tensor, *, add: bool, residual: bool) -> Tensor:
    """Branches a = conv(x, small) and b = conv(conv(x, first), second), depthwise: [x + a, x + b] concatenated, or x + a + b.

    The stacked branch is zero-padded by 2 before its first layer. Differentiable once. For what ``native_for`` admits, and filters
    that are ``is_plain``.

    Args:
        add: whether the branches are added.
        residual: whether x is part of them.

    Shape: (B, C, H, W), filters (C, 1, 3, 3) -> (B, 2C, H, W), or (B, C, H, W) with ``add``.

    Raises:
        ValueError: filters and input do not go together; the message shows the shapes.
    """
    lib, filters = library(), (small, first, second)
    assert lib is not None
    shapes = [tuple(w.shape) for w in filters]
    if x.dim() != 4 or any(shape != (x.shape[1], 1, SIDE, SIDE) for shape in shapes):
        raise ValueError(f"multiscale_branches wants (B, C, H, W) and filters (C, 1, 3, 3), got {tuple(x.shape)}, {shapes}")
    unit = Multiscale(x.shape[1], add, residual)
    composed: Tensor = _Filters.apply(*map(_exact, filters), unit, lib)
    return _depthwise.depthwise_by_geometry(x, composed, None, _geometry(add))


def _exact(weight: Tensor) -> Tensor:
    """In float32 and without gaps, as the library reads it."""
    return weight.float().contiguous()


@lru_cache(maxsize=2)
def _geometry(add: bool) -> Geometry:
    sides = (WIDE,) if add else (SIDE, WIDE)
    return Geometry((1, 1), tuple((k, k) for k in sides), tuple((k // 2, k // 2) for k in sides), ((1, 1),) * len(sides), False)


class _Filters(Function):
    @staticmethod
    def forward(ctx: Any, small: Tensor, first: Tensor, second: Tensor, unit: Multiscale, lib: Library) -> Tensor:
        ctx.save_for_backward(small, first, second)
        ctx.call = unit, lib
        return compose_filters(lib, unit, small, first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, lib = ctx.call
        filters = [_exact(w) for w in ctx.saved_tensors]  # hooks of saved tensors may give them back in another layout
        return *filter_gradients(lib, unit, filters, grad.contiguous(), ctx.needs_input_grad[:3]), None, None
