"""One run at a time writes into a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sepnet.errors import ConfigError, OutputError, one_line
from sepnet.locking import locked

__all__ = ["writing_alone"]


@contextlib.contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Hold ``folder``/.lock; the system releases it when the process ends, however that happens.

    Raises:
        ConfigError: another process holds it.
        OutputError: the folder cannot be made or written.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(_remove_if_empty, folder)
            held.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError:
            held.pop_all()  # the folder is the other run's
            raise ConfigError(f"another run is writing into {one_line(folder)}; wait for it, or choose another --output") from None
        except OSError as error:
            raise OutputError(f"cannot write {one_line(folder)}: {error.strerror}") from error
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not where the run wrote something
        folder.rmdir()
