"""Training the same network as its step is written, and recorded; for the tests of recorded steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sepnet.engine import TrainingStep, make_fabric
from sepnet.engine._recorded import RECORD_AFTER, RecordedStep
from training_tools import config

STEPS = RECORD_AFTER + 4


def images(count: int, *shape: int, classes: int = 5, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)


def training(model: nn.Module, recorded: bool = True, amp: str = "off", **changes: Any) -> TrainingStep:
    step = TrainingStep(model, config(amp=amp, **changes), make_fabric("cpu", amp))
    assert isinstance(recorded_part(step), RecordedStep)
    if not recorded:
        step._gradients, step._update = step._differentiate, step._compute
    return step


def recorded_part(step: TrainingStep) -> Any:
    """All of it, or where the optimiser cannot be recorded both passes."""
    return step._update if isinstance(step._update, RecordedStep) else step._gradients


def recordings(step: TrainingStep) -> int:
    return sum(shape.recording is not None for shape in recorded_part(step)._shapes.values())


def both_ways(make: Callable[[], nn.Module], train: Callable[[TrainingStep], Any], **changes: Any) -> TrainingStep:
    """Train as it is written, and recorded: the same losses, weights, buffers and gradients. The second step."""
    found = []
    for recorded in (False, True):
        torch.manual_seed(0)
        step = training(make(), recorded, **changes)
        torch.manual_seed(2)
        outcome = train(step)
        grads = {name: p.grad for name, p in step.model.named_parameters()}
        found.append((outcome, copy.deepcopy(step.model.state_dict()), grads))
    (losses, state, grads), (recorded_losses, recorded_state, recorded_grads) = found
    assert losses == recorded_losses
    for name, tensor in state.items():
        assert torch.equal(tensor, recorded_state[name]), name
    for name, grad in grads.items():
        other = recorded_grads[name]
        assert (grad is None) == (other is None), name
        if grad is not None and other is not None:
            assert torch.equal(grad, other), name
            assert grad.stride() == other.stride(), name
            assert grad.dtype == other.dtype, name
    return step


def steps(batches: list[tuple[Tensor, Tensor]]) -> Callable[[TrainingStep], list[tuple[float, int]]]:
    return lambda step: [(loss.item(), int(hits.item())) for loss, hits in (step(x, y) for x, y in batches)]
