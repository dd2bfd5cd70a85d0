"""Normalisation that is put off, so that the depthwise convolution after it can take it over (see ``sepnet.nn.joined``)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from sepnet.nn.norm import BatchNormReLU

__all__ = ["EndsInNorm", "Pending", "has_hooks", "settle"]


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


def has_hooks(*modules: nn.Module | None) -> bool:
    """Whether somebody watches one of the modules, so that each must be called by itself."""
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks or hooks._global_backward_hooks:
        return True
    return any(
        m is not None and (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks) for m in modules
    )
