"""Plots, from small synthetic records: their bytes, and what they say."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

import sepnet
from report_records import record
from sepnet.report import (
    MAX_CLASSES,
    Curve,
    confusion_matrix,
    curve_of,
    paper_figure,
    plots,
    run_confusion,
    run_curves,
    training_curves,
)


def size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(content))
    image.load()
    assert set(image.info) <= {"dpi"}  # no date, no version
    return image.size


def test_curve_is_mean_and_range_over_the_iterations_all_runs_share():
    runs = [record(70.0), record(80.0, seed=1), record(60.0, seed=2, iterations=100)]
    assert curve_of("net", runs[:2]) == Curve("net", [100, 200], [37.5, 75.0], [35.0, 70.0], [40.0, 80.0])
    assert curve_of("net", runs).x == [100]
    with pytest.raises(ValueError, match="no iteration"):
        curve_of("net", [record(history=[{"iteration": 100, "train_loss": 1.0}])])
    with pytest.raises(ValueError, match="as many means"):
        Curve("net", [1, 2], [1.0], [1.0], [1.0])


def test_paper_figure_is_deterministic_small_and_leaves_the_callers_style(monkeypatch):
    runs = [record(a, seed=s, iterations=1000) for s, a in enumerate((70.0, 72.0))]
    panels = {name: [curve_of(label, runs) for label in ("_A $x$", "B")] for name in ("plain", "modern")}
    published = {"_A $x$": 71.0, "B": 71.1, "only in the paper": 60.0}
    first = paper_figure("Figure 6", panels, published, subtitle="mean of 2 seeds")
    assert size(first) == (1600, 750)
    assert len(first) < 200_000
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9)
    assert paper_figure("Figure 6", panels, published, subtitle="mean of 2 seeds") == first
    assert matplotlib.rcParams["lines.linewidth"] == 9
    assert paper_figure("Figure 6", panels, published | {"B": 65.0}, subtitle="mean of 2 seeds") != first
    assert size(paper_figure("One panel", {"plain": panels["plain"]}, {})) == (1600, 750)
    with pytest.raises(ValueError, match="no curves"):
        paper_figure("Figure 6", {"plain": []}, published)


@pytest.mark.parametrize(
    "history", [record().history, [{"iteration": 5, "train_loss": 1.0, "train_accuracy": 9.0, "eval_loss": None}]]
)
def test_training_curves(history):
    assert size(training_curves(history, "net on $data$")) == (1600, 660)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures drawn in a test, as matplotlib objects."""
    drawn: list[Figure] = []
    encode = plots.png
    monkeypatch.setattr(plots, "png", lambda figure: (drawn.append(figure), encode(figure))[1])
    return drawn


def words(figure: Figure) -> str:
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " ".join(" ".join([*(text.get_text() for text in figure.texts), *legends]).split())


def test_curves_of_a_run_say_what_cannot_be_compared_and_mark_the_weights_kept(figures: list[Figure]):
    run_curves(record(best_iteration=100, config={"keep": "best", "smoothing": 0.1, "hflip": "random"}))
    run_curves(record(best_iteration=100, config={"smoothing": 0.0, "hflip": "off", "shift": 0}))
    chosen, last = figures
    assert "net on CIFAR-10 (JPEG copy)" in words(chosen)
    assert "training loss includes label smoothing 0.1 and augmentation" in words(chosen)
    assert "weights kept: iteration 100" in words(chosen)
    assert [line.get_xdata()[0] for axes in chosen.axes for line in axes.lines if len(set(line.get_xdata())) == 1] == [100, 100]
    assert "includes" not in words(last)
    assert "kept" not in words(last)


def test_a_single_evaluation_stands_on_scales_from_zero(figures: list[Figure]):
    run_curves(record(iterations=100))
    loss, accuracy = figures[0].axes
    assert loss.get_xlim() == accuracy.get_xlim() == (0, 125)
    assert loss.get_ylim() == (0, 2.5)  # the greater loss is 2
    assert accuracy.get_ylim() == (0, 104)


@pytest.mark.parametrize(("points", "shown"), [(1, True), (plots.FEW_POINTS - 1, True), (plots.FEW_POINTS, False)])
def test_a_curve_of_few_points_shows_them(points: int, shown: bool, figures: list[Figure]):
    """A line through one point is none: without its marker nothing would be drawn."""
    x, values = list(range(1, points + 1)), [40.0 + i for i in range(points)]
    columns = [f"{split}_{quantity}" for split in ("train", "eval") for quantity in ("loss", "accuracy")]
    paper_figure("Figure 6", {"plain": [Curve("net", x, values, values, values)]}, {})
    training_curves([{"iteration": i} | dict.fromkeys(columns, value) for i, value in zip(x, values, strict=True)], "net")
    lines = [line for figure in figures for axes in figure.axes for line in axes.lines]
    assert [len(line.get_xdata()) for line in lines] == (1 + len(columns)) * [points]
    assert all((line.get_marker() not in ("", "None") and line.get_markersize() > 0) is shown for line in lines)


def test_confusion_matrix_of_a_run_says_of_what(figures: list[Figure]):
    scores = {"accuracy": 50.0, "images": 4, "confusion": [[1, 1], [1, 1]], "per_class": [{"class": "a"}, {"class": "b"}]}
    run_confusion(record(result={"val": scores}))
    assert "validation split, 4 images CIFAR-10 (JPEG copy)." in words(figures[0])
    assert run_confusion(record()) is None


def test_matplotlib_without_a_folder_for_its_cache_is_quiet(tmp_path):
    (tmp_path / "file").touch()
    source = str(Path(sepnet.__file__).parents[1])
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "file" / "config"), "PYTHONPATH": source}
    code = "import logging, sepnet.report; print(logging.getLogger('matplotlib').level)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_training_curves_need_a_history():
    with pytest.raises(ValueError, match="no history"):
        training_curves([], "net")


def test_confusion_matrix_takes_any_class_name():
    names = ["_$x$", r"\frac{1}", "猫🐈", "a\nb\x00", "\udcff", "x" * 300, "", "^{"]
    matrix = [[5 if i == j else 1 for j in range(8)] for i in range(7)] + [[0] * 8]
    first = confusion_matrix(matrix, names)
    assert min(size(first)) > 500
    assert confusion_matrix(matrix, names) == first
    assert confusion_matrix(matrix, ["other", *names[1:]]) != first


def test_confusion_matrix_refuses_what_cannot_be_read():
    n = MAX_CLASSES + 1
    with pytest.raises(ValueError, match="1 to 40 classes, not 41"):
        confusion_matrix([[1] * n] * n, ["c"] * n)
    with pytest.raises(ValueError, match="2 x 2"):
        confusion_matrix([[1, 2]], ["a", "b"])
    assert len(confusion_matrix([[1] * MAX_CLASSES] * MAX_CLASSES, [f"class {i}" for i in range(MAX_CLASSES)])) < 200_000
