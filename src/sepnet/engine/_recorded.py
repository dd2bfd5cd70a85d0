"""A training step on a CPU as a list of operations, called one after the other.

The networks here are so small that a processor, too, waits for Python: for layers, for autograd, for what both ask of a tensor, for
the optimiser's bookkeeping. A recorded step (see ``_recorder``) has none of them, and gives the same bits.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepnet.engine._graph import Step
from sepnet.engine._rates import rates_as_tensors
from sepnet.engine._recorder import Program, Recorder, UnrecordableError
from sepnet.engine._unchanged import Unchanged, is_ordinary
from sepnet.errors import one_line
from sepnet.kernels import library

__all__ = ["RECORD_AFTER", "RecordedStep", "takes_rates_as_tensors"]

RECORD_AFTER = 2
"""Calls that run as they are written before one is recorded: they create the optimiser's state."""

_MOST_SHAPES = 4  # of batches: the usual one, the last of an epoch
_MOST_RECORDINGS = 10  # of one shape: who changes the model at every step is not followed for ever


def takes_rates_as_tensors(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step comes to the same bits with learning rates that are tensors, and can so be part of what is recorded."""
    kinds = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
    return isinstance(optimizer, kinds) and all(group["fused"] for group in optimizer.param_groups)


class RecordedStep:
    """``compute``, a training step or both passes of one: the first ``RECORD_AFTER`` calls with batches of a shape run it, the next
    one is recorded as well, and from then on the recording is called.

    For layers that are all sepnet's or PyTorch's own, and batches without gradients of their own. It is recorded anew where the
    model, the optimiser or the owner was changed meanwhile (see ``Unchanged``). ``compute`` runs as it is written where values
    decide what is done, and where somebody watches or has set PyTorch to something else: with hooks, autocast, dispatch modes,
    anomaly detection. While there is a recording, ``torch.utils.swap_tensors`` refuses the model's parameters.

    Args:
        compute: (images, labels) -> two tensors; clears the gradients of the optimiser's parameters, and leaves new ones.
        owner: whose attributes it reads.
        updates: whether the optimiser's step is part of it, which then ``takes_rates_as_tensors``: learning rates are read at each
            call.
    """

    def __init__(self, compute: Step, owner: object, model: nn.Module, optimizer: torch.optim.Optimizer, *, updates: bool) -> None:
        self._compute, self._owner, self._model, self._optimizer, self._updates = compute, owner, model, optimizer, updates
        self._shapes: dict[Any, _Shape] = {}

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same as ``compute``'s."""
        shape = self._shape_of(x, y) if _is_plain(x) and _is_plain(y) and x is not y and is_ordinary() else None
        if shape is None:
            return self._compute(x, y)
        if shape.recording is not None:
            if shape.recording.state.holds():
                return shape.recording(x, y)
            self._forget()
        shape.calls += 1
        if shape.calls <= RECORD_AFTER or shape.recordings_left == 0:
            return self._compute(x, y)
        return self._record(shape, x, y)

    def _shape_of(self, x: Tensor, y: Tensor) -> _Shape | None:
        key = x.shape, x.stride(), x.dtype, y.shape, y.stride(), y.dtype, library()
        found = self._shapes.get(key)
        if found is None and len(self._shapes) < _MOST_SHAPES:
            found = self._shapes[key] = _Shape()
        return found

    def _forget(self) -> None:
        """Recordings that hold no longer, with the tensors that they would keep."""
        for shape in self._shapes.values():
            if shape.recording is not None and not shape.recording.state.holds():
                shape.recording, shape.calls = None, 0

    def _record(self, shape: _Shape, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        state, rates = Unchanged(self._owner, self._model, self._optimizer), _Rates(self._optimizer)
        if not state.is_supported() or not state.holds():
            shape.calls = 0  # to be asked again a little later
            return self._compute(x, y)
        recorder = Recorder((x, y), [*state.tensors, *rates.tensors])
        with rates_as_tensors(self._optimizer, rates.tensors) if self._updates else nullcontext():
            loss, hits = recorder.run(self._compute)
        trained = [p for p in state.trained if p.grad is not None]
        shape.recordings_left -= 1
        try:
            program = recorder.program([loss, hits, *(p.grad for p in trained if p.grad is not None)])
        except UnrecordableError:
            shape.recordings_left = 0
        except Exception as error:  # the step itself is done, and its run goes on
            shape.recordings_left = 0
            warnings.warn(f"the training step is not recorded: {one_line(error)}", stacklevel=2)
        else:
            shape.recording = _Recording(program, state, rates, trained)
        return loss, hits


class _Shape:
    """Batches of one: how many were computed, and what was recorded."""

    def __init__(self) -> None:
        self.calls = 0
        self.recordings_left = _MOST_RECORDINGS
        self.recording: _Recording | None = None


class _Rates:
    """The optimiser's learning rates, as tensors that hold them exactly."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._groups: list[dict[str, Any]] = optimizer.param_groups
        self.tensors = [torch.tensor(float(group["lr"]), dtype=torch.float64, device="cpu") for group in self._groups]

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
        for parameter in self.state.trained:
            parameter.grad = None
        self.rates.read()
        with torch.no_grad():
            loss, hits, *gradients = self.program(x, y)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        return loss, hits


def _is_plain(t: Tensor) -> bool:
    return type(t) is Tensor and t.is_cpu and t.layout is torch.strided and not t.requires_grad
