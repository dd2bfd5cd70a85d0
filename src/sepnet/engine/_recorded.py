"""A training step on a CPU without Python between its operations.

The networks here are so small that a processor, too, waits for Python: for layers, for autograd, for what both ask of a tensor, for
the optimiser's bookkeeping. A step that was written down (see ``_recorder``) asks nothing, and gives the same bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepnet.engine._graph import Step
from sepnet.engine._rates import rates_as_tensors
from sepnet.engine._recorder import Program, UnrecordableError, record
from sepnet.engine._unchanged import Unchanged, is_ordinary
from sepnet.kernels import library

__all__ = ["RECORD_AFTER", "RecordedStep", "takes_rates_as_tensors"]

RECORD_AFTER = 2
"""Calls that run as they are written before one is recorded: they create the optimiser's state."""

_MOST_SHAPES = 4  # of batches: the usual one, the last of an epoch
_MOST_RECORDINGS = 3  # of one shape: who changes the model at every step is not followed


def takes_rates_as_tensors(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step comes to the same bits with learning rates that are tensors, and can so be part of what is recorded."""
    kinds = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
    return isinstance(optimizer, kinds) and all(group["fused"] for group in optimizer.param_groups)


class RecordedStep:
    """``compute``, which leaves gradients in the parameters of ``model``: the first ``RECORD_AFTER`` calls with batches of a shape
    run it, the next one writes down what it does, and from then on that is called.

    For networks whose layers are all sepnet's or PyTorch's own, of which we know that they do the same at every step. It is written
    down anew where the model was changed meanwhile (layers or their settings, parameters that were frozen, set free or put
    elsewhere), or the optimiser. ``compute`` runs as it is written where values decide what is done, and where somebody watches or
    has set PyTorch to something else: with hooks, autocast, dispatch modes, anomaly detection.

    Args:
        compute: (images, labels) -> two tensors; clears the gradients that were there.
        optimizer: whose step is part of it, and ``takes_rates_as_tensors``. Its learning rates are read at each call.
    """

    def __init__(self, compute: Step, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._compute, self._model, self._optimizer = compute, model, optimizer
        self._batches: dict[Any, _Batches] = {}

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same as ``compute``'s."""
        batches = self._of_that_shape(x, y) if is_ordinary() else None
        if batches is None:
            return self._compute(x, y)
        if batches.recording is not None:
            if batches.recording.state.holds():
                return batches.recording(x, y)
            batches.recording, batches.calls = None, 0
        batches.calls += 1
        if batches.calls <= RECORD_AFTER or batches.left == 0:
            return self._compute(x, y)
        return self._record(batches, x, y)

    def _of_that_shape(self, x: Tensor, y: Tensor) -> _Batches | None:
        key = x.shape, x.stride(), x.dtype, x.requires_grad, y.shape, y.stride(), y.dtype, library()
        found = self._batches.get(key)
        if found is None and len(self._batches) < _MOST_SHAPES:
            found = self._batches[key] = _Batches()
        return found

    def _record(self, batches: _Batches, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        batches.left -= 1
        state, rates = Unchanged(self._model, self._optimizer), _Rates(self._optimizer)
        if not state.is_known() or not state.holds():
            return self._compute(x, y)
        results: tuple[Tensor, ...] = ()
        trained: list[nn.Parameter] = []

        def compute(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            nonlocal results
            results = self._compute(x, y)
            trained.extend(p for p in state.parameters if p.grad is not None)
            return *results, *(p.grad for p in trained if p.grad is not None)

        try:
            with rates.in_place():
                program = record(compute, (x, y), [*state.tensors, *rates.tensors])
        except UnrecordableError:
            batches.left = 0
        else:
            batches.recording = _Recording(program, state, rates, trained)
        loss, hits = results
        return loss, hits


class _Batches:
    """Those of one shape: how many were run as it is written, and what was recorded."""

    def __init__(self) -> None:
        self.calls = 0
        self.left = _MOST_RECORDINGS
        self.recording: _Recording | None = None


class _Rates:
    """The optimiser's learning rates, as tensors that hold them exactly."""

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._optimizer = optimizer
        self._groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
        self.tensors = [torch.tensor(float(group["lr"]), dtype=torch.float64, device="cpu") for group in self._groups]

    def in_place(self) -> AbstractContextManager[None]:
        """While the optimiser reads them, rather than its own."""
        return nullcontext() if self._optimizer is None else rates_as_tensors(self._optimizer, self.tensors)

    def read(self) -> None:
        for tensor, group in zip(self.tensors, self._groups, strict=True):
            tensor.fill_(group["lr"])


@dataclass(frozen=True)
class _Recording:
    """A step, what it took for granted, where it reads its learning rates, and whose gradients it leaves behind."""

    program: Program
    state: Unchanged
    rates: _Rates
    trained: list[nn.Parameter]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for parameter in self.state.parameters:
            parameter.grad = None
        self.rates.read()
        with torch.no_grad():
            loss, hits, *gradients = self.program(x, y)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        return loss, hits
