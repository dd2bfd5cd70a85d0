"""A training step as one CUDA graph: its hundreds of small kernels are launched by one call (Gray 2019, "Getting Started with CUDA
Graphs", NVIDIA developer blog).

The networks here are so small that a GPU waits for Python between their kernels; replayed as a graph it does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sepnet.engine._rates import rates_as_tensors

__all__ = ["WARM_UP", "GraphedStep", "Step"]

WARM_UP = 3
"""Steps that run as they are written before the graph is recorded: they create the optimiser's state and choose algorithms."""

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Recording:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor]
    rates: list[Tensor]


class GraphedStep:
    """``step`` on batches of one shape: the first ``WARM_UP`` calls run it, the next records it, and from then on it is replayed.

    Every call trains by exactly one batch. Learning rates are read from the optimiser's groups at each call. A step that cannot
    be recorded goes on as it is written, after one warning.

    Args:
        step: (images, labels) -> two tensors; works on the device alone and never waits for it.
        optimizer: whose step is part of it.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._step, self._optimizer, self._device = step, optimizer, device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0
        self._recording: _Recording | None = None

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step; the two results are the caller's own."""
        self._calls += 1
        if self._calls == WARM_UP + 1:
            self._recording = self._record(x, y)
        if self._recording is None or (x.shape, y.shape) != tuple(t.shape for t in self._recording.inputs):
            return self._run_aside(x, y)
        return self._replay(self._recording, x, y)

    def _run_aside(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # not on the default stream, to which nothing that is recorded later may be bound
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            outputs = self._step(x, y)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return outputs

    def _record(self, x: Tensor, y: Tensor) -> _Recording | None:
        """Record the step, which computes nothing yet; None where that is not possible."""
        graph, inputs = torch.cuda.CUDAGraph(), (x.clone(), y.clone())
        rates = [torch.full((), float(group["lr"]), device=self._device) for group in self._optimizer.param_groups]
        self._optimizer.zero_grad(set_to_none=True)  # gradients come to lie in the graph's own memory
        try:
            with rates_as_tensors(self._optimizer, rates):  # noqa: SIM117
                with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                    outputs = self._step(*inputs)
        except RuntimeError as error:
            warnings.warn(f"the training step is not run as a CUDA graph: {error}", stacklevel=2)
            self._optimizer.zero_grad(set_to_none=True)
            return None
        return _Recording(graph, inputs, outputs, rates)

    def _replay(self, recording: _Recording, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for static, given in zip(recording.inputs, (x, y), strict=True):
            static.copy_(given)
        for rate, group in zip(recording.rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        recording.graph.replay()
        first, second = recording.outputs
        return first.clone(), second.clone()
