"""What is seen of a run while it goes on: rows, a bar of 80 columns, lines in a log."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from sepnet.cli import _progress
from sepnet.cli._output import Output, duration, human_count
from sepnet.cli._progress import BarReporter, LineReporter, counting, transferring
from sepnet.data import datasets


def row(iteration: int) -> dict[str, float | int | None]:
    figures = {"train_loss": 1.5, "train_accuracy": 50.0, "eval_loss": 2.0, "eval_accuracy": 40.0}
    return {"iteration": iteration, "epoch": iteration / 10, "lr": 0.1, **figures, "seconds": iteration * 1.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_rows_that_follow_too_fast_are_left_out_but_never_the_last(clock: list[float]) -> None:
    seen = io.StringIO()
    reporter = LineReporter(Console(file=seen, width=200), "val", 1)
    reporter.start(0, 50)
    for iteration in (10, 20, 30, 40, 50):
        reporter.evaluated(row(iteration))
        clock[0] += 0.4
    reporter.end()
    header, *rows = seen.getvalue().splitlines()
    assert header.split()[:2] == ["iteration", "epoch"]
    assert "val %" in header
    assert [int(line.split()[0]) for line in rows] == [10, 40, 50]


def test_a_long_run_prints_fewer_rows(clock: list[float]) -> None:
    seen = io.StringIO()
    reporter = LineReporter(Console(file=seen, width=200), "val", 1)
    for second in range(10_000):
        clock[0] = 100.0 + second
        reporter.evaluated(row(second))
    reporter.end()
    rows = seen.getvalue().splitlines()[1:]
    assert len(rows) < 400
    assert int(rows[-1].split()[0].replace(",", "")) == 9_999


def test_a_log_hears_of_the_run_every_few_seconds(clock: list[float]) -> None:
    seen = io.StringIO()
    reporter = LineReporter(Console(file=seen, width=200), None, 2)
    reporter.start(0, 1000)
    for second in range(1, 13):
        clock[0] = 100.0 + second
        reporter.step(second * 10, 1.25, 62.5, 640.0)
    reporter.end()
    lines = seen.getvalue().splitlines()
    assert lines[0] == "iteration 50/1,000: loss 1.2500, accuracy 62.50 %, 1,280 images/s, 95 s left"  # of two processes
    assert len(lines) == 2


def test_a_log_hears_of_a_long_evaluation_and_at_once_that_the_run_stops_behind_it(clock: list[float]) -> None:
    seen = io.StringIO()
    reporter = LineReporter(Console(file=seen, width=200), "val", 2)
    reporter.start(0, 50)
    for second in range(1, 8):
        clock[0] = 100.0 + second
        reporter.scoring(second * 1000, stopping=second >= 6)
    assert seen.getvalue().splitlines() == [
        "evaluating: 10,000 images done",  # of two processes
        "evaluating: 12,000 images done, then the run stops",
    ]


def test_the_bar_tells_of_an_evaluation_even_after_training() -> None:
    seen = io.StringIO()
    screen = Console(file=seen, width=80, force_terminal=True, color_system=None)
    reporter = BarReporter(screen, "val", 1)
    reporter.start(0, 10)
    reporter.end()
    reporter.scoring(3000)
    reporter.bar.refresh()
    reporter.end()
    assert "evaluating: 3,000 images done" in seen.getvalue()
    assert reporter.bar.live.is_started is False


def test_the_bar_fits_80_columns() -> None:
    seen = io.StringIO()
    screen = Console(file=seen, width=80, force_terminal=True, color_system=None)
    reporter = BarReporter(screen, "val", 1)
    reporter.start(0, 42_000)
    reporter.step(41_999, 12.345, 100.0, 12_345.6)
    reporter.bar.refresh()
    reporter.evaluated(row(42_000))
    reporter.end()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.getvalue())
    assert "41999/42000 loss 12.345  100.0 %  12,346 images/s" in plain
    assert max(len(line) for line in re.split(r"[\r\n]", plain)) <= 80


def test_nothing_is_seen_of_a_count_that_never_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("reading images"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_slow_count_reports_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with counting("reading images") as progress:
        for done in range(1, 9):
            clock[0] += 1
            progress(done * 1000, 8000)
    assert capsys.readouterr().err == "reading images: 5,000 of 8,000\n"


def test_a_transfer_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with transferring() as progress:
        for done in range(1, 9):
            clock[0] += 1
            progress("a.zip", done * 1_000_000, 8_000_000)
        progress("unpacking a.zip", 5_500_000, 8_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "a.zip: 1.0 MB of 8.0 MB",
        "a.zip: 6.0 MB of 8.0 MB",
        "unpacking a.zip: 5.5 MB of 8.0 MB",
    ]


def test_a_transfer_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(_progress, "console", lambda stderr: Console(file=seen, width=80, force_terminal=True, color_system=None))
    with transferring():
        pass
    assert seen.getvalue() == "", "nothing to show"
    longest = max(
        (f"unpacking {d.name}" for name in datasets for d in getattr(datasets.get(name).source, "downloads", ())), key=len
    )
    with transferring() as progress:
        for done in (1_000_000_000, 2_640_397_119):
            progress(longest, done, 2_640_397_119)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.getvalue())
    assert longest in plain
    assert "2.6/2.6 GB" in plain
    assert max(len(line) for line in re.split(r"[\r\n]", plain)) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (7.2, "8 s"),
        (99, "99 s"),
        (200, "3 min 20 s"),
        (240, "4 min"),
        (1790, "30 min"),
        (7500, "2 h 5 min"),
        (360_001, "4 days"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (3_614_444, "3.61 M"), (999_999, "1 M"), (2.5e9, "2.5 G")]
)
def test_human_count(number: float, text: str) -> None:
    assert human_count(number) == text


def test_text_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.facts([("data", "[red]class[/red] :smile:")])
    out.table(["[b]"], [["[/]"]])
    printed = capsys.readouterr().out
    for part in ("[red]class[/red] :smile:", "[b]", "[/]"):
        assert part in printed


def on_terminal(width: int, optional: tuple[int, ...] = ()) -> list[str]:
    seen = io.StringIO()
    out = Output()
    out.console = Console(file=seen, width=width, force_terminal=True, color_system=None)
    rows = [["multiscale_concat", "886,459", "two depthwise scales"], ["short", "1", "x"]]
    out.table(["model", "parameters", "what"], rows, right=(1,), optional=optional)
    return seen.getvalue().splitlines()


def test_a_narrow_terminal_drops_a_column_before_it_breaks_a_name() -> None:
    assert on_terminal(80)[2].split() == ["multiscale_concat", "886,459", "two", "depthwise", "scales"]
    narrow = on_terminal(31, optional=(2, 1))
    assert [line.split() for line in (narrow[0], narrow[2])] == [["model", "parameters"], ["multiscale_concat", "886,459"]]
    assert max(map(len, narrow)) <= 31
    assert on_terminal(20, optional=(2, 1))[2].split() == ["multiscale_concat"]


def test_a_table_that_cannot_fit_runs_over_the_edge() -> None:
    lines = on_terminal(20)
    assert lines[2].split()[:2] == ["multiscale_concat", "886,459"]
    assert lines[0].split() == ["model", "parameters", "what"]


def test_json_has_no_nan_and_keeps_undecodable_names(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).json({"loss": float("nan"), "path": "a\udcff", "rows": [float("inf"), 1.5]})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"loss": None, "path": "a\udcff", "rows": [None, 1.5]}
