"""The table of data sets; each file of this folder enters its own on first look-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sepnet.data._source import Source
from sepnet.data._types import RawData, ReadOptions
from sepnet.registry import Registry

__all__ = ["Entry", "Reader", "dataset", "datasets"]

Reader = Callable[[Path, ReadOptions], RawData]
"""Reads a data set from below the data folder; raises DataNotFoundError when it is not there. Most files hold finished pixels, and
their readers need nothing of the options: what they leave is done to the images afterwards."""


@dataclass(frozen=True)
class Entry:
    """A data set: how it is read, and where it comes from (None: nothing is to be fetched)."""

    read: Reader
    source: Source | None


datasets: Registry[Entry] = Registry("data set", "sepnet.data")


def dataset(name: str, source: Source | None = None) -> Callable[[Reader], Reader]:
    """Decorator that enters a reader under ``name``; what its module's docstring says first is the summary in ``sepnet data list``.

    Raises:
        DuplicateNameError: the name is taken.
    """

    def enter(reader: Reader) -> Reader:
        datasets.register(name)(Entry(reader, source))
        return reader

    return enter
