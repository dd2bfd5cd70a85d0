"""Figures that look the same everywhere: one style, safe text, and PNG bytes that depend on the figures alone.

Nothing here touches pyplot. The style is set within ``drawing`` and the user's own settings are put back after it; they are
global in matplotlib, so a lock keeps two figures of this package from drawing at once.
"""

from __future__ import annotations

import io
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from sepnet.errors import one_line

__all__ = ["COLOURS", "GREY", "INK", "LINES", "MARKERS", "SMALL", "drawing", "new_figure", "png", "safe"]

DPI = 150
TITLE, TEXT, SMALL = 13, 10.5, 9.5
INK, GREY = "#222222", "#666666"
# Okabe and Ito's palette, told apart in every common form of colour blindness; line style and marker say it a second time
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES: Final[tuple[tuple[float, Sequence[float]] | None, ...]] = (
    None,
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.5, 1.2, 1.5)),
    (0, (9, 2)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: Final[Any] = {  # matplotlib types the keys one by one
    "text.parse_math": False,  # a $ in a class name is a $
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": TEXT,
    "axes.titlesize": TEXT + 1,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": TEXT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
}
_LOCK = threading.Lock()


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's defaults and ``STYLE`` for the duration, whatever matplotlibrc or the caller has set."""
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float, title: str, subtitle: str = "", bottom: float = 0.08) -> Figure:
    """An empty figure of ``width`` x ``height`` inches with its heading; axes keep clear of it and of ``bottom`` inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    top = 0.12
    for text, limit, size, weight, colour in ((title, 200, TITLE, "bold", INK), (subtitle, 600, SMALL, "normal", GREY)):
        lines = textwrap.wrap(safe(text, limit), int(width * (111 if weight == "bold" else 139) / size))
        heading = "\n".join(lines)
        figure.text(0.12 / width, 1 - top / height, heading, size=size, weight=weight, color=colour, va="top", linespacing=1.3)
        top += len(lines) * size * 1.4 / 72 + 0.05
    figure.set_layout_engine("constrained", rect=(0.004, bottom / height, 0.992, 1 - (top + bottom) / height))
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes (no date, no version inside)."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    page = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # a palette of 256 colours cannot be told from the thousands that smoothed edges make by eye, and halve the file
    page = page.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def safe(text: object, limit: int = 60) -> str:
    """``text`` on one line in characters that the font has; others become a question mark."""
    known = _characters()
    return "".join(c if ord(c) in known else "?" for c in one_line(text, limit))


@cache
def _characters() -> frozenset[int]:
    font = get_font(findfont(FontProperties(family=["DejaVu Sans"])))
    return frozenset(font.get_charmap())
