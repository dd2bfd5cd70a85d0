"""Normalisation that is put off, so that the depthwise convolution after it can take it over (see ``sepnet.nn.joined``)."""

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


def settle(x: Tensor | Pending) -> Tensor:
    """The map itself, normalised where that was put off."""
    if isinstance(x, Pending):
        y: Tensor = x.norm(x.x)
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
    if parametrize.is_parametrized(module):  # its weight is computed whenever somebody looks at it
        return False
    own = isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module)
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    watched = hooks._global_forward_hooks or hooks._global_forward_pre_hooks
    return own and not hooked and not (watched or hooks._global_backward_hooks or hooks._global_backward_pre_hooks)
