"""Markdown that is safe to build from any text: class names and titles come from users' folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sepnet.errors import one_line

__all__ = ["MISSING", "bullet", "code_span", "counted", "escape", "human_count", "markdown_table", "percent", "signed"]

MISSING = "–"

# characters that would start markup; an underscore only does so at the edge of a word, an ampersand before a name or a number
_MARKUP = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)|&(?=[#\w])")
_NUMBER = re.compile(r"[+\-−]?\d")


def escape(text: object) -> str:
    """``text`` on one line, shown by a Markdown reader as it is: no markup, no HTML, no column separator."""
    return _MARKUP.sub(lambda match: "\\" + match[0], one_line(text, 400))


def code_span(text: object) -> str:
    """``text`` on one line as inline code, whatever backticks it holds."""
    content = one_line(text, 1000)
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * (longest + 1)
    gap = " " if longest else ""
    return f"{fence}{gap}{content}{gap}{fence}"


def bullet(name: str, value: str) -> str:
    """A line of a list of facts; ``value`` is Markdown already."""
    return f"- **{name}:** {value}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up in the source as well; cells are plain text and are escaped.

    A column in which every filled cell is a number is aligned right, except the first: it names the row.

    Raises:
        ValueError: a row has not as many cells as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells does not fit a header of {len(header)}: {list(row)}")
    cells = [[escape(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    right = [i > 0 and _is_numeric([row[i] for row in rows]) for i in range(len(header))]
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]
    return "\n".join(_line(row, widths, right) for row in (cells[0], rule, *cells[1:]))


def _is_numeric(column: Sequence[str]) -> bool:
    filled = [cell for cell in column if cell not in ("", MISSING)]
    return bool(filled) and all(_NUMBER.match(cell) for cell in filled)


def _line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
    return f"| {' | '.join(padded)} |"


def percent(value: float | None, digits: int = 2) -> str:
    """A figure in percent without its sign ("76.50"), or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign ("+0.42", "−1.30", "0.00"), or a dash."""
    if value is None:
        return MISSING
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: "1 class", "1,294 images"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def human_count(value: int) -> str:
    """A count to three significant digits: 999, "12.3 k", "3.61 M", "1.20 G"."""
    if value < 1000:
        return str(value)
    for factor, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        scaled = float(f"{value / factor:.3g}")
        if scaled < 1000:
            return f"{scaled:.{2 - len(str(int(scaled))) + 1}f} {unit}"
    return f"{value / 1e12:,.2f} T"
