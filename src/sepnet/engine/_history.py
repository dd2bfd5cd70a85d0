"""The rows that a run's metrics.csv holds."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from sepnet.engine.checkpoint import atomic_write

__all__ = ["Row", "write_history"]

Row = dict[str, float | int | None]


def write_history(path: Path, rows: list[Row]) -> None:
    """Write the whole history as CSV, atomically; an absent value is an empty field. Raises OutputError."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)  # a resumed run may report more than its first part
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))
