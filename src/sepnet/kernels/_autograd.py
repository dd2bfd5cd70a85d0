"""``torch.autograd.Function`` for operations of a few dozen microseconds, beside which PyTorch's Python around it is not small."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["Function", "once_differentiable"]

Gradients = tuple[Tensor | None, ...]
_REFUSAL = b"the kernels differentiate this once (once_differentiable); sepnet.kernels.use('reference') has second derivatives"


class Function(torch.autograd.Function):
    """One that no transform of ``torch.func`` meets: its callers have made sure of that (``is_traced``), PyTorch need not."""

    apply: Callable[..., Any]
    """The result for the arguments, differentiable: what PyTorch's own ``apply`` calls in the end, for each class."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """As PyTorch's, whose work is only done where a second derivative may be asked for; which is refused even where the incoming
    gradients depend on nothing: PyTorch's would leave out what the saved tensors have to do with it, without a word.
    """

    @wraps(backward)
    def once(ctx: Any, *gradients: Tensor) -> Gradients:
        if not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        with torch.no_grad():
            found = backward(ctx, *gradients)
        refusal = torch._C._functions.DelayedError(_REFUSAL, len(found))
        refused: Any = refusal(*(g if g is None else g.detach().requires_grad_() for g in found))  # type: ignore[arg-type]
        return refused  # type: ignore[no-any-return]

    return once
