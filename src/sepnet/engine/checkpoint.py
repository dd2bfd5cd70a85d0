"""Checkpoints that are either whole or not there: written to a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from sepnet.errors import CheckpointError, OutputError, one_line

__all__ = [
    "FORMAT",
    "atomic_write",
    "check_within_reach",
    "check_writable",
    "load_checkpoint",
    "remove_leftovers",
    "save_checkpoint",
]

FORMAT = 1
PART = ".part"  # ends the name of a file that is being written


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, and rename it to ``path``.

    Whatever happens, ``path`` is the old file or the whole new one, and no temporary file stays behind.

    Raises:
        OutputError: it cannot be written (no space, no permission); what was at ``path`` is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or one_line(error)
        kept = "; the earlier file is untouched" if path.exists() else ""
        raise OutputError(f"cannot write {one_line(path)}: {reason}{kept}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def check_writable(folder: Path) -> None:
    """Make ``folder`` and see that files can be written there, before hours of work rely on it.

    Raises:
        OutputError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=PART).close()
    except OSError as error:
        raise OutputError(
            f"cannot write into {one_line(folder)}: {error.strerror or one_line(error)}; choose another --output"
        ) from error


def check_within_reach(folder: Path) -> None:
    """See that ``folder`` is there or can be made, as far as that shows without making it.

    Raises:
        OutputError: it is a file, or lies below one, or below a folder that may not be written to.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "Permission denied" if there.is_dir() else f"{one_line(there)} is a file"
        raise OutputError(f"cannot write into {one_line(folder)}: {reason}; choose another --output")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process left in ``folder``; for the one process that writes there."""
    for leftover in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) atomically. Raises OutputError."""
    buffer = io.BytesIO()  # torch's own writer reports a full disk in words about its insides
    torch.save({"format": FORMAT, **state}, buffer)
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running any code it may hold.

    Raises:
        CheckpointError: not there, cut short, not a sepnet checkpoint, of a newer format, or with code inside.
    """
    name = one_line(path)
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {name}; start the run without --resume") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name} holds objects that are no tensors and numbers; refused, nothing was run") from error
    except PermissionError as error:
        raise CheckpointError(f"cannot read {name}: {error.strerror}") from error
    except Exception as error:  # torch and zipfile name no set of errors that damaged bytes can cause
        raise CheckpointError(f"{name} is not a whole checkpoint (cut short or damaged); delete it and train again") from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{name} is not a checkpoint of sepnet")
    if type(state["format"]) is not int or state["format"] != FORMAT:
        raise CheckpointError(f"{name} has checkpoint format {one_line(state['format'])}, this version reads {FORMAT}")
    return state


def _check_archive(path: Path) -> None:
    """See that every byte is as it was written: torch reads a damaged tensor without complaint, and unpacks what is compressed."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile("compressed entries")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    # the rename itself is on the disk only once the folder is; not every file system can do it
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
