"""What the commands print: facts, tables and lines for a person on stdout; with --json one JSON value there and the rest on stderr.

Text goes out as it is: no markup is read from it, and lines are only broken on a terminal.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepnet.cli._errors import process_number
from sepnet.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Output", "console", "counted", "duration", "human_count", "megabytes", "percent", "shape_text", "shell_word"]

LONGEST_WORD = 40  # a class may have any name; beyond this it is folded rather than that the row runs over the edge
COLUMN_GAP = 3  # between two columns: a blank of each, and the box's own
UNBROKEN = 100_000  # columns of an output that is no terminal: grep and cut want a row on a line


def console(*, stderr: bool = False) -> Console:
    """A rich console that prints text as it is; silent in all of torchrun's processes but the first."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False, quiet=process_number() != 0)
    if not made.is_terminal:
        made.width = UNBROKEN
    return made


class Output:
    """Prints a command's results.

    Args:
        as_json: stdout is kept for one JSON value; what is meant for a person goes to stderr.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = console(stderr=as_json)

    def line(self, text: str = "", style: str = "") -> None:
        """One line of text, broken by nobody but the terminal."""
        self.console.print(text, style=style or None, soft_wrap=True)

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Labelled facts; a long one goes on below its beginning."""
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold cyan", no_wrap=True, min_width=10)  # "validation"
        grid.add_column(overflow="fold")
        for label, text in facts:
            grid.add_row(label, text)
        self._show(grid)

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        right: Sequence[int] = (),
        optional: Sequence[int] = (),
    ) -> None:
        """A table; on a narrow terminal columns are left out before a name or a number is broken.

        Args:
            right: columns aligned right, those of numbers.
            optional: columns that may be left out, the least important first. A table that is still too wide runs over the edge.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        rows = list(rows)
        least = [_least_width([name, *(row[i] for row in rows)], i in right) for i, name in enumerate(header)]
        shown = _fitting(least, optional, self.console.width)
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        for i in shown:
            number = i in right
            table.add_column(header[i], justify="right" if number else "left", no_wrap=number, min_width=least[i], overflow="fold")
        for row in rows:
            table.add_row(*(row[i] for i in shown))
        self._show(table, _table_width(least, shown))

    def _show(self, table: Table, least: int = 0) -> None:
        """Print a table that needs at least so many columns."""
        if self.console.is_terminal:
            width = self.console.width
            self.console.width = max(width, least)
            self.console.print(table, crop=False)
            self.console.width = width
            return
        with self.console.capture() as capture:  # rich fills rows up with blanks, which a file or pipe need not hold
            self.console.print(table)
        self.console.out("\n".join(line.rstrip() for line in capture.get().splitlines()), highlight=False)

    def json(self, value: object) -> None:
        """The JSON value that ``--json`` promises, in ASCII: a file name that is no UTF-8 survives as an escape."""
        if process_number() == 0:
            sys.stdout.write(json.dumps(_finite(value), indent=1) + "\n")


def _least_width(cells: Sequence[str], number: bool) -> int:
    """Terminal columns in which no number and no word is broken; a word of more than ``LONGEST_WORD`` may be."""
    from rich.cells import cell_len

    words = cells if number else [word for cell in cells for word in cell.split()]
    longest = max(map(cell_len, words), default=1)
    return longest if number else min(longest, LONGEST_WORD)


def _fitting(least: Sequence[int], optional: Sequence[int], width: int) -> list[int]:
    """The columns to show: all, less as many of the ``optional`` ones as it takes to fit ``width``."""
    shown = list(range(len(least)))
    for index in optional:
        if _table_width(least, shown) <= width:
            break
        shown.remove(index)
    return shown


def _table_width(least: Sequence[int], shown: Sequence[int]) -> int:
    return sum(least[i] for i in shown) + COLUMN_GAP * (len(shown) - 1)


def counted(number: int, what: str, plural: str | None = None) -> str:
    """ "1 class", "1,294 images"."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def human_count(number: float) -> str:
    """Three digits and a unit: 3,614,444 -> 3.61 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def megabytes(count: int) -> str:
    """170,498,071 -> "170.5 MB"."""
    return f"{count / 1e6:,.1f} MB"


def percent(value: float | None, digits: int = 2) -> str:
    """ "98.33 %", or a dash."""
    return "–" if value is None else f"{value:.{digits}f} %"


def duration(seconds: float) -> str:
    """ "8 s", "3 min 20 s", "2 h 5 min", "12 days"."""
    whole = max(0, math.ceil(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 100:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes + (rest >= 30)} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 100 else f"{round(hours / 24):,} days"


def shell_word(path: Path) -> str:
    """A path as it is typed into a shell, to be copied from the screen."""
    return one_line(shlex.quote(os.fspath(path)), 1000)


def shape_text(shape: Iterable[int]) -> str:
    """(3, 32, 32) -> 3x32x32."""
    return "x".join(map(str, shape))


def _finite(value: object) -> Any:
    """``value`` with null where JSON has no number (NaN, infinity)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
