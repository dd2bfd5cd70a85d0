"""What the kernels are to reach, and whether they do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from _bench import Figures
from _kernel_cases import CHANNELS_LAST, CONTROL, NCHW, OURS
from _shapes import Shape

__all__ = ["NEVER_SLOWER", "Row", "Verdict", "misses", "verdicts"]

NEVER_SLOWER = 0.95
FLOOR_SHARE = 0.5
LISTED = 40  # misses of one target that the page names; all stand in the JSON file


class Row(NamedTuple):
    """Figures of the contenders for one shape, type and direction; ``networks`` that run it, none for the sweep's."""

    shape: Shape
    networks: tuple[str, ...]
    dtype: str
    direction: str
    figures: Mapping[str, Figures]

    @property
    def bytes(self) -> int:
        """That must move."""
        return self.shape.moved_bytes(self.direction, 2 if self.dtype == "bf16" else 4)

    @property
    def gb_per_s(self) -> float:
        """At which sepnet moves them."""
        return 1e-6 * self.bytes / self.figures[OURS]["median_ms"]

    def over(self, other: str) -> float:
        """Time of another contender to sepnet's."""
        return self.figures[other]["median_ms"] / self.figures[OURS]["median_ms"]

    @property
    def ratio(self) -> float:
        """Time of the better of PyTorch's layouts to sepnet's."""
        return min(self.over(NCHW), self.over(CHANNELS_LAST))

    @property
    def label(self) -> str:
        """Shape, type, direction."""
        return f"{self.shape.label()}, {self.dtype} {self.direction}"


class Target(NamedTuple):
    """``least`` of ``value`` for every row that ``applies``; ``control`` is the value of two contenders that are the same."""

    what: str
    least: float
    applies: Callable[[Row], bool]
    value: Callable[[Row], float]
    shown: Callable[[float], str]
    control: Callable[[Row], float] | None = None


class Verdict(NamedTuple):
    """A target, its verdict in one line, and the rows that miss it with their figures."""

    target: Target
    line: str
    missed: list[tuple[Row, float]]


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _large(row: Row) -> bool:
    """The rows that the targets of the backward pass speak of."""
    s = row.shape
    return row.direction == "backward" and min(s.height, s.width) >= 8 and s.channels >= 64


def _kernel(row: Row) -> int:
    return max(max(k) for k in row.shape.geometry.kernels)


def _dilated(row: Row) -> bool:
    return row.shape.geometry.dilations[0] != (1, 1)


def _strided(row: Row) -> bool:
    return row.shape.geometry.stride != (1, 1)


def _chance(row: Row) -> float:
    """PyTorch's channels-last convolution to itself."""
    return row.figures[CHANNELS_LAST]["median_ms"] / row.figures[CONTROL]["median_ms"]


def _faster(dtype: str, what: str, least: float, applies: Callable[[Row], bool]) -> Target:
    return Target(
        f"{dtype} backward to channels_last, {what} (maps from 8x8, from 64 channels)",
        least,
        lambda row: row.dtype == dtype and _large(row) and applies(row),
        lambda row: row.over(CHANNELS_LAST),
        _times,
    )


def _targets(copy_gb_per_s: float, cache: int | None) -> list[Target]:
    never = (lambda row: bool(row.networks), lambda row: row.ratio, _times, _chance)
    beyond = lambda row: cache is not None and row.bytes > cache
    return [
        _faster("bf16", "dilation > 1, up to 5x5", 8, lambda row: _dilated(row) and _kernel(row) < 7),
        _faster("bf16", "stride 2, up to 5x5", 8, lambda row: _strided(row) and _kernel(row) < 7),
        _faster("bf16", "5x5", 8, lambda row: _kernel(row) == 5),
        _faster("bf16", "7x7", 5, lambda row: _kernel(row) == 7),
        _faster("fp32", "dilation > 1", 4, _dilated),
        _faster("fp32", "5x5", 4, lambda row: _kernel(row) == 5),
        _faster("fp32", "7x7", 4, lambda row: _kernel(row) == 7),
        Target("networks' shapes, to the better of PyTorch's layouts", NEVER_SLOWER, *never),
        Target(
            "share of the floor, more bytes than the cache holds", FLOOR_SHARE, beyond, lambda r: r.gb_per_s / copy_gb_per_s, _share
        ),
    ]


def verdicts(rows: Sequence[Row], copy_gb_per_s: float, cache: int | None) -> list[Verdict]:
    """Of each target that any row is subject to."""
    found = []
    for target in _targets(copy_gb_per_s, cache):
        values = sorted(((row, target.value(row)) for row in rows if target.applies(row)), key=lambda pair: pair[1])
        if not values:
            continue
        missed = [(row, value) for row, value in values if value < target.least]
        median, least = target.shown(statistics.median(v for _, v in values)), target.shown(values[0][1])
        line = (
            f"{target.what}: at least {target.shown(target.least)} reached by {len(values) - len(missed)} of {len(values)}; "
            f"median {median}, least {least} ({values[0][0].label})"
        )
        if target.control is not None:
            again = [target.control(row) for row, _ in values]
            line += f"; of PyTorch's in channels_last to itself {sum(v >= target.least for v in again)} of {len(again)} do"
            line += f" (median {target.shown(statistics.median(again))}, least {target.shown(min(again))})"
        found.append(Verdict(target, line, missed))
    return found


def misses(judged: Sequence[Verdict]) -> str:
    """Markdown: the rows that miss a target, worst first."""
    parts = []
    for verdict in judged:
        if verdict.missed:
            shown = verdict.missed[:LISTED]
            lines = [f"- {row.label}: {verdict.target.shown(value)}" for row, value in shown]
            rest = len(verdict.missed) - len(shown)
            parts.append("\n".join([f"{verdict.line}:", "", *lines, *([f"- and {rest} more"] if rest else [])]))
    return "\n\n".join(parts) or "None."
