"""Calls into the library, for those who write down what happens: PyTorch's dispatch modes see PyTorch's operations alone.

Functions that hand tensors to the library are marked by ``native_call``; of their inside a mode would see the empty tensors that
they make.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["Watcher", "is_watched", "native_call", "watching"]

Ts = TypeVarTuple("Ts")
R = TypeVar("R")
Watcher = Callable[[Callable[..., Any], tuple[Any, ...]], Any]
"""Given a function and its arguments, all by position: calls it, and gives its result back."""


class _Watched(threading.local):
    by: Watcher | None = None


_watched = _Watched()


def native_call(function: Callable[[*Ts], R]) -> Callable[[*Ts], R]:
    """Mark a function whose work is one call into the library, and that is called with arguments by position."""

    @wraps(function)
    def call(*args: *Ts) -> R:
        watcher = _watched.by
        if watcher is None:
            return function(*args)
        result: R = watcher(function, args)
        return result

    return call


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within the block this thread's native calls go through ``watcher``, who is its one dispatch mode too."""
    before = _watched.by
    _watched.by = watcher
    try:
        yield
    finally:
        _watched.by = before


def is_watched() -> bool:
    """Whether this thread's native calls are seen: if it has one dispatch mode, by that one."""
    return _watched.by is not None
