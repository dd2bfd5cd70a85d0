"""The one place where an exception becomes a line on stderr and an exit code.

0    done
1    a defect of sepnet ("internal error"), or a check that failed (--strict)
2    an error that the user can mend: SepnetError, a wrong flag, no memory, a full disk
130  Ctrl-C or SIGTERM
141  the reader of our output went away (sepnet models | head -1); nothing is printed
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import typer

from sepnet.errors import SepnetError, one_line

__all__ = ["Stopped", "process_number", "split_debug", "status_of"]

DEFECT, MENDABLE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
LIMIT = 2000
FLAG = "--debug"

# typer has carried click inside since 0.2x and imported it before; this finds click's base class in both
USAGE_ERROR = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
# a file system's own limits: what the user can mend and sepnet cannot
MENDABLE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EIO}


class Stopped(KeyboardInterrupt):
    """Ctrl-C in a command that can say how to go on; its message is one line."""


def process_number() -> int:
    """Which of torchrun's processes this is; 0 without torchrun. The first one prints."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdigit() else 0


def split_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """The command line without ``--debug``, and whether it was there (before a ``--``) or in the environment."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != FLAG]
    asked = len(kept) < end or os.environ.get("SEPNET_DEBUG", "0") not in ("", "0")
    return [*kept, *words[end:]], asked


def status_of(action: Callable[[], object], debug: bool) -> int:
    """Run ``action``; report what it raises on stderr, with the traceback if ``debug``; return the exit code."""
    try:
        status = 0
        try:
            action()
        except typer.Exit as stop:
            status = stop.exit_code
        sys.stdout.flush()
        return status
    except (BrokenPipeError, SystemExit):  # rich makes a SystemExit of it; no command raises one itself
        _drop_output()
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        message, status = _describe(error)
        with contextlib.suppress(OSError):  # stderr may be gone as well
            if debug:
                traceback.print_exception(error)
            print(message, file=sys.stderr, flush=True)
        return status


def _describe(error: BaseException) -> tuple[str, int]:
    """The line to print, and the exit code."""
    number = process_number()
    prefix = f"error (process {number}): " if number else "error: "
    if isinstance(error, KeyboardInterrupt):
        return one_line(error if isinstance(error, Stopped) else "interrupted", LIMIT), INTERRUPTED
    if isinstance(error, SepnetError):
        return prefix + one_line(error, LIMIT), error.exit_code
    if isinstance(error, USAGE_ERROR):
        return prefix + _usage(error), MENDABLE
    if isinstance(error, MemoryError) or _is_device_memory(error):
        return f"{prefix}out of memory; try a smaller --batch-size or --size", MENDABLE
    if isinstance(error, OSError) and error.errno in MENDABLE_ERRNO:
        where = f": {one_line(error.filename)}" if error.filename is not None else ""
        return f"{prefix}{error.strerror}{where}", MENDABLE
    what = f"{type(error).__name__}: {one_line(error, 300)}"
    return f"internal {prefix}{what}; run again with {FLAG} to see where, and please report it", DEFECT


def _usage(error: BaseException) -> str:
    """A wrong flag or argument, with the close matches and where the right ones are listed."""
    close = getattr(error, "possibilities", None)
    text = getattr(error, "message", "") if close else error.format_message()  # type: ignore[attr-defined]
    text = one_line(" ".join(str(text).split()), LIMIT).rstrip(".")
    hint = f"did you mean {' or '.join(close)}?" if close else ""
    context = getattr(error, "ctx", None)
    return "; ".join(part for part in (text, hint or f"see {context.command_path if context else 'sepnet'} --help") if part)


def _is_device_memory(error: BaseException) -> bool:
    """torch's ways to say that memory is short; torch itself may not be imported here."""
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _drop_output() -> None:
    """Send what Python still wants to flush at its exit nowhere, or it would complain there."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
