"""A bar chart of parameters: networks as they are counted here, and the figure that a paper names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sepnet.report._canvas import COLOURS, GREY, SMALL, drawing, new_figure, png, safe
from sepnet.report._markdown import human_count

__all__ = ["Bar", "parameters_figure"]


@dataclass(frozen=True)
class Bar:
    """One network: its label, trainable parameters as counted here, and as printed in the paper, None where it gives none."""

    label: str
    counted: int
    published: int | None


def parameters_figure(title: str, bars: Sequence[Bar], *, subtitle: str = "") -> bytes:
    """PNG bytes: a horizontal bar a network, in the given order from the top; a mark where the paper's figure lies.

    Raises:
        ValueError: no bars.
    """
    if not bars:
        raise ValueError("there are no bars to draw")
    places = range(len(bars))
    widest = max(max(bar.counted, bar.published or 0) for bar in bars) / 1e6
    with drawing():
        figure = new_figure(8.0, 1.5 + 0.42 * len(bars), title, subtitle, bottom=0.36)
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        axes.barh(places, [bar.counted / 1e6 for bar in bars], height=0.6, color=COLOURS[0], label="counted here")
        marked = [(place, bar.published / 1e6) for place, bar in zip(places, bars, strict=True) if bar.published is not None]
        if marked:
            axes.plot(
                [value for _, value in marked],
                [place for place, _ in marked],
                linestyle="none",
                marker="D",
                markersize=7,
                markerfacecolor="white",
                markeredgecolor=COLOURS[1],
                markeredgewidth=1.8,
                label="printed in the paper",
            )
        for place, bar in zip(places, bars, strict=True):
            beyond = max(bar.counted, bar.published or 0) / 1e6
            text = human_count(bar.counted)
            axes.annotate(
                text, (beyond, place), xytext=(9, 0), textcoords="offset points", va="center", ha="left", size=SMALL, color=GREY
            )
        axes.set_yticks(places, [safe(bar.label) for bar in bars])
        axes.set(xlabel="trainable parameters (million)", xlim=(0, 1.13 * widest))
        axes.invert_yaxis()
        figure.legend(loc="lower center", ncols=2, columnspacing=2.0)
        return png(figure)
