"""The expected length of a run, with every timed call taken as one second: then it is a count of calls.

Every split here is one batch of an evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sepnet.api import _estimate, seconds_per_run
from sepnet.data import Dataset, load_dataset
from sepnet.recipes import TrainConfig


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """1,295 training, 143 validation and 359 test images."""

    def once(action: Any, _device: object, _warm_up: int) -> float:
        action(0)
        return 1.0

    monkeypatch.setattr(_estimate, "_median_seconds", once)
    return load_dataset("digits")


def seconds(dataset: Dataset, **settings: Any) -> float:
    options = {"units": [4, 8]}
    base: dict[str, Any] = {"data": "digits", "model": "multiscale_concat", "model_options": options, "amp": "off"}
    config = TrainConfig.model_validate(base | {"iterations": 40, "batch_size": 100} | settings)
    return seconds_per_run(config, dataset, "cpu")


def test_steps_scores_along_the_way_and_the_final_one(digits: Dataset) -> None:
    assert seconds(digits, eval_every=15) == 40 + 3 + 1
    assert seconds(digits, epochs=2, iterations=None) == 24 + 2 + 1


def test_without_validation_the_test_images_are_watched(digits: Dataset) -> None:
    assert seconds(replace(digits, val=None), eval_every=10) == 40 + 4
    assert seconds(replace(digits, val=None, test=None), eval_every=10) == 40


def test_mirror_images_are_scored_as_well(digits: Dataset) -> None:
    assert seconds(digits, eval_every=10, tta=True) == 40 + 2 * (4 + 1)


def test_the_average_of_the_weights_is_part_of_a_step(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = []
    monkeypatch.setattr("sepnet.engine.ema.Ema.update", lambda *_: updates.append(1))
    seconds(digits)
    assert not updates
    seconds(digits, ema=0.9)
    assert updates


def test_slow_steps_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    now = iter(range(0, 1000, 5))
    calls = []
    monkeypatch.setattr(_estimate.time, "perf_counter", lambda: float(next(now)))
    assert _estimate._median_seconds(calls.append, torch.device("cpu"), 2) == 5.0
    assert len(calls) == 2


@pytest.mark.parametrize(("second", "whole"), [(0.5, None), (1.5, 12.0)])
def test_a_large_step_is_judged_by_an_eighth(monkeypatch: pytest.MonkeyPatch, second: float, whole: float | None) -> None:
    """Of its second call, after what only a first call costs."""
    now = iter([0.0, 2.0, 3.0, 3.0 + second])
    calls: list[int] = []
    monkeypatch.setattr(_estimate.time, "perf_counter", lambda: next(now))
    assert _estimate._by_a_part(calls.append) == whole
    assert calls == [0, 1]


def test_an_eighth_of_the_batch_is_an_eighth(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("sepnet.engine.TrainingStep.__call__", lambda _, x, y: sizes.append(len(x)))
    monkeypatch.setattr(_estimate, "LONG", 0.0)
    monkeypatch.setattr(_estimate.time, "perf_counter", iter([0.0, 1.0, 0.0, 2.0]).__next__)
    assert seconds(replace(digits, val=None, test=None), batch_size=64) == 40 * 2 * 8
    assert sizes == [8, 8]
