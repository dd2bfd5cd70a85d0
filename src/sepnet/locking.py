"""One process at a time: a lock file that the system releases however its holder ends. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, which is made, and taken away at the end.

    Args:
        path: the file; its folder must be there.
        wait: wait for whoever holds it.
        waiting: called once before waiting.

    Raises:
        BlockingIOError: somebody holds it, and ``wait`` is False.
        OSError: the file cannot be made.
    """
    with _held(path, wait, waiting):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # before the lock is released: whoever waits for it sees that the file is gone
                path.unlink()


def _held(path: Path, wait: bool, waiting: Callable[[], object] | None) -> IO[bytes]:
    """The lock file, open and locked. A file that its last holder has taken away in the meantime locks nobody out: try again."""
    while True:
        file = path.open("ab")
        try:
            if fcntl is None:
                return file
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if waiting is not None:
                    waiting()
                    waiting = None
                fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()
