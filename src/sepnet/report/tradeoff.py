"""The figure of a comparison: accuracy against parameters, MACs and latency, with the Pareto front of each, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox, IdentityTransform

from sepnet.report._canvas import COLOURS, GREY, INK, MARKERS, SMALL, drawing, new_figure, png, safe
from sepnet.report._markdown import human_count
from sepnet.report.comparison import COSTS, ComparedNetwork, fronts

__all__ = ["tradeoff_figure"]

AXES = {"params_trainable": "trainable parameters", "macs": "MACs an image", "latency_ms": "latency at batch {batch} (ms)"}
STEPS = ((1,), (1, 3), (1, 2, 5))
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
            _place_labels(figure, axes, renderer, networks, cost, chosen[cost])
        return png(figure)


def _draw_panel(axes: Axes, networks: Sequence[ComparedNetwork], cost: str, front: Sequence[bool]) -> None:
    costs = [float(getattr(network, cost)) for network in networks]
    means = [network.validation.mean for network in networks]
    low, high = _cost_limits(costs)
    steps = _steps(networks, cost, front, high)
    axes.plot(*zip(*steps, strict=True), color=GREY, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
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


def _steps(networks: Sequence[ComparedNetwork], cost: str, front: Sequence[bool], end: float) -> list[tuple[float, float]]:
    """Corners of the front as a stepped line, up to the cost ``end``."""
    best = sorted({(float(getattr(n, cost)), n.validation.mean) for n, on_front in zip(networks, front, strict=True) if on_front})
    corners = [best[0]]
    for x, y in best[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (end, corners[-1][1])]


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
    """Round values between the limits: 1, 10, 100 or finer where there are decades, evenly spaced ones where there is none."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in STEPS:
        found = [t for decade, step in product(decades, steps) if low <= (t := step * 10.0**decade) <= high]
        if len(found) >= 3:
            return found
    return [float(t) for t in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high]


def _tick_text(value: float, cost: str) -> str:
    if cost == "latency_ms":
        return f"{value:,.4g}"
    number, _, unit = human_count(round(value)).partition(" ")
    plain = f"{float(number.replace(',', '')):g}"
    return f"{plain} {unit}".strip()


# --- names beside the points -------------------------------------------------------------------------------------------


def _place_labels(
    figure: Figure, axes: Axes, renderer: Any, networks: Sequence[ComparedNetwork], cost: str, front: Sequence[bool]
) -> None:
    """Write each name at the first place near its marker that is free of markers, lines, other names and the panel's edge.

    A name that is not next to its marker gets a thin line to it. Where no place is free, the one with the least overlap is taken.
    """
    points = [_pixels(axes, float(getattr(n, cost)), n.validation.mean) for n in networks]
    taken = list(_drawn(axes, networks, cost, front))
    frame = axes.get_window_extent(renderer)
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
        edge = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
        if math.dist(edge, (x, y)) > 2 * MARKER_PIXELS:
            line = Line2D(*zip((x, y), edge, strict=True), color=GREY, linewidth=0.6, zorder=1)
            line.set_in_layout(False)
            figure.add_artist(line)
            line.set_transform(IdentityTransform())


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _drawn(axes: Axes, networks: Sequence[ComparedNetwork], cost: str, front: Sequence[bool]) -> Iterator[Bbox]:
    """Boxes in pixels of all that is drawn before the names: markers, bars of deviation, and the front's line."""
    for network in networks:
        cost_of, mean, sd = float(getattr(network, cost)), network.validation.mean, network.validation.sd or 0.0
        x, y = _pixels(axes, cost_of, mean)
        yield Bbox.from_extents(x - MARKER_PIXELS, y - MARKER_PIXELS, x + MARKER_PIXELS, y + MARKER_PIXELS)
        if sd:
            low, high = _pixels(axes, cost_of, mean - sd)[1], _pixels(axes, cost_of, mean + sd)[1]
            yield Bbox.from_extents(x - MARKER_PIXELS / 2, low, x + MARKER_PIXELS / 2, high)
    corners = [_pixels(axes, x, y) for x, y in _steps(networks, cost, front, axes.get_xlim()[1])]
    for (x0, y0), (x1, y1) in pairwise(corners):
        yield Bbox.from_extents(min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2)


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
