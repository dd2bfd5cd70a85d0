"""Training in a process of its own, that test_crash.py kills.

``DEATHS`` are moments at which the process kills itself with SIGKILL, as a power failure would: nothing of Python runs after it.
"""

from __future__ import annotations

import io
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import sepnet
from sepnet.data import TrainLoader
from sepnet.engine import Interrupted
from sepnet.errors import OutputError

__all__ = ["DEATHS", "SETTINGS", "train"]

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


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, but the ``count``-th call kills the process instead."""
    calls = iter(range(1, count + 1))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            die()
        return real(*args, **kwargs)

    return wrapped


def _after(count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, but the process dies when its ``count``-th call is done."""
    calls = iter(range(1, count + 1))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if next(calls) == count:
            die()
        return result

    return wrapped


def _half_written(count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(1, count + 1))

    def wrapped(content: Any, file: Any) -> None:
        if next(calls) == count:
            whole = io.BytesIO()
            real(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            die()
        real(content, file)

    return wrapped


DEATHS: dict[str, Callable[[int], Any]] = {
    "before a step": lambda n: mock.patch.object(TrainLoader, "batch", _before(n, TrainLoader.batch)),
    "in the middle of writing a checkpoint": lambda n: mock.patch("torch.save", _half_written(n, torch.save)),
    "when a file is written and not yet on the disk": lambda n: mock.patch("os.fsync", _before(n, os.fsync)),
    "before a file gets its name": lambda n: mock.patch.object(Path, "replace", _before(n, Path.replace)),
    "when a file has got its name": lambda n: mock.patch.object(Path, "replace", _after(n, Path.replace)),
}


def train(folder: Path, resume: bool, death: tuple[str, int] | None = None, settings: dict[str, Any] | None = None) -> None:
    """Train on the digits into ``folder``; exits with 0 when the run is finished, 3 when interrupted, 4 when the disk is full."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())  # whatever a new process happens to draw must not matter
    where: dict[str, Any] = {"resume": folder} if resume else {"output": folder, **SETTINGS, **(settings or {})}
    with DEATHS[death[0]](death[1]) if death else mock.patch.object(os, "abort"):
        try:
            sepnet.train("digits", device="cpu", **where)
        except Interrupted:
            raise SystemExit(3) from None
        except OutputError as error:
            (folder.parent / "error").write_text(str(error))
            raise SystemExit(4) from None


def deaths() -> Iterator[str]:
    """Names of the moments."""
    return iter(DEATHS)
