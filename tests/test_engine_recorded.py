"""A training step as a recorded list of operations: it trains as the step it was recorded from, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recorded_tools import STEPS, both_ways, images, recordings, steps, training
from sepnet.engine import TrainingStep
from sepnet.engine._rates import rates_as_tensors
from sepnet.engine._recorded import RECORD_AFTER, RecordedStep
from sepnet.engine._recorder import Recorder
from sepnet.kernels import use
from sepnet.models import create_model, list_models
from training_tools import CLASSES, CrashError, Crashing, Synthetic, config, run, tiny_net

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


def known_layers(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(128, CLASSES))


def test_a_run_with_a_recorded_step_is_the_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through fit, with evaluation and average."""
    first, second = known_layers(), known_layers()
    one = run(config(ema=0.9), model=first, evaluation=Synthetic(seed=1))
    monkeypatch.setattr(RecordedStep, "__call__", lambda self, x, y: self._compute(x, y))
    other = run(config(ema=0.9), model=second, evaluation=Synthetic(seed=1))
    assert [row["train_loss"] for row in one.history] == [row["train_loss"] for row in other.history]
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert one.iterations == other.iterations


@pytest.mark.parametrize("changes", [{"opt": "sgd"}, {"opt": "adamw"}, {"opt": "muon"}])
@pytest.mark.parametrize("left_at", [2, 7])
def test_a_run_that_ended_in_a_recorded_step_goes_on_to_the_same_bits(
    left_at: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    settings = config(ema=0.9, checkpoint_seconds=0, **changes)
    whole, second = known_layers(), known_layers(seed=1)  # whose weights come from the checkpoint
    run(settings, model=whole, evaluation=Synthetic(seed=1), run_dir=tmp_path / "whole")
    with pytest.raises(CrashError):
        run(settings, model=known_layers(), loader=Crashing(left_at), evaluation=Synthetic(seed=1), run_dir=tmp_path / "run")
    run(settings, model=second, evaluation=Synthetic(seed=1), run_dir=tmp_path / "run", resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_groups_have_rates_that_are_tensors_only_while_a_step_is_recorded() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=0.25, fused=True)
    rates = [torch.tensor(0.5)]
    with rates_as_tensors(optimizer, rates):
        assert optimizer.param_groups[0]["lr"] is rates[0]
        assert optimizer.param_groups[0]["capturable"] is False  # PyTorch refuses it on a CPU
    assert optimizer.param_groups[0]["lr"] == 0.25
