"""A recorded training step is not called where it would do something else than the step as it is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from recorded_tools import STEPS, both_ways, images, recordings, steps, training
from sepnet.engine import TrainingStep
from sepnet.engine._recorded import RECORD_AFTER
from sepnet.models import create_model


def frozen(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)


def moved(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data.clone()


def slower(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.5


def normalised_by_averages(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()


def one_more_layer(model: nn.Module) -> None:
    model.head.classifier = nn.Sequential(nn.Dropout(0.5), model.head.classifier)  # type: ignore[union-attr, arg-type]


def a_head_without_optimizer(model: nn.Module) -> None:
    """Whose gradients nobody clears: they add up."""
    torch.manual_seed(7)
    model.head.classifier = nn.Linear(model.head.classifier.in_features, 5)  # type: ignore[union-attr, arg-type]


def another_buffer(model: nn.Module) -> None:
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean = torch.zeros_like(norm.running_mean)  # type: ignore[arg-type]


def gradients_watched(model: nn.Module) -> None:
    next(model.parameters()).register_hook(lambda grad: 2 * grad)


def layers_watched(model: nn.Module) -> None:
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).register_forward_hook(lambda m, i, o: 2 * o)


def another_forward(model: nn.Module) -> None:
    classifier = model.head.classifier  # type: ignore[union-attr]
    classifier.forward = lambda x: F.linear(x, 2 * classifier.weight)


def counter_replaced_by_its_equal(model: nn.Module) -> None:
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.num_batches_tracked = norm.num_batches_tracked.clone()  # type: ignore[union-attr]


def turned(model: nn.Module) -> None:
    """The same memory in another shape: the strides alone tell."""
    weight = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)).weight
    weight.data = weight.data.transpose(2, 3)


def annotated_by_arrays(model: nn.Module) -> None:
    model.note = np.zeros(3) if not hasattr(model, "note") else np.ones(3)


def of_another_kind(model: nn.Module) -> None:
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.__class__ = type("Doubled", (type(norm),), {"forward": lambda self, x: 2 * super(type(self), self).forward(x)})


def an_activation_of_ones_own(model: nn.Module) -> None:
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).activation = lambda x: x


def numbers_of_numpy(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum, m.eps = np.float64(0.2), np.float64(1e-4)


@pytest.mark.parametrize(
    ("change", "recorded"),
    [
        (counter_replaced_by_its_equal, 1),
        (turned, 1),
        (annotated_by_arrays, 1),
        (of_another_kind, 0),
        (an_activation_of_ones_own, 0),
        (numbers_of_numpy, 1),
        (frozen, 1),
        (moved, 1),
        (slower, 1),
        (normalised_by_averages, 1),
        (one_more_layer, 1),
        (a_head_without_optimizer, 0),
        (another_buffer, 1),
        (gradients_watched, 0),
        (layers_watched, 0),
        (another_forward, 0),
    ],
)
def test_a_model_that_is_changed_meanwhile(change: Callable[[nn.Module], None], recorded: int) -> None:
    batches = list(images(2 * STEPS, 4, 3, 16, 16))

    def train(step: TrainingStep) -> list[tuple[float, int]]:
        before = steps(batches[:STEPS])(step)
        change(step.model)
        return before + steps(batches[STEPS:])(step)

    step = both_ways(lambda: create_model("mobilenet_v1", width=0.25, num_classes=5, input_size=16), train)
    assert recordings(step) == recorded


def hook_around_the_network(step: TrainingStep) -> Callable[[], None]:
    return step.wrapped.register_forward_pre_hook(lambda module, args: (2 * args[0],)).remove


def hook_of_every_optimizer(step: TrainingStep) -> Callable[[], None]:
    def rescaled(optimizer: Any, args: Any, kwargs: Any) -> None:
        for p in step.model.parameters():
            p.grad.mul_(2)  # type: ignore[union-attr]

    return register_optimizer_step_pre_hook(rescaled).remove


def hook_of_this_optimizer(step: TrainingStep) -> Callable[[], None]:
    def rescaled(optimizer: Any, args: Any, kwargs: Any) -> None:
        for p in step.model.parameters():
            p.grad.mul_(2)  # type: ignore[union-attr]

    return step.optimizer.register_step_pre_hook(rescaled).remove


def other_settings(step: TrainingStep) -> Callable[[], None]:
    step.config = step.config.model_copy(update={"smoothing": 0.2, "clip_grad": 0.01})
    return lambda: None


def step_wrapped(step: TrainingStep) -> Callable[[], None]:
    inner = step.optimizer.step

    def twice(*args: Any) -> None:
        inner()
        inner()

    step.optimizer.step = twice  # type: ignore[method-assign]
    return lambda: None


def decayed(step: TrainingStep) -> Callable[[], None]:
    for group in step.optimizer.param_groups:
        group["weight_decay"] = 0.1
    return lambda: None


def reordered(step: TrainingStep) -> Callable[[], None]:
    step.optimizer.param_groups[0]["params"].reverse()
    return lambda: None


def state_read_back(step: TrainingStep) -> Callable[[], None]:
    state = copy.deepcopy(step.optimizer.state_dict())
    for values in state["state"].values():
        values["momentum_buffer"].mul_(3)
    step.optimizer.load_state_dict(state)
    return lambda: None


@pytest.mark.parametrize(
    ("change", "recorded"),
    [
        (hook_around_the_network, 0),
        (hook_of_every_optimizer, None),
        (hook_of_this_optimizer, 0),
        (other_settings, 1),
        (step_wrapped, 0),
        (decayed, 1),
        (reordered, 1),
        (state_read_back, 1),
    ],
)
def test_surroundings_that_are_changed_meanwhile(
    change: Callable[[TrainingStep], Callable[[], None]], recorded: int | None
) -> None:
    batches = list(images(2 * STEPS, 4, 3, 16, 16))

    def train(step: TrainingStep) -> list[tuple[float, int]]:
        before = steps(batches[:STEPS])(step)
        undo = change(step)
        after = steps(batches[STEPS:])(step)
        undo()
        return before + after

    step = both_ways(lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16), train)
    assert recorded is None or recordings(step) == recorded


class Marked(Tensor):
    """Stands for the images of another library, which are a kind of tensor."""


def test_batches_that_are_no_plain_tensors_are_not_for_the_recording() -> None:
    batches = list(images(STEPS + 2, 4, 3, 16, 16))

    def train(step: TrainingStep) -> list[Any]:
        found = steps(batches[:STEPS])(step)
        (x, y), (other, labels) = batches[STEPS:]
        found += steps([(x.as_subclass(Marked), y)])(step)
        trained = other.clone().requires_grad_()
        found += steps([(trained, labels)])(step)
        return [*found, trained.grad is not None and trained.grad.sum().item()]

    assert recordings(both_ways(lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16), train)) == 1
    step = training(create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16))
    steps(batches[:STEPS])(step)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        step(batches[0][0].to("meta"), batches[0][1])


def test_a_model_that_changes_at_every_step_is_not_recorded_for_ever() -> None:
    batches = list(images(18 * RECORD_AFTER, 4, 3, 16, 16))

    def train(step: TrainingStep) -> list[tuple[float, int]]:
        norm = next(m for m in step.model.modules() if isinstance(m, nn.BatchNorm2d))
        found = []
        for i, batch in enumerate(batches):
            if i % (RECORD_AFTER + 1) == 0:
                norm.momentum = 1 / (i + 2)
            found += steps([batch])(step)
        return found

    step = both_ways(lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16), train)
    assert recordings(step) == 0


def test_evaluation_between_steps_changes_nothing() -> None:
    batches = list(images(STEPS, 4, 3, 16, 16))

    def train(step: TrainingStep) -> list[tuple[float, int]]:
        found = []
        for batch in batches:
            found += steps([batch])(step)
            step.model.eval()
            with torch.no_grad():
                step.model(batch[0])
            step.model.train()
        return found

    assert recordings(both_ways(lambda: create_model("mobilenet_units", num_classes=5, input_size=16), train)) == 1


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.autograd.set_detect_anomaly,
        lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: 2 * t if t.is_floating_point() else t),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_others_have_set_is_respected(around: Callable[..., Any]) -> None:
    batches = list(images(2 * STEPS, 4, 3, 16, 16))

    def train(step: TrainingStep) -> list[tuple[float, int]]:
        before = steps(batches[:STEPS])(step)
        with around(True) if around is torch.autograd.set_detect_anomaly else around():
            return before + steps(batches[STEPS:])(step)

    both_ways(lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16), train)


def test_who_counts_operations_sees_them_all() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16)
    step, counts = training(model), []
    for batch in images(STEPS, 4, 3, 16, 16):
        with FlopCounterMode(display=False) as counter:
            step(*batch)
        counts.append(counter.get_total_flops())
    for batch in images(STEPS, 4, 3, 16, 16):
        step(*batch)
    with FlopCounterMode(display=False) as counter:
        step(*batch)
    assert {*counts} == {counter.get_total_flops()} != {0}
    assert recordings(step) == 1
