"""A training step as a recorded list of operations: it trains as the step it was recorded from, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sepnet.engine import TrainingStep, make_fabric
from sepnet.engine._rates import rates_as_tensors
from sepnet.engine._recorded import RECORD_AFTER, RecordedStep
from sepnet.engine._recorder import Program, Recorder, UnrecordableError
from sepnet.kernels import use
from sepnet.models import create_model, list_models
from training_tools import CLASSES, config, run, tiny_net

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


SMALL = ("mobilenet_units", "googlenet_units", "alexnet_units", "squeezenet", "dilated_separable", "separable_cnn")


def train_network(name: str, amp: str) -> None:
    batches = list(images(RECORD_AFTER + 3, 2, 3, 32, 32))
    step = both_ways(lambda: create_model(name, num_classes=5, input_size=32), steps(batches), amp=amp, lr=1e-3)
    assert recordings(step) == 1


@pytest.mark.parametrize("name", SMALL)
def test_networks_are_recorded_and_train_to_the_same_bits(name: str) -> None:
    train_network(name, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("name", list_models())
def test_every_network_is_recorded_and_trains_to_the_same_bits(name: str, amp: str) -> None:
    train_network(name, amp)


@pytest.mark.parametrize("name", ["multiscale_concat", "multiscale_add", "separable_cnn"])
def test_batches_whose_maps_the_kernels_join_and_pool(name: str) -> None:
    batches = list(images(STEPS, 16, 3, 32, 32))
    assert recordings(both_ways(lambda: create_model(name, num_classes=5, input_size=32), steps(batches), amp="bf16")) == 1


@pytest.mark.parametrize("mode", ["native", "reference"])
def test_both_paths_are_recorded_each_for_itself(mode: Any) -> None:
    batches = list(images(2 * STEPS, 4, 3, 16, 16))

    def train(step: TrainingStep) -> list[tuple[float, int]]:
        with use(mode):
            first = steps(batches[:STEPS])(step)
        with use("reference"):
            return first + steps(batches[STEPS:])(step)

    step = both_ways(lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16), train)
    assert recordings(step) == (2 if mode == "native" else 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"opt": "muon"},
        {"opt": "adamw", "lr": 1e-3},
        {"clip_grad": 0.1},
        {"smoothing": 0.1, "ema": 0.9},
        {"channels_last": False},
    ],
)
def test_settings(changes: dict[str, Any]) -> None:
    batches = list(images(STEPS, 4, 3, 16, 16))
    make = lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16)
    assert recordings(both_ways(make, steps(batches), **changes)) == 1


def test_labels_of_mixed_images_and_batches_of_several_shapes() -> None:
    sharp = list(images(STEPS, 8, 3, 16, 16))
    soft = [(x, 0.75 * F.one_hot(y, 5).float() + 0.25 * F.one_hot(y.roll(1), 5).float()) for x, y in sharp]
    small = [(x[:3], y[:3]) for x, y in sharp]
    mixed = [batch for three in zip(sharp, soft, small, strict=True) for batch in three]
    step = both_ways(lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16), steps(mixed))
    assert recordings(step) == 3


def test_more_shapes_than_are_recorded() -> None:
    batches = [batch for size in range(2, 10) for batch in images(STEPS, size, 2, 6, 6, classes=CLASSES)]
    assert recordings(both_ways(tiny_net, steps(batches))) == 0  # a class of the tests' own: of what it does nobody knows
    step = both_ways(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES)), steps(batches))
    assert recordings(step) == 4


def test_random_numbers_are_drawn_anew_and_in_the_same_order() -> None:
    batches = list(images(STEPS, 8, 2, 6, 6))
    layers = lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Dropout(0.5), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 5))
    assert recordings(both_ways(layers, steps(batches))) == 1


def test_a_step_is_not_recorded_where_values_decide() -> None:
    """The plain average over all batches reads its counter."""
    batches = list(images(2 * STEPS, 8, 2, 6, 6))
    layers = lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.Flatten(), nn.Linear(128, 5))
    assert recordings(both_ways(layers, steps(batches))) == 0


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


def test_recordings_that_hold_no_longer_keep_no_memory() -> None:
    import gc
    import weakref

    step = training(create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16))
    for size in (4, 3):
        steps(list(images(STEPS, size, 3, 16, 16)))(step)
    assert recordings(step) == 2
    old = [weakref.ref(values["momentum_buffer"]) for values in step.optimizer.state.values()]
    step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    steps(list(images(1, 4, 3, 16, 16)))(step)
    gc.collect()
    assert recordings(step) == 0
    assert all(ref() is None for ref in old)


def test_what_stops_a_recording_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from sepnet.kernels._calls import is_watched

    step = training(create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16))
    batches = list(images(2 * STEPS, 4, 3, 16, 16))
    steps(batches[:RECORD_AFTER])(step)
    monkeypatch.setattr(step.fabric, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(*batches[RECORD_AFTER])
    monkeypatch.undo()
    assert all(isinstance(group["lr"], float) for group in step.optimizer.param_groups)
    assert not is_watched()
    assert torch._C._len_torch_dispatch_stack() == 0
    steps(batches)(step)
    assert recordings(step) == 1


def interrupted(loss: Tensor) -> None:
    raise KeyboardInterrupt


def test_a_program_that_cannot_be_made_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, outputs: Any) -> Any:
        raise NotImplementedError("no such thing")

    monkeypatch.setattr(Recorder, "program", broken)
    batches = list(images(STEPS, 4, 3, 16, 16))
    with pytest.warns(UserWarning, match="the training step is not recorded: no such thing"):
        step = both_ways(lambda: create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16), steps(batches))
    assert recordings(step) == 0


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


def test_a_recorded_step_leaves_no_memory_behind() -> None:
    import gc
    import weakref

    model = create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16)
    step = training(model)
    for x, y in images(STEPS, 4, 3, 16, 16):
        step(x, y)
    assert recordings(step) == 1
    watched = [weakref.ref(p.grad) for p in model.parameters() if p.grad is not None]
    assert watched
    step(x, y)
    gc.collect()
    assert all(ref() is None for ref in watched)


def test_a_run_with_a_recorded_step_is_the_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through fit, with evaluation, average and a last batch of another size."""
    make = lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES))
    torch.manual_seed(0)
    first = make()
    second = copy.deepcopy(first)
    one = run(config(ema=0.9), model=first)
    monkeypatch.setattr(RecordedStep, "__call__", lambda self, x, y: self._compute(x, y))
    other = run(config(ema=0.9), model=second)
    assert [row["train_loss"] for row in one.history] == [row["train_loss"] for row in other.history]
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert one.iterations == other.iterations


def test_the_groups_have_rates_that_are_tensors_only_while_a_step_is_recorded() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=0.25, fused=True)
    rates = [torch.tensor(0.5)]
    with rates_as_tensors(optimizer, rates):
        assert optimizer.param_groups[0]["lr"] is rates[0]
        assert optimizer.param_groups[0]["capturable"] is False  # PyTorch refuses it on a CPU
    assert optimizer.param_groups[0]["lr"] == 0.25


# --- the recorder itself ----------------------------------------------------------------------------------------------------


def record(function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], inputs: tuple[Tensor, Tensor], known: list[Tensor]) -> Program:
    recorder = Recorder(inputs, known)
    return recorder.program(recorder.run(function))  # type: ignore[arg-type]


def test_tensors_from_nowhere_and_values_are_refused() -> None:
    x, y, outside = torch.ones(3), torch.arange(3), torch.ones(3)
    with pytest.raises(UnrecordableError, match=r"\(3,\) comes from nowhere"):
        record(lambda x, y: (x + outside,), (x, y), [])
    with pytest.raises(UnrecordableError, match="depends on values"):
        record(lambda x, y: (x * x.sum().item(),), (x, y), [])
    with pytest.raises(UnrecordableError, match="depends on values"):
        record(lambda x, y: (x[y > 1],), (x, y), [])
    with pytest.raises(UnrecordableError, match="taken for the same"):
        record(lambda x, y: (y, (z := (x * 2)[None]).detach().t_(), z), (x, y), [])
    program = record(lambda x, y: (x + outside, x * 2), (x, y), [outside])
    outside.fill_(5)
    assert [t.tolist() for t in program(torch.zeros(3), y)] == [[5, 5, 5], [0, 0, 0]]


def test_views_of_what_is_known_follow_its_values() -> None:
    weight = torch.zeros(2, 3)
    program = record(lambda x, y: (x @ weight.t()[1:], weight[0] + 0), (torch.ones(1, 2), torch.ones(1)), [weight])
    weight.copy_(torch.arange(6.0).reshape(2, 3))
    product, row = program(torch.ones(1, 2), torch.ones(1))
    assert product.tolist() == (torch.ones(1, 2) @ weight.t()[1:]).tolist()
    assert row.tolist() == [0, 1, 2]


def test_changes_in_place_are_part_of_it() -> None:
    counter = torch.zeros(())

    def count(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        counter.add_(1)
        z = x * 2
        z[0].mul_(10)
        return z, counter * 1

    program = record(count, (torch.ones(2), torch.ones(1)), [counter])
    assert counter.item() == 1
    z, seen = program(torch.tensor([1.0, 3.0]), torch.ones(1))
    assert (z.tolist(), seen.item(), counter.item()) == ([20, 6], 2, 2)
