"""A run that was left at any iteration, and taken up by a new process's objects, ends as one that was not.

Killed processes, and runs on real data, are in test_crash.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sepnet.engine import FitConfig, FitResult, Interrupted, load_checkpoint
from sepnet.errors import CheckpointError
from training_tools import CrashError, Crashing, Synthetic, config, parts_in, run, same_weights, tiny_net

EVERYTHING: dict[str, Any] = {
    "iterations": 17,
    "eval_every": 5,
    "checkpoint_seconds": 0,
    "sched": "cosine",
    "smoothing": 0.1,
    "weight_decay": 0.01,
    "clip_grad": 1.0,
    "tta": True,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"ema": 0.9, "keep": "best"},
    {"opt": "adam", "lr": 0.01},
    {"opt": "adamw", "lr": 0.01, "ema": 0.5},
    {"keep": "best", "patience": 2},
    {"opt": "muon", "ema": 0.9},
]

variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def whole(settings: FitConfig, folder: Path | None = None) -> FitResult:
    return run(settings, model=tiny_net(dropout=0.3), evaluation=Synthetic(seed=1), run_dir=folder)


def again(settings: FitConfig, folder: Path, **options: Any) -> FitResult:
    torch.manual_seed(99)  # whatever a new process happens to have drawn
    model = tiny_net(seed=123, dropout=0.3)  # the weights come from the checkpoint
    return run(settings, model=model, evaluation=Synthetic(seed=1), run_dir=folder, resume=True, **options)


def without_seconds(result: FitResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


def assert_same(one: FitResult, other: FitResult) -> None:
    assert same_weights(one.model.state_dict(), other.model.state_dict())
    assert without_seconds(one) == without_seconds(other)
    assert (one.iterations, one.best_iteration, one.last) == (other.iterations, other.best_iteration, other.last)


@variants
@pytest.mark.parametrize("left_at", [1, 4, 5, 6, 16])
def test_left_in_the_middle(tmp_path: Path, variant: dict[str, Any], left_at: int) -> None:
    settings = config(**EVERYTHING, **variant)
    expected = whole(settings)
    left_at = min(left_at, expected.iterations - 1)
    with pytest.raises(CrashError):
        run(settings, model=tiny_net(dropout=0.3), loader=Crashing(left_at), evaluation=Synthetic(seed=1), run_dir=tmp_path)
    assert load_checkpoint(tmp_path / "last.pt")["state"]["iteration"] == left_at
    assert_same(again(settings, tmp_path), expected)


@variants
def test_left_at_every_iteration(tmp_path: Path, variant: dict[str, Any]) -> None:
    settings = config(**EVERYTHING, **variant)
    expected = whole(settings)
    with pytest.raises(CrashError):
        run(settings, model=tiny_net(dropout=0.3), loader=Crashing(1), evaluation=Synthetic(seed=1), run_dir=tmp_path)
    for at in range(2, expected.iterations):
        with pytest.raises(CrashError):
            again(settings, tmp_path, loader=Crashing(at))
    assert_same(again(settings, tmp_path), expected)


@variants
def test_resumed_after_its_end(tmp_path: Path, variant: dict[str, Any]) -> None:
    """Also a run that stopped early does not go on."""
    settings = config(**EVERYTHING, **variant)
    expected = whole(settings, tmp_path)
    assert_same(again(settings, tmp_path, loader=Crashing(expected.iterations)), expected)


def test_the_checkpoint_may_be_older_than_the_history(tmp_path: Path) -> None:
    settings = config(**EVERYTHING)
    expected = whole(settings)
    with pytest.raises(CrashError):
        run(settings, model=tiny_net(dropout=0.3), loader=Crashing(3), evaluation=Synthetic(seed=1), run_dir=tmp_path)
    old = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(CrashError):
        again(settings, tmp_path, loader=Crashing(13))
    (tmp_path / "last.pt").write_bytes(old)
    (tmp_path / ".last.pt.xyz.part").write_bytes(b"half")
    assert_same(again(settings, tmp_path), expected)
    assert parts_in(tmp_path) == []
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + len(expected.history)


def test_no_checkpoint_before_it_is_due(tmp_path: Path) -> None:
    settings = config(checkpoint_seconds=3600)
    with pytest.raises(CrashError):
        run(settings, loader=Crashing(11), run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "metrics.csv"]  # two epochs are over
    run(settings, run_dir=tmp_path)
    assert load_checkpoint(tmp_path / "last.pt")["state"]["iteration"] == 12


def test_flipped_scores_may_begin_with_the_resumption(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        run(config(**EVERYTHING | {"tta": False}), loader=Crashing(7), evaluation=Synthetic(seed=1), run_dir=tmp_path)
    result = run(config(**EVERYTHING), evaluation=Synthetic(seed=1), run_dir=tmp_path, resume=True)
    assert [("eval_accuracy_tta" in row) for row in result.history] == [False, True, True, True]
    assert "eval_accuracy_tta" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


class Signalled(Synthetic):
    """Sends this process ``number`` while step ``at`` is being made."""

    def __init__(self, at: int, number: signal.Signals) -> None:
        super().__init__()
        self._at, self._number = at, number

    def batch(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        if iteration == self._at:
            os.kill(os.getpid(), self._number)
        return super().batch(iteration)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave(tmp_path: Path, number: signal.Signals) -> None:
    settings = config(**EVERYTHING | {"checkpoint_seconds": 3600, "ema": 0.9})
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="interrupted at iteration 8") as caught:
        run(
            settings,
            model=tiny_net(dropout=0.3),
            loader=Signalled(7, number),
            evaluation=Synthetic(seed=1),
            run_dir=tmp_path,
        )
    assert (caught.value.iteration, caught.value.checkpoint) == (8, tmp_path / "last.pt")
    assert signal.getsignal(number) == before
    assert_same(again(settings, tmp_path), whole(settings))


class SignalledSplit(Synthetic):
    """A split that is long to score: somebody loses patience."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__iter__()


@pytest.mark.parametrize("every", [12, 5])
def test_a_signal_during_an_evaluation_is_not_forgotten(tmp_path: Path, every: int) -> None:
    """Neither during the last one, after which no step follows that would look."""
    settings = config(**EVERYTHING | {"checkpoint_seconds": 3600, "eval_every": every, "patience": None})
    with pytest.raises(Interrupted, match=f"interrupted at iteration {every}"):
        run(settings, model=tiny_net(dropout=0.3), evaluation=SignalledSplit(seed=1), run_dir=tmp_path)
    assert_same(again(settings, tmp_path), whole(settings))


def test_a_signal_in_the_last_step_leaves_if_all_is_saved(tmp_path: Path) -> None:
    assert run(config(), loader=Signalled(11, signal.SIGINT)).iterations == 12
    with pytest.raises(Interrupted, match="interrupted at iteration 12"):
        run(config(), loader=Signalled(11, signal.SIGINT), run_dir=tmp_path)
    assert run(config(), run_dir=tmp_path, resume=True).iterations == 12


def test_a_signal_without_a_folder() -> None:
    with pytest.raises(Interrupted) as caught:
        run(config(), loader=Signalled(3, signal.SIGINT))
    assert (caught.value.iteration, caught.value.checkpoint) == (4, None)


class Impatient(Synthetic):
    def batch(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return super().batch(iteration)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        run(config(), loader=Impatient(), run_dir=tmp_path)
    assert not isinstance(caught.value, Interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_a_checkpoint_does_not_know_had_its_default(tmp_path: Path) -> None:
    run(config(), run_dir=tmp_path, identity={"size": "6"})
    known = {"size": "6", "cutmix": "0.0"}
    assert again(config(), tmp_path, identity=known, earlier={"cutmix": "0.0"}).iterations == 12
    with pytest.raises(CheckpointError, match=r"was trained with cutmix 0.0, this run has cutmix 1.0"):
        again(config(), tmp_path, identity=known | {"cutmix": "1.0"}, earlier={"cutmix": "0.0"})
