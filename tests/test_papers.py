"""Every table and figure of every paper, from a few steps on small random images: no real data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cli_runner import error_of, invoke
from report_records import ENVIRONMENT
from sepnet.api import plan, reproduce, write_report
from sepnet.api._experiment import scaled
from sepnet.api._paper_report import _lines
from sepnet.data import RawData, Split, datasets
from sepnet.data._types import ReadOptions
from sepnet.measure import measure_latency
from sepnet.recipes import NOT_MEASURED, Paper, TrainConfig, papers
from sepnet.recipes._claims import best_of, faster, higher
from sepnet.report import MeanSd, SpeedRecord, hardware

CLASSES = tuple(f"class {i}" for i in range(10))
NAMES = [name for name in papers if name != "wang2018"]


def _images(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 10)


def _read(_: Path, __: ReadOptions) -> RawData:
    return RawData("random images", CLASSES, _images(60, 0), None, _images(20, 1))


def _small(configure: Callable[[str, str, str, int], TrainConfig]) -> Callable[[str, str, str, int], TrainConfig]:
    def small(data: str, row: str, recipe: str, seed: int) -> TrainConfig:
        config = configure(data, row, recipe, seed)
        # the networks of this paper with the least work, under the names of all rows
        options = {"rate": config.model_options["rate"]} if "rate" in config.model_options else {}
        model = "dilated_separable" if options else "mobilenet_units"
        options = options or {"units": [4, 8]}
        changes: dict[str, Any] = {"model": model, "model_options": options, "iterations": 4, "batch_size": 16, "eval_every": 2}
        return config.model_copy(update=changes | {"size": 16, "shift": min(config.shift, 2), "amp": "off"})

    return small


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Paper]:
    """Makes a paper small: its tables, figures and claims as they are, over tiny runs and tiny images."""
    real, entry = papers.get, datasets.get("cifar10")
    monkeypatch.setattr(datasets, "get", lambda name: entry if name == "digits" else replace(entry, read=_read))
    monkeypatch.setattr("sepnet.api._plan.seconds_per_run", lambda *_: 1.0)
    monkeypatch.setattr("sepnet.api._plan.expected_seconds", lambda *_: 1.0)
    monkeypatch.setattr(
        "sepnet.api._speed.measure_latency",
        lambda model, shape, **k: measure_latency(
            model, (3, 16, 16), batch_size=k["batch_size"] if k["batch_size"] < 3 else 2, least=2, most=2, warm_up=1
        ),
    )
    for picture in ("run_curves", "run_confusion"):  # of each run, which take longer than the run; other tests look at them
        monkeypatch.setattr(f"sepnet.api._run.{picture}", lambda _: b"")
    monkeypatch.chdir(tmp_path)

    def make(name: str) -> Paper:
        paper = real(name)
        tables = {
            n: replace(t, speed=replace(t.speed, input_shape=(3, 16, 16), batch_size=2) if t.speed else None)
            for n, t in paper.tables.items()
        }
        made = replace(paper, tables=tables, configure=_small(paper.configure))
        monkeypatch.setattr(papers, "get", lambda _: made)
        return made

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_table_and_figure_is_made(small: Callable[[str], Paper], name: str, tmp_path: Path) -> None:
    paper = small(name)
    agreed = plan(name, seeds=1, recipes=["plain"], device="cpu", output=tmp_path / "out")
    assert not agreed.blocked
    written = {path.name for path in reproduce(agreed, device="cpu")}
    for number, table in paper.tables.items():
        assert {f"table-{number}.md", f"table-{number}.json"} <= written
        text = (tmp_path / f"out/table-{number}.md").read_text()
        assert all(row.label in text for row in table.rows.values())
        assert NOT_MEASURED not in text
        if table.data:
            rows = json.loads((tmp_path / f"out/table-{number}.json").read_text())["rows"]
            assert all(row["recipes"]["plain"]["n"] == 1 for row in rows)
    for number, figure in paper.figures.items():
        assert f"figure-{number}.png" in written
        Image.open(tmp_path / f"out/figure-{number}.png").load()
        page = tmp_path / f"out/figure-{number}.md"
        if page.exists() and figure.show != "parameters":
            assert "**Hardware:**" in page.read_text()
    again = plan(name, seeds=1, recipes=["plain"], device="cpu", output=tmp_path / "out")
    assert (again.todo, again.speed_todo) == ((), ())


def test_records_of_another_budget_are_apart_and_marked(small: Callable[[str], Paper], tmp_path: Path) -> None:
    small("sun2020")
    whole, half = (plan("sun2020", tables=[2], seeds=1, recipes=["plain"], budget=b, device="cpu") for b in (1.0, 0.5))
    reproduce(half, device="cpu")
    assert {e.config.iterations for e in half.experiments} == {2}
    assert len(plan("sun2020", tables=[2], seeds=1, recipes=["plain"], device="cpu").todo) == len(whole.experiments)
    text = (tmp_path / "runs/sun2020/table-2-budget0.5.md").read_text()
    assert "(budget 0.5)" in text.splitlines()[0]
    assert "plain % (budget 0.5)" in text
    assert "Recipe plain (budget 0.5): " in text
    values = json.loads((tmp_path / "runs/sun2020/table-2-budget0.5.json").read_text())
    assert values["budget"]["share"] == 0.5
    assert all(row["recipes"]["plain"]["budget"] == 0.5 for row in values["rows"])
    write_report(whole)
    assert NOT_MEASURED in (tmp_path / "runs/sun2020/table-2.md").read_text()


def test_the_curves_of_tseng_are_scored_on_a_fifth_of_the_training_images(small: Callable[[str], Paper]) -> None:
    small("tseng2020")
    agreed = plan("tseng2020", figures=[2], seeds=1, recipes=["plain"], models=["standard_cnn"], device="cpu")
    assert [e.row for e in agreed.experiments] == ["standard_cnn", "standard_cnn-augmented"]
    written = reproduce(agreed, device="cpu")
    assert [path.name for path in written] == ["figure-2.png", "figure-2.md", "figure-2.json"]
    record = json.loads(next(Path("runs/tseng2020/records").glob("*augmented*")).read_text())
    assert (record["evaluated_on"], record["train_images"], record["result"]["val"]["images"]) == ("val", 50, 10)
    assert NOT_MEASURED in written[1].read_text()  # the separable network has not been run


def test_scaling_keeps_the_schedule_in_parts_of_the_run() -> None:
    config = papers.get("luo").configure("cifar10", "dsrnet50", "plain", 0)
    tenth = scaled(config, 0.1)
    assert tenth.iterations == 3_900
    assert tenth == config.model_copy(update={"iterations": 3_900})
    assert scaled(config, 1e-9).iterations == 1


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_a_budget_out_of_range(share: float) -> None:
    assert "--budget" in error_of("reproduce", "sun2020", "--budget", share)


def test_times_need_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepnet.api._plan.expected_seconds", lambda *_: 60.0)
    found = json.loads(
        invoke("reproduce", "luo", "--table", 2, "--dry-run", "--json", "--data-dir", tmp_path, "--device", "cpu").stdout
    )
    assert found["runs"] == []
    assert [row["done"] for row in found["speed"]] == [False] * 5
    assert found["expected_seconds"] == 300
    assert "only its times" in found["blocked"][0]


def test_a_table_with_records_is_not_drawn_anew_without_its_data(tmp_path: Path) -> None:
    """Whether the records are of these data cannot be told: what they gave would be wiped out by dashes."""
    record, table = tmp_path / "out/records/cifar10-dsrnet50-modern-seed0-budget0.05.json", tmp_path / "out/table-2-budget0.05.md"
    record.parent.mkdir(parents=True)
    for path in (record, table):
        path.write_text("as it was")
    options = ("--budget", 0.05, "--data-dir", tmp_path, "--output", tmp_path / "out", "--report-only", "--device", "cpu")
    assert "its records can only be told" in error_of("reproduce", "luo", "--table", 2, *options)
    assert "no run of --budget 0.05 is recorded" in error_of("reproduce", "luo", *options)
    assert table.read_text() == "as it was"
    invoke("reproduce", "luo", "--figure", 2, *options)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())][:2] == ["figure-2.json", "figure-2.md"]


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (MeanSd(92, 0.1, 3), MeanSd(90, 0.1, 3), "yes: "),
        (MeanSd(90, 0.1, 3), MeanSd(92, 0.1, 3), "no: "),
        (MeanSd(90, 2.0, 3), MeanSd(91, 2.0, 3), "not decided"),
        (MeanSd(92, None, 1), MeanSd(90, None, 1), "yes (single runs"),
        (None, MeanSd(90, None, 1), NOT_MEASURED),
    ],
    ids=["yes", "no", "within the spread", "single", "missing"],
)
def test_higher(first: MeanSd | None, second: MeanSd | None, said: str) -> None:
    assert higher(first, second, ("a", "b")).startswith(said)


def test_best_of_compares_with_the_nearest_rival() -> None:
    values = {"a": MeanSd(80, 0.1, 3), "b": MeanSd(85, 0.1, 3), "c": MeanSd(84, 0.1, 3)}
    assert best_of(values, "b").startswith("yes")
    assert "rate" not in best_of(values, "b")
    assert "the best other, c," in best_of(values, "b")
    assert best_of(values, "a").startswith("no")
    assert best_of(values | {"c": None}, "b") == f"{NOT_MEASURED} (c missing)"


def test_faster_is_answered_for_each_device() -> None:
    text = faster({"X": 0.1, "Y": 1.0}, {"X": 0.6, "Y": 2.0}, ("ours", "theirs"), 5)
    assert text.startswith("yes, 6.00 times")
    assert "no, 2.00 times (claimed: 5) on Y" in text
    assert faster({"X": 0.1}, {"Y": 2.0}, ("ours", "theirs"), 5) == NOT_MEASURED


def test_a_speed_names_what_it_was_measured_on() -> None:
    assert hardware(ENVIRONMENT) == "Some CPU, 1 thread, bf16"
    assert hardware(ENVIRONMENT.model_copy(update={"device": "Some GPU"})) == "Some GPU, bf16"
    found = measure_latency(torch.nn.Conv2d(3, 2, 1), (3, 4, 4), batch_size=2, least=3, most=3, warm_up=1)
    assert (found.n, found.warm_up) == (3, 1)
    assert 0 < found.p10_ms <= found.median_ms <= found.p90_ms
    assert found.ms_per_image == found.median_ms / 2
    record = SpeedRecord(command="c", finished="f", model="m", options={}, classes=2, environment=ENVIRONMENT, **found.to_dict())
    assert record.ms_per_image == found.ms_per_image
    with pytest.raises(ValueError, match="least"):
        measure_latency(torch.nn.Identity(), (3, 4, 4), least=1)


@pytest.mark.parametrize(
    ("counts", "wanted", "said"),
    [
        ({1}, 1, "1 seed"),
        ({1}, 3, "1 of 3 seeds"),
        ({3}, 3, "mean of 3 seeds, bands: their range"),
        ({1, 2}, 3, "mean of 1-2 of 3 seeds, bands: their range"),
    ],
)
def test_what_a_line_of_a_figure_is(counts: set[int], wanted: int, said: str) -> None:
    assert _lines(counts, wanted) == said
