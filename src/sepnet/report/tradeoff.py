"""The figure of a comparison: accuracy against parameters, MACs and latency, with the Pareto front of each, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from sepnet.report._canvas import COLOURS, GREY, INK, MARKERS, SMALL, drawing, new_figure, png, safe
from sepnet.report._markdown import human_count
from sepnet.report.comparison import COSTS, ComparedNetwork, fronts

__all__ = ["tradeoff_figure"]

AXES = {"params_trainable": "trainable parameters", "macs": "MACs an image", "latency_ms": "latency at batch {batch} (ms)"}
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(k / 10 for k in range(10, 100)))
MARKER_PIXELS = 9.0
LONGEST_LABEL = 34


def tradeoff_figure(networks: Sequence[ComparedNetwork], title: str, subtitle: str = "") -> bytes:
    """Mean validation accuracy against each cost, on logarithmic scales; equal input gives equal bytes.

    Filled markers and the stepped line are the Pareto front: the best accuracy that a cost buys. Bars are the standard deviation
    of the seeds. A network has one colour and one marker in all panels, and its name beside it.

    Raises:
        ValueError: no networks.
    """
    if not networks:
        raise ValueError("there are no networks to draw")
    chosen = fronts(networks)
    with drawing():
        figure = new_figure(14.4, 5.6, title, subtitle)
        panels = figure.subplots(1, len(COSTS), sharey=True)
        for axes, cost in zip(panels, COSTS, strict=True):
            _draw_panel(axes, networks, cost, chosen[cost])
        panels[0].set_ylabel("validation accuracy (%)")
        panels[0].set_ylim(*_accuracy_limits(networks))
        figure.draw_without_rendering()  # settles the layout: labels are placed in pixels
        canvas: Any = FigureCanvasAgg(figure)
        renderer = canvas.get_renderer()
        for axes, cost in zip(panels, COSTS, strict=True):
            _place_labels(figure, axes, renderer, networks, cost)
        return png(figure)


def _draw_panel(axes: Axes, networks: Sequence[ComparedNetwork], cost: str, front: Sequence[bool]) -> None:
    costs = [float(getattr(network, cost)) for network in networks]
    means = [network.validation.mean for network in networks]
    low, high = _cost_limits(costs)
    best = sorted({(costs[i], means[i]) for i in range(len(networks)) if front[i]})
    xs, ys = [x for x, _ in best], [y for _, y in best]
    axes.step([*xs, high], [*ys, ys[-1]], where="post", color=GREY, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
    for i, network in enumerate(networks):
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(
            costs[i],
            means[i],
            yerr=network.validation.sd,
            color=colour,
            capsize=3,
            elinewidth=1.2,
            marker=MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
            markersize=7,
            markerfacecolor=colour if front[i] else "white",
            markeredgewidth=1.5,
            zorder=4,
        )
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_text(value, cost)))
    axes.set_xlabel(AXES[cost].format(batch=networks[0].single.batch_size))
    axes.set_title(f"against {COSTS[cost]}", loc="left")


def _cost_limits(costs: Sequence[float]) -> tuple[float, float]:
    """Limits with room for markers and names, at least a factor of two apart, so that a small difference looks small."""
    low, high = min(costs), max(costs)
    margin = max(0.12 * math.log(high / low), 0.5 * math.log(2 * low / high) if high < 2 * low else 0.0, 0.1)
    return low * math.exp(-margin), high * math.exp(margin)


def _accuracy_limits(networks: Sequence[ComparedNetwork]) -> tuple[float, float]:
    """Limits with room for the bars and for names above and below, never beyond 0 and a little over 100."""
    spans = [(n.validation.mean, n.validation.sd or 0.0) for n in networks]
    low, high = min(m - s for m, s in spans), max(m + s for m, s in spans)
    margin = max(0.15 * (high - low), 0.5)
    return max(0.0, low - margin), min(102.0, high + margin)


def _ticks(low: float, high: float) -> list[float]:
    """Round values between the limits, three to eight of them, as few digits as that takes."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in STEPS:
        found = [t for decade, step in product(decades, steps) if low <= (t := step * 10.0**decade) <= high]
        if len(found) >= 3:
            break
    return found[:: math.ceil(len(found) / 8)] if found else []


def _tick_text(value: float, cost: str) -> str:
    if cost == "latency_ms":
        return f"{value:,.4g}"
    number, _, unit = human_count(round(value)).partition(" ")
    plain = f"{float(number.replace(',', '')):g}"
    return f"{plain} {unit}".strip()


# --- names beside the points -------------------------------------------------------------------------------------------


def _place_labels(figure: Figure, axes: Axes, renderer: RendererAgg, networks: Sequence[ComparedNetwork], cost: str) -> None:
    """Write each name at the first place near its marker that is free of markers, other names and the panel's edge.

    A name that is not next to its marker gets a thin line to it. Where no place is free, the one with the least overlap is taken.
    """
    to_pixels = axes.transData.transform
    points = [tuple(to_pixels((float(getattr(n, cost)), n.validation.mean))) for n in networks]
    half = MARKER_PIXELS
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in points]
    frame = axes.get_window_extent(renderer)
    per_point = figure.dpi / 72
    for (x, y), network in zip(points, networks, strict=True):
        text = axes.annotate(
            safe(network.label, LONGEST_LABEL), (x, y), xycoords="figure pixels", size=SMALL, color=INK, ha="center", va="center"
        )
        text.set_in_layout(False)
        size = text.get_window_extent(renderer)
        places = list(_places(x, y, size.width, size.height))
        dx, dy, box = min(places, key=lambda place: _overlap(place[2], taken, frame))
        text.set_position((x + dx, y + dy))
        taken.append(box)
        if math.hypot(max(0.0, abs(dx) - size.width / 2), max(0.0, abs(dy) - size.height / 2)) > 2 * half:
            line = axes.annotate(
                "",
                (x, y),
                (x + dx, y + dy),
                xycoords="figure pixels",
                textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5 * per_point / 2, "shrinkB": 4},
                zorder=1,
            )
            line.set_in_layout(False)


def _places(x: float, y: float, width: float, height: float) -> Iterator[tuple[float, float, Bbox]]:
    """Places for a text of that size about a point in pixels, nearest first: offset of its centre, and its box."""
    for distance in (0.4, 1.0, 2.0, 3.2, 4.6, 6.0):
        gap = MARKER_PIXELS + distance * height
        beside, above = width / 2 + gap, height / 2 + gap
        slant = (height / 2 + gap) if distance > 0.4 else height
        for dx, dy in (
            (beside, 0.0),
            (-beside, 0.0),
            (0.0, above),
            (0.0, -above),
            (beside, slant),
            (beside, -slant),
            (-beside, slant),
            (-beside, -slant),
        ):
            yield dx, dy, Bbox.from_bounds(x + dx - width / 2, y + dy - height / 2, width, height)


def _overlap(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Pixels of ``box`` that are covered already or outside the panel, the latter counted tenfold."""
    covered = sum(_area(shared) for other in taken if (shared := Bbox.intersection(box, other)) is not None)
    inside = Bbox.intersection(box, frame)
    outside = _area(box) - (_area(inside) if inside is not None else 0.0)
    return float(covered + 10 * outside)


def _area(box: Bbox) -> float:
    return float(box.width * box.height)
