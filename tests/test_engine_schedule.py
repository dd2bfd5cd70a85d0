"""The learning rate as a function of the iteration, and the settings of a run."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sepnet.engine import FitConfig, lr_factor

SCHEDULES = ("constant", "step", "triangular", "cosine")

sched = st.sampled_from(SCHEDULES)
warmup = st.floats(0, 0.95)
total = st.integers(1, 400)
final = st.floats(0, 1)
any_schedule = given(sched=sched, warmup=warmup, total=total, final=final)


def factors(total: int, **options: object) -> list[float]:
    config = FitConfig.model_validate(options)
    return [lr_factor(config, i, total) for i in range(total)]


@any_schedule
def test_stays_between_0_and_1_and_every_step_counts(sched: str, warmup: float, total: int, final: float) -> None:
    values = factors(total, sched=sched, warmup=warmup, final_lr=final)
    assert all(0 < f <= 1 for f in values)


@any_schedule
def test_warm_up_is_a_straight_line_to_1(sched: str, warmup: float, total: int, final: float) -> None:
    assume(sched != "step")
    values = factors(total, sched=sched, warmup=warmup, final_lr=final)
    warm = round(warmup * total)
    assert values[:warm] == pytest.approx([(i + 1) / warm for i in range(warm)])
    assert max(values) == 1.0


@any_schedule
def test_never_rises_after_the_warm_up(sched: str, warmup: float, total: int, final: float) -> None:
    values = factors(total, sched=sched, warmup=warmup, final_lr=final)[round(warmup * total) :]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))


@given(sched=sched, warmup=st.one_of(st.just(0.0), st.floats(0.1, 0.9)), total=st.integers(200, 400), times=st.integers(2, 9))
def test_scales_with_the_budget(sched: str, warmup: float, total: int, times: int) -> None:
    """A run of k times the length has the same rate at the same fraction, up to one step of the shorter run."""
    drops = (0.5, 0.75)
    short = factors(total, sched=sched, warmup=warmup, step_at=drops)
    long = factors(total * times, sched=sched, warmup=warmup, step_at=drops)
    steepest = max(1 / max(1.0, warmup * total), math.pi / 2 / ((1 - warmup) * total))
    for i, factor in enumerate(short):
        near_a_drop = sched == "step" and any(abs(i / total - at) <= 1 / total for at in drops)
        near_the_peak = abs(i - warmup * total) <= 1
        if not near_a_drop and not (sched == "step" and near_the_peak):
            assert factor == pytest.approx(long[i * times], abs=2 * steepest)


def test_the_four_shapes() -> None:
    assert factors(4, sched="constant", warmup=0) == [1, 1, 1, 1]
    assert factors(4, sched="triangular", warmup=0) == [1, 0.75, 0.5, 0.25]
    assert factors(4, sched="triangular", warmup=0.5) == [0.5, 1, 1, 0.5]
    assert factors(4, sched="triangular", warmup=0, final_lr=0.5) == [1, 0.875, 0.75, 0.625]
    assert factors(4, sched="cosine", warmup=0) == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])
    assert factors(8, sched="step", warmup=0, step_at=(0.25, 0.5), step_gamma=0.1) == pytest.approx(
        [1] * 2 + [0.1] * 2 + [0.01] * 4
    )


@settings(max_examples=30)
@given(
    epochs=st.one_of(st.none(), st.integers(1, 50)),
    iterations=st.one_of(st.none(), st.integers(1, 5000)),
    batches=st.integers(1, 99),
)
def test_length_of_a_run(epochs: int | None, iterations: int | None, batches: int) -> None:
    expected = iterations if iterations is not None else (epochs or 10) * batches
    assert FitConfig(epochs=epochs, iterations=iterations).total_iterations(batches) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", 1),
        ("batch_size", 0),
        ("epochs", 0),
        ("iterations", -1),
        ("warmup", 1),
        ("ema", 1),
        ("ema", 0),
        ("smoothing", 1),
        ("clip_grad", 0),
        ("patience", 0),
        ("eval_every", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("step_at", (0.75, 0.5)),
        ("step_at", (0.5, 1.0)),
        ("opt", "lion"),
        ("sched", "linear"),
        ("keep", "first"),
        ("amp", "fp16"),
        ("checkpoint_seconds", -1),
        ("learning_rate", 0.1),
    ],
)
def test_refused_settings(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        FitConfig.model_validate({field: value})


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FitConfig().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("written", "meant"), [(False, "off"), (True, "bf16"), ("auto", "auto")])
def test_amp_as_yaml_reads_it(written: object, meant: str) -> None:
    assert FitConfig.model_validate({"amp": written}).amp == meant
