"""One run at a time writes into a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sepnet.errors import ConfigError, OutputError, one_line

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]

__all__ = ["writing_alone"]


@contextlib.contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Hold ``folder``/.lock; the system releases it when the process ends, however that happens.

    Raises:
        ConfigError: another process holds it.
        OutputError: the folder cannot be made or written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise OutputError(f"cannot write {one_line(folder)}: {error.strerror}") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another run is writing into {one_line(folder)}; wait for it, or choose another --output"
                ) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
                folder.rmdir()  # only where the run wrote nothing
