"""The tables under docs/results are what their records say: drawn anew, without any data, they are the same to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli_runner import error_of, invoke

RESULTS = Path(__file__).parent.parent / "docs/results"
PUBLISHED = [
    ("wang2018", "table", 3, 1.0),
    ("wang2018", "table", 4, 1.0),
    ("sun2020", "table", 1, 1.0),
    ("sun2020", "table", 1, 0.05),
    ("sun2020", "table", 1, 0.2),
    ("sun2020", "table", 2, 1.0),
    ("sun2020", "table", 2, 0.05),
    ("tseng2020", "figure", 1, 1.0),
    ("tseng2020", "figure", 1, 0.25),
    ("tseng2020", "figure", 2, 1.0),
    ("tseng2020", "figure", 2, 0.25),
    ("luo", "table", 2, 0.05),
    ("luo", "table", 2, 0.5),
    ("luo", "table", 2, 1.0),
]


def _redraw(paper: str, kind: str, number: int, budget: float, output: Path) -> None:
    invoke(
        "reproduce",
        paper,
        f"--{kind}",
        number,
        "--budget",
        budget,
        "--report-only",
        "--data-dir",
        output / "none",
        "--output",
        output,
    )


@pytest.mark.parametrize(("paper", "kind", "number", "budget"), PUBLISHED, ids=[f"{p}-{k}-{n}-{b:g}" for p, k, n, b in PUBLISHED])
def test_what_is_published_follows_from_its_records(paper: str, kind: str, number: int, budget: float, tmp_path: Path) -> None:
    output = tmp_path / paper
    shutil.copytree(RESULTS / paper / "records", output / "records")
    _redraw(paper, kind, number, budget, output)
    name = f"{kind}-{number}{'' if budget == 1 else f'-budget{budget:g}'}"
    for ending in (".md", ".json"):
        assert (output / (name + ending)).read_text() == (RESULTS / paper / (name + ending)).read_text()


def test_records_of_other_images_are_not_mixed_without_the_data(tmp_path: Path) -> None:
    records = tmp_path / "records"
    shutil.copytree(RESULTS / "wang2018/records", records)
    other = records / "mnist-multiscale_add-plain-seed0.json"
    other.write_text(other.read_text().replace('"data_fingerprint": "', '"data_fingerprint": "0'))
    words = ("reproduce", "wang2018", "--table", 3, "--report-only", "--data-dir", tmp_path / "none", "--output", tmp_path)
    assert "its records can only be told from others with the data at hand" in error_of(*words)


def test_records_that_do_not_count_are_named(tmp_path: Path) -> None:
    records = tmp_path / "records"
    shutil.copytree(RESULTS / "wang2018/records", records)
    changed, cut = records / "cifar10-mobilenet_units-plain-seed1.json", records / "cifar10-mobilenet_units-plain-seed2.json"
    record = json.loads(changed.read_text())
    record["config"] |= {"lr": 0.5, "smoothing": 0.3}
    changed.write_text(json.dumps(record))
    cut.write_text(cut.read_text()[:300])
    words = ("reproduce", "wang2018", "--table", 4, "--report-only", "--data-dir", tmp_path / "none", "--output", tmp_path)
    lines = [line for line in invoke(*words, "--json").stdout.splitlines() if "record" in line and "mobilenet" in line]
    assert any("plain: made with other settings (lr, smoothing)" in line for line in lines)
    assert any("plain: damaged" in line for line in lines)


def test_nothing_recorded_is_not_a_matter_of_data(tmp_path: Path) -> None:
    words = ("reproduce", "wang2018", "--table", 4, "--report-only", "--data-dir", tmp_path / "none", "--output", tmp_path / "out")
    message = error_of(*words)
    assert "no run of it is recorded" in message
    assert "data get" not in message
