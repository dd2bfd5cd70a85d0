"""The training loop against computations by hand."""

from __future__ import annotations

import csv
import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.engine import FitConfig, evaluate, load_checkpoint, lr_factor, make_fabric, parameter_groups, prefers_bf16
from sepnet.engine.ema import Ema
from sepnet.errors import ConfigError
from training_tools import CLASSES, FABRIC, Synthetic, TinyNet, config, run, same_weights, tiny_net


class Watched(Synthetic):
    """Notes the weights as they stand before each step."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self._model = model
        self.seen: list[dict[str, Tensor]] = []

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        self.seen.append({name: t.clone() for name, t in self._model.state_dict().items()})
        return super().batch(iteration)


def by_hand(settings: FitConfig, steps: int) -> TinyNet:
    """The same network trained with the formulas of the papers, written out."""
    model = tiny_net(norm=False)
    memory = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    for t in range(1, steps + 1):
        rate = settings.lr * lr_factor(settings, t - 1, steps)
        x, y = Synthetic().batch(t - 1)
        log_p = model(x).log_softmax(1)
        target = F.one_hot(y, CLASSES) * (1 - settings.smoothing) + settings.smoothing / CLASSES
        gradients = torch.autograd.grad(-(target * log_p).sum(1).mean(), list(model.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        with torch.no_grad():
            for p, g, (first, second) in zip(model.parameters(), gradients, memory, strict=True):
                if settings.clip_grad is not None:
                    g = g * min(1.0, settings.clip_grad / (norm.item() + 1e-6))
                decay = settings.weight_decay if p.ndim > 1 else 0.0
                p -= rate * update(settings, p, g, decay, first, second, t)
    return model


def update(s: FitConfig, p: Tensor, g: Tensor, decay: float, first: Tensor, second: Tensor, t: int) -> Tensor:
    if s.opt != "adamw":
        g = g + decay * p
    if s.opt == "sgd":
        first.mul_(s.momentum).add_(g)
        return g + s.momentum * first if s.nesterov else first
    first.mul_(s.momentum).add_((1 - s.momentum) * g)
    second.mul_(s.beta2).add_((1 - s.beta2) * g * g)
    step = (first / (1 - s.momentum**t)) / ((second / (1 - s.beta2**t)).sqrt() + 1e-8)
    return step + decay * p if s.opt == "adamw" else step


@pytest.mark.parametrize(
    "settings",
    [
        {"opt": "sgd", "momentum": 0.0},
        {"opt": "sgd", "nesterov": False},
        {"opt": "sgd", "nesterov": True, "weight_decay": 0.3},
        {"opt": "sgd", "smoothing": 0.2},
        {"opt": "sgd", "clip_grad": 0.05},
        {"opt": "sgd", "sched": "cosine", "warmup": 0.4},
        {"opt": "adam", "lr": 0.01, "weight_decay": 0.3},
        {"opt": "adamw", "lr": 0.01, "weight_decay": 0.3, "beta2": 0.9},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_steps_equal_the_formulas(settings: dict[str, Any]) -> None:
    chosen = config(**{"iterations": 6, "sched": "constant", **settings})
    trained = run(chosen, model=tiny_net(norm=False)).model.state_dict()
    for name, value in by_hand(chosen, 6).state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_clipping_bounds_the_step() -> None:
    model = tiny_net(norm=False)
    watched = Watched(model)
    run(config(iterations=2, opt="sgd", momentum=0, lr=1.0, sched="constant", clip_grad=0.01), model=model, loader=watched)
    before, after = watched.seen
    moved = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_is_for_matrices_and_kernels_only() -> None:
    model = tiny_net()
    decayed, others = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"conv.weight", "fc.weight"}
    assert {names[id(p)] for p in others["params"]} == {"conv.bias", "bn.weight", "bn.bias", "fc.bias"}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_alone() -> None:
    model = tiny_net()
    model.conv.weight.requires_grad_(False)
    before = model.conv.weight.clone()
    run(config(weight_decay=0.5), model=model)
    assert torch.equal(model.conv.weight, before)


def test_average_of_the_weights(tmp_path: Path) -> None:
    model = tiny_net()
    watched = Watched(model)
    result = run(config(ema=0.4, iterations=8), model=model, loader=watched, run_dir=tmp_path)
    last = load_checkpoint(tmp_path / "last.pt")
    states = [*watched.seen[1:], last["model"]]  # after each step
    expected = {name: t.clone().double() for name, t in states[0].items()}
    for n, state in enumerate(states[1:], start=1):
        decay = min(0.4, (1 + n) / (10 + n))
        for name, t in state.items():
            expected[name] = decay * expected[name] + (1 - decay) * t if t.is_floating_point() else t
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)
    assert int(result.model.bn.num_batches_tracked) == 8
    assert same_weights(last["ema"]["module"], result.model.state_dict())
    assert not same_weights(last["model"], result.model.state_dict())


def test_average_is_no_part_of_the_graph() -> None:
    model = tiny_net()
    average = Ema(model, 0.9)
    average.update(model)
    assert not any(p.requires_grad for p in average.module.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_history_has_a_row_every_k_and_one_at_the_end(tmp_path: Path) -> None:
    settings = config(iterations=11, eval_every=4, tta=True, sched="triangular", warmup=0.2)
    result = run(settings, evaluation=Synthetic(seed=1), run_dir=tmp_path)
    assert [row["iteration"] for row in result.history] == [4, 8, 11]
    assert [row["epoch"] for row in result.history] == [0.8, 1.6, 2.2]
    assert [row["lr"] for row in result.history] == [settings.lr * lr_factor(settings, i, 11) for i in (3, 7, 10)]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == [pytest.approx(row) for row in result.history]
    assert set(rows[0]) > {"train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "eval_accuracy_tta", "seconds"}


def test_a_row_is_the_mean_of_its_steps() -> None:
    model = tiny_net(norm=False)
    watched = Watched(model)
    result = run(config(iterations=3, eval_every=3), model=model, loader=watched)
    losses, hits = [], 0
    for i, weights in enumerate(watched.seen):
        before = tiny_net(norm=False)
        before.load_state_dict(weights)
        x, y = Synthetic().batch(i)
        losses.append(F.cross_entropy(before(x), y).item())
        hits += int((before(x).argmax(1) == y).sum())
    assert result.history[0]["train_loss"] == pytest.approx(sum(losses) / 3)
    assert result.history[0]["train_accuracy"] == pytest.approx(100 * hits / 48)


def test_an_epoch_is_the_default_between_evaluations() -> None:
    assert [row["iteration"] for row in run(config(iterations=None, epochs=3)).history] == [5, 10, 15]


def test_learns_and_ends_in_evaluation_mode() -> None:
    result = run(config(iterations=200, sched="triangular"), evaluation=Synthetic(seed=1, batches=20))
    assert result.last is not None
    assert result.last.accuracy > 90
    assert not result.model.training


class TurnsWrong(Synthetic):
    """From iteration ``turn`` on every label is another class: accuracy rises, then falls."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self._turn = turn

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        x, y = super().batch(iteration)
        return x, y if iteration < self._turn else (y + 1) % CLASSES


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("on_disk", [True, False])
def test_keep_best(tmp_path: Path, ema: float | None, on_disk: bool) -> None:
    settings = config(iterations=120, eval_every=10, sched="constant", ema=ema, keep="best")
    held_out = Synthetic(seed=1)
    result = run(settings, loader=TurnsWrong(60), evaluation=held_out, run_dir=tmp_path if on_disk else None)
    curve = {row["iteration"]: row["eval_accuracy"] for row in result.history}
    assert result.last is not None
    assert result.last.accuracy == max(curve.values()) > 60 > curve[120]
    best = [row for row in result.history if row["eval_accuracy"] == max(curve.values())]
    assert result.best_iteration == min(best, key=lambda row: row["eval_loss"])["iteration"]  # among equals the lowest loss
    assert evaluate(result.model, held_out, CLASSES, FABRIC) == result.last


def test_keep_last() -> None:
    result = run(config(iterations=120, eval_every=10, sched="constant"), loader=TurnsWrong(60), evaluation=Synthetic(seed=1))
    assert result.last is not None
    assert result.last.accuracy == result.history[-1]["eval_accuracy"] < 60


def test_patience_stops_the_run() -> None:
    settings = config(iterations=400, eval_every=10, sched="constant", patience=3, keep="best")
    result = run(settings, loader=TurnsWrong(60), evaluation=Synthetic(seed=1))
    curve = [row["eval_accuracy"] for row in result.history]
    assert result.iterations == result.history[-1]["iteration"] < 400
    assert result.best_iteration == result.iterations - 30
    assert max(curve[-3:]) <= curve[-4] == max(curve)


@pytest.mark.parametrize("settings", [{"patience": 1}, {"keep": "best"}])
def test_choosing_needs_a_split_to_choose_on(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need a split to evaluate on"):
        run(config(**settings))


def test_flipped_images_are_reported_apart() -> None:
    held_out = Synthetic(seed=1)
    plain = run(config(), evaluation=held_out).last
    both = run(config(tta=True), evaluation=held_out).last
    assert plain is not None
    assert both is not None
    assert plain.accuracy_tta is None
    assert both.accuracy_tta is not None
    assert (both.accuracy, both.loss) == (plain.accuracy, plain.loss)


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    one, other = (run(config(channels_last=flag, sched="constant")).model for flag in (True, False))
    assert one.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not one.conv.weight.is_contiguous()
    assert other.conv.weight.is_contiguous()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("amp", "expected"), [("bf16", torch.bfloat16), ("off", torch.float32)])
def test_precision(amp: str, expected: torch.dtype) -> None:
    model, seen = tiny_net(), []
    model.conv.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    settings = config(amp=amp, iterations=100, lr=0.1)
    result = run(settings, model=model, fabric=make_fabric("cpu", settings.amp), evaluation=Synthetic(seed=1, batches=20))
    assert set(seen) == {expected}  # in training and in evaluation
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result.last is not None
    assert result.last.accuracy > 80


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr("sepnet.engine.devices.prefers_bf16", lambda device: fast)
    with make_fabric("cpu", "auto").autocast():
        assert torch.is_autocast_enabled("cpu") == fast


def test_bf16_is_preferred_only_where_it_is_known_to_be_fast() -> None:
    assert isinstance(prefers_bf16(torch.device("cpu")), bool)
    assert prefers_bf16(torch.device("meta")) is False


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:x", "cuda:²", "", "mps:0", "cpu\nx"])
def test_devices_that_are_none(device: str) -> None:
    with pytest.raises(ConfigError, match=r"^--device .*choose") as caught:
        make_fabric(device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        make_fabric("cuda")


def test_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = map(float, itertools.count())
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(sys.modules["sepnet.engine.fit"], "time", clock)  # the package's own "fit" is the function

    class Listener:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def start(self, done: int, total: int) -> None:
            self.calls.append((done, total))

        def step(self, iteration: int, loss: float, accuracy: float, images_per_s: float) -> None:
            assert loss > 0
            assert 0 <= accuracy <= 100
            assert images_per_s > 0
            self.calls.append(iteration)

        def scoring(self, images: int, stopping: bool = False) -> None:
            self.calls.append((images, stopping))

        def evaluated(self, row: dict[str, Any]) -> None:
            self.calls.append(row)

        def end(self) -> None:
            self.calls.append("end")

    listener = Listener()
    result = run(config(iterations=4, eval_every=2), reporter=listener)
    assert listener.calls == [(0, 4), 1, 2, result.history[0], 3, 4, result.history[1], "end"]
    listener.calls.clear()
    result = run(config(iterations=1), reporter=listener, evaluation=Synthetic(seed=1, batches=2))
    assert listener.calls == [(0, 1), 1, (16, False), (32, False), result.history[0], "end"]
