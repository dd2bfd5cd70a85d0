"""``torch.autograd.Function`` for operations of a few dozen microseconds, beside which PyTorch's Python around it is not small."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function

__all__ = ["Function", "once_differentiable"]

Gradients = tuple[Tensor | None, ...]


class Function(torch.autograd.Function):
    """One that no transform of ``torch.func`` meets: its callers have made sure of that (``is_traced``), PyTorch need not."""

    apply: Callable[..., Any]
    """The result for the arguments, differentiable: what PyTorch's own ``apply`` calls in the end, for each class."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """PyTorch's ``once_differentiable``, whose work is only done where a second derivative may be asked for."""
    refusing: Callable[..., Gradients] = function.once_differentiable(backward)

    @wraps(backward)
    def once(ctx: Any, *gradients: Tensor) -> Gradients:
        return refusing(ctx, *gradients) if torch.is_grad_enabled() else backward(ctx, *gradients)

    return once
