"""Exponential moving average of weights and running statistics (Polyak & Juditsky 1992).

Not torch's AveragedModel: that one keeps its counter on the device, and a decay that depends on the counter would wait for
the device at every step.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Ema"]


class Ema:
    """A copy of ``model``, in ``module``, that ``update`` moves towards it.

    The first update copies. The decay of the n-th after it is min(decay, (1 + n) / (10 + n)), so that a short run is not held
    at its random start. Buffers that are no floating-point numbers (counters) are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights and buffers of ``model``, the network it was made from."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        self.updates += 1
        averaged, current = _tensors(self.module), _tensors(model)
        torch._foreach_lerp_(averaged[0], current[0], 1 - keep)
        if averaged[1]:
            torch._foreach_copy_(averaged[1], current[1])

    def state_dict(self) -> dict[str, Any]:
        """The average and how many updates it has had."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what ``state_dict`` gave. Raises KeyError, RuntimeError or TypeError where it is something else."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers: those of floating-point numbers, and the others."""
    every = list(chain(model.parameters(), model.buffers()))
    return [t for t in every if t.is_floating_point()], [t for t in every if not t.is_floating_point()]
