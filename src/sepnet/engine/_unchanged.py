"""Whether a training step would still compute what it computed before: asked at every step, so in a few dozen microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from operator import is_
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.optim import optimizer as optimizer_hooks

__all__ = ["Unchanged", "is_ordinary"]

_KNOWN_CODE = ("sepnet.", "torch.", "lightning_fabric.wrappers.")
_CODE = (FunctionType, MethodType, partial)
_NUMBERS = (int, float, bool, str)
_MEMBERS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Unchanged:
    """What a step does is decided by: the layers of ``model``, their kinds, attributes and hooks; where parameters, buffers and
    the optimiser's state are, and which are trained; the optimiser's settings, but for the learning rates, and its hooks; and the
    attributes of ``owner``. This tells whether all of that is as it was when it was made.

    Not seen: what known layers read from elsewhere, and hooks on nodes of autograd's graph.

    Attributes:
        trained: the parameters that the optimiser has, which are to be all that are trained.
        tensors: all that a step reads: parameters, buffers, the optimiser's state.
    """

    def __init__(self, owner: object, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._modules = list(model.modules())
        self._kinds = [type(module) for module in self._modules]
        members = [vars(module) for module in self._modules]
        self._hooks = [m[name] for m in members for name in _HOOKS]
        self._optimizer = _Optimizer(optimizer)
        state = self._optimizer.states
        self._attributes = [vars(owner), *members, *(m[name] for m in members for name in _MEMBERS), *state]
        self._before = [dict(attributes) for attributes in self._attributes]
        self._parameters = list(model.parameters())
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.tensors: list[Tensor] = [*self._parameters, *model.buffers()]
        self.tensors += [value for values in state for value in values.values() if isinstance(value, Tensor)]
        self._places = list(map(_place, self.tensors))
        self._gradients = [p.requires_grad for p in self._parameters]

    def is_supported(self) -> bool:
        """Whether the layers are sepnet's or PyTorch's, without code of others in them, and the optimiser has all that are trained:
        of these we know that they do the same at every step.
        """
        kinds = {f"{kind.__module__}." for kind in self._kinds}
        owned = {id(p) for p in self.trained}
        return (
            all(kind.startswith(_KNOWN_CODE) for kind in kinds)
            and not any(_is_unknown_code(value) for module in self._modules for value in vars(module).values())
            and all(id(p) in owned for p in self._parameters if p.requires_grad)
        )

    def holds(self) -> bool:
        """Whether it is so still, and nobody watches layers, gradients or updates."""
        return (
            all(map(_same, self._attributes, self._before))
            and not any(self._hooks)
            and list(map(type, self._modules)) == self._kinds
            and list(map(_place, self.tensors)) == self._places
            and [p.requires_grad for p in self._parameters] == self._gradients
            and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self._parameters)
            and self._optimizer.holds()
        )


class _Optimizer:
    """An optimiser's part of it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._objects = [optimizer, getattr(optimizer, "optimizer", optimizer)]  # Fabric's wrapper, and what it wraps
        self._optimizer = self._objects[1]
        self._state, self._groups = self._optimizer.state, self._optimizer.param_groups
        self.states: list[dict[str, Any]] = list(self._state.values())
        self._before = [dict(group) for group in self._groups]
        self._parameters = [list(group["params"]) for group in self._groups]

    def holds(self) -> bool:
        now = self._optimizer
        if now.state is not self._state or now.param_groups is not self._groups or len(self._groups) != len(self._before):
            return False  # another state was read
        for group, before, parameters in zip(self._groups, self._before, self._parameters, strict=True):
            before["lr"] = group["lr"]
            if not _same(group, before) or not _same_items(group["params"], parameters):
                return False
        watched = now._optimizer_step_pre_hooks or now._optimizer_step_post_hooks or any("step" in vars(o) for o in self._objects)
        return not watched and len(self._state) == len(self.states)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether attributes have the values that they had: the same objects, or equal numbers or names."""
    if len(now) != len(before):
        return False
    if all(map(is_, now.values(), before.values())):
        return True
    pairs = zip(now.values(), before.values(), strict=True)
    return all(a is b or (type(a) is type(b) and type(a) in _NUMBERS and a == b) for a, b in pairs)


def _same_items(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def _is_unknown_code(value: object) -> bool:
    """A function (a layer's ``forward`` of somebody's own, an activation, ...) that is not PyTorch's or ours."""
    return isinstance(value, _CODE) and not f"{getattr(value, '__module__', None)}.".startswith(_KNOWN_CODE)


def is_ordinary() -> bool:
    """Whether PyTorch is in the state in which training runs, and nobody watches."""
    layers = hooks._global_forward_hooks or hooks._global_forward_pre_hooks
    updates = optimizer_hooks._global_optimizer_pre_hooks or optimizer_hooks._global_optimizer_post_hooks
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_anomaly_enabled()
        and not (layers or hooks._global_backward_hooks or hooks._global_backward_pre_hooks or updates)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )
