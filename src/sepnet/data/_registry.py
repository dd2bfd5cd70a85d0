"""The table of data sets; each file of this folder enters its reader on first look-up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sepnet.data._types import RawData
from sepnet.registry import Registry

__all__ = ["Reader", "datasets"]

Reader = Callable[[Path], RawData]
"""Reads a data set from below the data folder; raises DataNotFoundError when it is not there."""

datasets: Registry[Reader] = Registry("data set", "sepnet.data")
