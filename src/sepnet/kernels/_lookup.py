"""What is found out once for each shape: small maps take no longer than Python does."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar

__all__ = ["forget", "forget_with", "looked_up"]

P = ParamSpec("P")
R = TypeVar("R")

_forgetting: list[Callable[[], None]] = []


def looked_up(find: Callable[P, R]) -> Callable[P, R]:
    """The same function, whose answers are kept. They may depend on nothing but the arguments and the machine."""
    kept = lru_cache(maxsize=1024)(find)
    _forgetting.append(kept.cache_clear)
    return kept  # type: ignore[return-value]  # whose arguments mypy does not know


def forget_with(clear: Callable[[], None]) -> None:
    """Call this as well when all is forgotten."""
    _forgetting.append(clear)


def forget() -> None:
    """Find all anew, for who has changed what an answer depends on."""
    for clear in _forgetting:
        clear()
