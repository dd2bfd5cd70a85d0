"""Whether a training step would still compute what it computed before: asked at every step, so in a few dozen microseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

__all__ = ["Unchanged", "is_ordinary"]

_KNOWN_LAYERS = ("sepnet.", "torch.nn.")
_MEMBERS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Unchanged:
    """What decides, beside values, what a step does with ``model`` and ``optimizer``: as it was when this was made.

    Attributes:
        parameters: the model's.
        tensors: all that a step reads: parameters, buffers, the optimiser's state.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self._modules = list(model.modules())
        members = [vars(module) for module in self._modules]
        self._hooks = [m[name] for m in members for name in _HOOKS]
        self._optimizer = None if optimizer is None else _Optimizer(optimizer)
        moments = [] if self._optimizer is None else self._optimizer.moments
        self._settings = members + [m[name] for m in members for name in _MEMBERS] + moments
        self._before = [dict(settings) for settings in self._settings]
        self.parameters = list(model.parameters())
        self.tensors: list[Tensor] = [*self.parameters, *model.buffers()]
        self.tensors += [value for moment in moments for value in moment.values() if isinstance(value, Tensor)]
        self._places = [t.data_ptr() for t in self.tensors]
        self._trained = [p.requires_grad for p in self.parameters]

    def is_known(self) -> bool:
        """Whether the layers are sepnet's or PyTorch's, which do the same at every step."""
        kinds = {f"{type(module).__module__}." for module in self._modules}
        return all(kind.startswith(_KNOWN_LAYERS) for kind in kinds) and not any("forward" in vars(m) for m in self._modules)

    def holds(self) -> bool:
        """Whether it is so still, and nobody watches layers, gradients or updates."""
        try:
            same = self._settings == self._before  # where they are the same objects, tensors are not compared
        except RuntimeError:
            return False
        return (
            same
            and not any(self._hooks)
            and [t.data_ptr() for t in self.tensors] == self._places
            and [p.requires_grad for p in self.parameters] == self._trained
            and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters)
            and (self._optimizer is None or self._optimizer.holds())
        )


class _Optimizer:
    """An optimiser's part of it, all but the learning rates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._state, self._groups = optimizer.state, optimizer.param_groups
        self.moments: list[dict[str, Any]] = list(self._state.values())
        self._before = [{**group, "params": list(group["params"])} for group in self._groups]

    def holds(self) -> bool:
        now = self._optimizer
        if now.state is not self._state or now.param_groups is not self._groups or len(self._groups) != len(self._before):
            return False  # another state was read
        for group, before in zip(self._groups, self._before, strict=True):
            before["lr"] = group["lr"]
            if group != before:
                return False
        watched = now._optimizer_step_pre_hooks or now._optimizer_step_post_hooks
        return not watched and len(self._state) == len(self.moments)


def is_ordinary() -> bool:
    """Whether PyTorch is in the state in which training runs, and nobody watches."""
    watched = hooks._global_forward_hooks or hooks._global_forward_pre_hooks
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_anomaly_enabled()
        and not (watched or hooks._global_backward_hooks or hooks._global_backward_pre_hooks)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )
