"""Normalisation that is put off, so that the convolution after it can take it over (see ``sepnet.nn.joined``)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrize

from sepnet.nn.norm import BatchNormReLU

__all__ = ["EndsInNorm", "Pending", "is_open", "settle"]


class Pending(NamedTuple):
    """A map whose normalisation (and ReLU) has still to be applied: stands for ``norm(x)``."""

    x: Tensor
    norm: BatchNormReLU
    sums: Tensor | None = None
    """Of the map, for its statistics, where they are known and nobody watches ``norm``."""


def settle(x: Tensor | Pending, shortcut: Tensor | None = None) -> Tensor:
    """The map itself, normalised where that was put off; a ``shortcut`` is added before the ReLU."""
    if isinstance(x, Pending):
        operands = [x.x] if shortcut is None else [x.x, shortcut]  # a layer that is watched knows no more
        y: Tensor = x.norm(*operands) if x.sums is None else x.norm(x.x, shortcut, x.sums)
        return y
    return x


class EndsInNorm(nn.Module):
    """A layer whose last operation is a ``BatchNormReLU``, which it can leave to its successor."""

    def pending(self, x: Tensor | Pending) -> Pending:
        """The layer's map before that operation; the input may be such a map itself."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as the class says."""
        return settle(self.pending(x))


def is_open(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether another layer may do ``module``'s work: it computes what ``kind`` does, and nobody watches it with a hook."""
    if module is None:
        return True
    own = type(module) is kind or (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and not parametrize.is_parametrized(module)  # which has a class of its own, and computes its weight at each look
    )
    if not own or "forward" in vars(module):
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    watched = hooks._global_forward_hooks or hooks._global_forward_pre_hooks
    return not hooked and not (watched or hooks._global_backward_hooks or hooks._global_backward_pre_hooks)
