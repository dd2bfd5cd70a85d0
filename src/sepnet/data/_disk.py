"""Writing what was fetched: every failure is one line, and is told from a failure of what is read meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sepnet.errors import OutputError, one_line

__all__ = ["Sink", "flush", "require_space", "writing"]

FEW = 64  # so many files are flushed to the disk one by one; more of them by flushing everything
SPARE_BYTES = 2**24


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails in here failed in writing ``path``. Raises OutputError for every OSError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {one_line(path)}: {one_line(error.strerror or error)}") from None


class Sink:
    """A file to write to, new or at its end. Not buffered: what was written is there, and nothing can fail when it is closed.

    Args:
        mode: "x" for a new file, "w" to begin anew, "a" to go on.

    Raises:
        OutputError: it cannot be opened.
    """

    def __init__(self, path: Path, mode: str) -> None:
        self.path = path
        with writing(path):
            self._file = path.open(f"{mode}b", buffering=0)

    def write(self, block: bytes) -> None:
        """Write all of ``block``. Raises OutputError."""
        left = memoryview(block)
        with writing(self.path):
            while left:
                left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_space(folder: Path, needed: int, what: str) -> None:
    """See that ``needed`` bytes fit onto the disk of ``folder``. Raises OutputError."""
    with writing(folder):
        free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise OutputError(
            f"{what} needs {needed / 1e6:,.0f} MB in {one_line(folder)}, where {free / 1e6:,.0f} MB are free; "
            "make room, or name another folder with --data-dir"
        )


def flush(made: Path) -> None:
    """Bring a file, or all files of a folder, to the disk: after a power cut they must not be there by name only."""
    files = [path for path in (made.rglob("*") if made.is_dir() else [made]) if path.is_file()]
    with writing(made):
        if len(files) > FEW and hasattr(os, "sync"):
            os.sync()
            return
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
