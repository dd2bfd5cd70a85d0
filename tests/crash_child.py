"""Training in a process of its own, to which test_crash.py does what happens to processes.

Each of ``MISHAPS`` sets one up for the n-th time that the run comes by a certain place. Most end in SIGKILL, as a power
failure would: nothing of Python runs after it.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import sepnet
from sepnet.data import TrainLoader
from sepnet.engine import Interrupted
from sepnet.errors import OutputError

__all__ = ["DEATHS", "DISK_FULL", "ERROR", "INTERRUPTED", "MISHAPS", "SETTINGS", "WAITING", "train"]

SETTINGS: dict[str, Any] = {
    "model_options": {"units": [4, 8]},
    "iterations": 40,
    "eval_every": 9,
    "batch_size": 32,
    "lr": 0.05,
    "momentum": 0.9,
    "ema": 0.9,
    "keep": "best",
    "hflip": "random",
    "shift": 1,
    "rotate": 10.0,
    "val_fraction": 0.05,
    "checkpoint_seconds": 0.0,
}
INTERRUPTED, DISK_FULL = 3, 4  # exit codes
WAITING, ERROR = "waiting", "error"  # files beside the run's folder

Call = Callable[..., Any]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _before(count: int, real: Call, action: Callable[[], None] = _die) -> Call:
    """``real``, with ``action`` before its ``count``-th call."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            action()
        return real(*args, **kwargs)

    return wrapped


def _after(count: int, real: Call) -> Call:
    """``real``, but the process dies when its ``count``-th call is done."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*args, **kwargs)
        if calls == count:
            _die()
        return result

    return wrapped


def _half(count: int, real: Call) -> Call:
    """``torch.save``, but the process dies in its ``count``-th call, when half of the bytes are in the file."""
    calls = 0

    def wrapped(content: Any, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            whole = io.BytesIO()
            real(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            _die()
        real(content, file)

    return wrapped


def _step(wrapped: Call) -> Any:
    return mock.patch.object(TrainLoader, "batch", wrapped)


def _rename(wrapped: Call) -> Any:
    return mock.patch.object(Path, "replace", wrapped)


DEATHS: dict[str, Callable[[int], Any]] = {
    "before a step": lambda n: _step(_before(n, TrainLoader.batch)),
    "half of a checkpoint is written": lambda n: mock.patch("torch.save", _half(n, torch.save)),
    "a file is written but not on the disk": lambda n: mock.patch("os.fsync", _before(n, os.fsync)),
    "before a file gets its name": lambda n: _rename(_before(n, Path.replace)),
    "after a file got its name": lambda n: _rename(_after(n, Path.replace)),
}
MISHAPS = DEATHS | {"the disk is full": lambda n: _step(_before(n, TrainLoader.batch, _limit_files))}


def _wait(marker: Path) -> None:
    """Stand still in the middle of a step until ``marker`` is gone."""
    marker.touch()
    while marker.exists():
        time.sleep(0.01)


def train(folder: Path, resume: bool, mishap: tuple[str, int] | None = None, settings: dict[str, Any] | None = None) -> None:
    """Train on the digits into ``folder``; exits with 0 when the run is finished, or with a code from above."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())  # whatever a new process happens to draw must not matter
    where: dict[str, Any] = {"resume": folder} if resume else {"output": folder, **SETTINGS, **(settings or {})}
    patch: Any = contextlib.nullcontext()
    if mishap is not None:
        name, count = mishap
        if name == WAITING:
            patch = _step(_before(count, TrainLoader.batch, lambda: _wait(folder.with_name(WAITING))))
        else:
            patch = MISHAPS[name](count)
    with patch:
        try:
            sepnet.train("digits", device="cpu", **where)
        except Interrupted:
            raise SystemExit(INTERRUPTED) from None
        except OutputError as error:
            folder.with_name(ERROR).write_text(str(error))
            raise SystemExit(DISK_FULL) from None
