"""Plots of runs as PNG bytes: a paper's figure, the curves of one run, a confusion matrix.

Each function returns the bytes; the caller writes them. Equal input gives equal bytes (with one version of matplotlib).
Accuracies are top-1 in percent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from sepnet.report._canvas import COLOURS, GREY, INK, LINES, MARKERS, SMALL, drawing, new_figure, png, safe
from sepnet.report._markdown import counted
from sepnet.report.record import RunRecord

__all__ = ["MAX_CLASSES", "Curve", "confusion_matrix", "curve_of", "paper_figure", "run_confusion", "run_curves", "training_curves"]

MAX_CLASSES = 40
FEW_POINTS = 13  # of a curve that is drawn with its points
# settings that change training images only, by their names in a configuration; each is off when 0, None or "off"
AUGMENTATIONS = (
    *("hflip", "shift", "cutout", "rotate", "shear", "scale", "elastic", "brightness", "contrast", "saturation"),
    *("mixup", "cutmix"),
)


@dataclass(frozen=True)
class Curve:
    """Accuracy against iterations (or epochs) of one network over its seeds: mean, and the limits of the band about it.

    Raises:
        ValueError: no points, or sequences of different lengths.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.mean), len(self.low), len(self.high)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"a curve needs as many means and limits as points, and at least one; got {sorted(lengths)}")


def curve_of(label: str, runs: Sequence[RunRecord], *, column: str = "eval_accuracy", epochs: bool = False) -> Curve:
    """Mean, least and greatest accuracy of the runs at the iterations that all of them evaluated.

    Args:
        column: of the history; "train_accuracy" is the mean over the training steps since the point before.
        epochs: against epochs instead of iterations.

    Raises:
        ValueError: no runs, or no such iteration.
    """
    against = "epoch" if epochs else "iteration"
    histories = [{float(r[against] or 0): r[column] for r in run.history if _number(r, column)} for run in runs]
    if not histories or not (common := sorted(set.intersection(*(set(h) for h in histories)))):
        raise ValueError(f"{label}: there is no iteration that all {len(runs)} runs evaluated")
    points = [[float(h[i] or 0) for h in histories] for i in common]
    return Curve(label, common, [statistics.fmean(p) for p in points], [min(p) for p in points], [max(p) for p in points])


# --- a paper's figure -------------------------------------------------------------------------------------------------


def paper_figure(
    title: str,
    panels: Mapping[str, Sequence[Curve]],
    published: Mapping[str, float],
    *,
    subtitle: str = "",
    x_label: str = "iterations",
    y_label: str = "test accuracy (%)",
) -> bytes:
    """Accuracy against iterations or epochs, one panel a recipe, on one scale.

    A network has one colour, line style and marker in all panels. The hollow markers in the strip at the right of each panel are
    the accuracies that the paper printed.

    Args:
        panels: recipe -> its curves, in the order from left to right.
        published: label -> the paper's accuracy; a network may be absent.
        subtitle: what the reader must know (data, seeds, what the band is, a reduced budget).

    Raises:
        ValueError: no curve at all.
    """
    curves = [curve for panel in panels.values() for curve in panel]
    if not curves:
        raise ValueError("there are no curves to draw")
    labels = list(dict.fromkeys([*published, *(c.label for c in curves)]))
    limits = _accuracy_limits(curves, published)
    end = max(c.x[-1] for c in curves)
    strip = 0.03 * end * (len(labels) + 0.5) if published else 0.0
    ticks = [t for t in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0, end) if t <= end]
    columns = min(len(labels), 5)
    with drawing():
        figure = new_figure(10.667, 5.0, title, subtitle, bottom=0.12 + 0.24 * math.ceil(len(labels) / columns))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, panel) in zip(grid, panels.items(), strict=True):
            axes.set_title(safe(name), loc="left")
            for curve in panel:
                _draw_curve(axes, curve, labels.index(curve.label))
            if published:
                _draw_published(axes, published, labels, end, strip)
            axes.set(xlabel=x_label, ylim=limits, xlim=(0, end + strip), xticks=ticks)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if end > 10 else "{x:,g}"))
        grid[0].set_ylabel(y_label)
        figure.legend(
            handles=[_legend_handle(i, bool(published)) for i in range(len(labels))],
            labels=[safe(label) for label in labels],
            loc="lower center",
            ncols=columns,
            handlelength=2.6,
            columnspacing=2.0,
        )
        return png(figure)


def _draw_curve(axes: Axes, curve: Curve, index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    if any(high > low for low, high in zip(curve.low, curve.high, strict=True)):
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    dot = "o" if len(curve.x) < FEW_POINTS else ""  # a line through one point is none
    axes.plot(
        curve.x, curve.mean, color=colour, linestyle=LINES[index % len(LINES)], solid_capstyle="round", marker=dot, markersize=4
    )


def _draw_published(axes: Axes, published: Mapping[str, float], labels: Sequence[str], end: float, strip: float) -> None:
    """Hollow markers in a strip of that width beyond the last iteration, a column for each network: near values never overlap."""
    axes.axvspan(end, end + strip, color="#f3f3f3", linewidth=0, zorder=0)
    for label, value in published.items():
        index = labels.index(label)
        axes.plot(
            end + strip * (index + 0.75) / (len(labels) + 0.5),
            value,
            marker=MARKERS[index % len(MARKERS)],
            markerfacecolor="white",
            markeredgecolor=COLOURS[index % len(COLOURS)],
            markeredgewidth=1.6,
            markersize=6.5,
            linestyle="none",
            zorder=5,
        )
    axes.annotate(
        "paper", (end + strip / 2, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", size=SMALL, color=GREY
    )


def _legend_handle(index: int, marked: bool) -> Line2D:
    return Line2D(
        [],
        [],
        color=COLOURS[index % len(COLOURS)],
        linestyle=LINES[index % len(LINES)],
        marker=MARKERS[index % len(MARKERS)] if marked else "",
        markerfacecolor="white",
        markeredgewidth=1.4,
        markersize=6,
    )


def _accuracy_limits(curves: Sequence[Curve], published: Mapping[str, float]) -> tuple[float, float]:
    """Limits in which the curves can be told apart: the steep beginning (the lowest twentieth of all points) may fall below.

    No curve's end and no published figure does.
    """
    points = sorted(value for curve in curves for value in curve.mean)
    ends = [curve.low[-1] for curve in curves]
    low = min(points[len(points) // 20], *ends, *published.values())
    high = max(max(max(curve.high) for curve in curves), *published.values(), low + 1)
    margin = 0.04 * (high - low)
    return max(0.0, low - margin), min(100.0, high + margin) if high < 100 else 100 + margin


# --- one run ----------------------------------------------------------------------------------------------------------


def run_curves(record: RunRecord) -> bytes:
    """curves.png of one run: ``training_curves`` with what its reader must know.

    Raises:
        ValueError: the record has no history.
    """
    return training_curves(
        record.history,
        f"{record.model} on {record.data_title}",
        evaluated_on=record.evaluated_on,
        subtitle=_training_only(record.config),
        kept=record.kept_best,
    )


def _training_only(config: Mapping[str, Any]) -> str:
    """What keeps training from being compared with the evaluated split; empty when nothing does."""
    smoothing = config.get("smoothing") or 0
    augmented = any(config.get(name) not in (None, 0, "off") for name in AUGMENTATIONS)
    parts = ([f"label smoothing {smoothing:g}"] if smoothing else []) + (["augmentation"] if augmented else [])
    sentences = [f"The training loss includes {' and '.join(parts)}; that of the evaluated images does not."] if parts else []
    if config.get("mixup") or config.get("cutmix"):
        sentences.append("A mixed image counts as right if the class with the larger share is named.")
    return " ".join(sentences)


def training_curves(
    history: Sequence[Mapping[str, Any]],
    title: str,
    *,
    evaluated_on: str | None = "val",
    subtitle: str = "",
    kept: int | None = None,
) -> bytes:
    """Loss at the left, accuracy at the right, against iterations: training, and the split evaluated along the way.

    Args:
        history: rows as in ``RunRecord.history``; an absent or empty column is left out.
        evaluated_on: split of the ``eval_`` columns.
        subtitle: what the reader must know.
        kept: iteration whose weights were kept, marked by a thin vertical line; None: no mark.

    Raises:
        ValueError: the history has no row.
    """
    if not history:
        raise ValueError("there is no history to draw: the run made no evaluation")
    evaluated = {"val": "validation", "test": "test"}.get(evaluated_on or "", "evaluation")
    names = {"train": "training (mean since the previous point)", "eval": evaluated}
    with drawing():
        figure = new_figure(10.667, 4.4, title, subtitle, bottom=0.34)
        handles: dict[str, Line2D] = {}
        for axes, quantity, y_label in zip(
            figure.subplots(1, 2), ("loss", "accuracy"), ("cross-entropy loss", "accuracy (%)"), strict=True
        ):
            lines = {names[split]: line for split in names if (line := _draw_run(axes, history, split, quantity))}
            handles |= lines
            _scale_run(axes, quantity)
            if kept is not None:
                name = f"weights kept: iteration {kept:,}"
                handles[name] = axes.axvline(kept, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            axes.set(xlabel="iterations", ylabel=y_label)
        figure.legend(
            handles=list(handles.values()), labels=list(handles), loc="lower center", ncols=3, handlelength=2.6, columnspacing=2.4
        )
        return png(figure)


def _draw_run(axes: Axes, history: Sequence[Mapping[str, Any]], split: str, quantity: str) -> Line2D | None:
    """One line of one panel; None when the history does not hold it."""
    key, index = f"{split}_{quantity}", int(split == "eval")
    rows = [row for row in history if _number(row, key)]
    if not rows:
        return None
    return axes.plot(
        [row["iteration"] for row in rows],
        [row[key] for row in rows],
        color=COLOURS[index],
        linestyle=LINES[index],
        marker=MARKERS[index] if len(rows) < FEW_POINTS else "",  # a run of one point must show too
        markersize=4,
    )[0]


def _scale_run(axes: Axes, quantity: str) -> None:
    """Limits and tick labels; a single evaluation, about which matplotlib would close in, stands on a scale from zero."""
    (first, last), (low, high) = axes.dataLim.intervalx, axes.dataLim.intervaly
    single = first == last and math.isfinite(high)
    axes.set_xlim(0, 1.25 * last if single else None)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if single:
        axes.set_ylim(0, 104 if quantity == "accuracy" else max(1.25 * high, 1e-3))
    elif quantity == "loss" and 0 < 20 * low < high < math.inf:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default would need math text
        axes.yaxis.set_minor_formatter(NullFormatter())


def _number(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    return isinstance(value, int | float) and math.isfinite(value)


# --- confusion matrix -------------------------------------------------------------------------------------------------


def run_confusion(record: RunRecord) -> bytes | None:
    """confusion.png of one run, on its test split, else on validation; None without a matrix or above ``MAX_CLASSES`` classes."""
    split = "test" if "test" in record.result else "val"
    scores = record.result.get(split, {})
    classes = [str(row["class"]) for row in scores.get("per_class", ())]
    if "confusion" not in scores or not 1 <= len(classes) <= MAX_CLASSES:
        return None
    name = "validation" if split == "val" else split
    title = f"Confusion matrix: {name} split, {counted(int(scores['images']), 'image')}"
    return confusion_matrix(scores["confusion"], classes, title=title, data_title=record.data_title)


def confusion_matrix(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], *, title: str = "Confusion matrix", data_title: str = ""
) -> bytes:
    """Rows are the true classes, columns what the network said; the shade is the share of the row, in percent.

    Up to 15 classes each field also shows its number of images. Class names may hold anything; what the font lacks is shown as a
    question mark behind the number of the class. ``data_title`` begins the line below the title.

    Raises:
        ValueError: not a square matrix with a name for each class, or more than ``MAX_CLASSES`` classes.
    """
    n = len(classes)
    if not 1 <= n <= MAX_CLASSES:
        raise ValueError(f"a confusion matrix is drawn for 1 to {MAX_CLASSES} classes, not {n}")
    if len(confusion) != n or any(len(row) != n for row in confusion):
        raise ValueError(f"{n} classes need a confusion matrix of {n} x {n}")
    shares = [[100 * value / sum(row) if sum(row) else 0.0 for value in row] for row in confusion]
    names = _class_names(classes)
    side = max(4.2, min(10.5, 0.23 * n if n > 15 else 0.52 * n))
    margin = 0.085 * max(len(name) for name in names)
    with drawing():
        legend = "Rows: true class. Columns: class given by the network."
        subtitle = f"{data_title}. {legend}" if data_title else legend
        figure = new_figure(side + margin + 1.7, side + margin + 1.3, title, subtitle)
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xticks(range(n), names, rotation=90 if margin > 0.9 * side / n else 0)
        axes.set_yticks(range(n), names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[["top", "right"]].set_visible(True)
        axes.tick_params(length=2.5)
        if n <= 15:
            _write_counts(axes, confusion, shares)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
        bar.set_label("% of the true class")
        bar.outline.set_visible(False)
        return png(figure)


def _write_counts(axes: Axes, confusion: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> None:
    for i, row in enumerate(confusion):
        for j, value in enumerate(row):
            if value:
                axes.text(j, i, str(value), ha="center", va="center", size=SMALL, color="white" if shares[i][j] > 55 else INK)


def _class_names(classes: Iterable[str]) -> list[str]:
    names = []
    for index, name in enumerate(classes):
        shown = safe(name, 24)
        names.append(f"{index}: {shown}" if shown.count("?") > str(name).count("?") else shown)
    return names
