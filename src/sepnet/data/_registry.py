"""The table of data sets; each file of this folder enters its own on first look-up."""

from __future__ import annotations

import inspect
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
    """A data set: how it is read, where it comes from (None: nothing is to be fetched), and what it is, in a line."""

    read: Reader
    source: Source | None
    summary: str


datasets: Registry[Entry] = Registry("data set", "sepnet.data")


def dataset(name: str, source: Source | None = None, summary: str = "") -> Callable[[Reader], Reader]:
    """Decorator that enters a reader under ``name``; without a ``summary``, what its module's docstring says first is one.

    Raises:
        DuplicateNameError: the name is taken.
    """

    def enter(reader: Reader) -> Reader:
        first = (inspect.getdoc(inspect.getmodule(reader)) or "").split("\n\n")[0]
        datasets.register(name)(Entry(reader, source, summary or " ".join(first.split()).rstrip(".")))
        return reader

    return enter
