"""What CIFAR-10 and CIFAR-100 have in common: pickled batches of colour images of 32x32, each a row of 3,072 bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sepnet.data._types import Split
from sepnet.data._unpickle import read_pickle
from sepnet.errors import DataError, one_line

__all__ = ["MIRRORS", "Batch", "as_split", "read_batch", "title_of_batches"]

PIXELS = 3 * 32 * 32
MIRRORS = ("https://www.cs.toronto.edu/~kriz", "https://dataset.bj.bcebos.com/cifar")
"""The publisher, and PaddlePaddle's copy of the same archives."""


class Batch(NamedTuple):
    """Images uint8 (N, 3072) and their class numbers; whether the file names end in .jpg, and whether it is the published file."""

    data: np.ndarray[Any, np.dtype[np.uint8]]
    labels: list[int]
    jpeg: bool
    canonical: bool


def read_batch(path: Path, key: str, classes: int, md5: str) -> Batch:
    """Read one pickle.

    Args:
        key: of the labels in it ("labels", "fine_labels").
        classes: how many there are.
        md5: of the published file.

    Raises:
        DataError: cut short, of another shape, or with labels outside 0..classes-1.
        UnsafeFileError: a pickle that would run code.
    """
    values, content = read_pickle(path)
    data, labels = values.get("data"), values.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS or len(data) == 0:
        found = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{one_line(path)}: 'data' must be uint8 (images, {PIXELS}), found {one_line(found)}")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(x) is int and 0 <= x < classes for x in labels):
        raise DataError(f"{one_line(path)}: '{key}' must be {len(data)} whole numbers from 0 to {classes - 1}")
    names = values.get("filenames")
    jpeg = isinstance(names, list) and bool(names) and str(names[0]).rstrip("'").lower().endswith((".jpg", ".jpeg"))
    return Batch(data, labels, jpeg, hashlib.md5(content, usedforsecurity=False).hexdigest() == md5)


def title_of_batches(name: str, batches: list[Batch]) -> str:
    """``name`` if the batches are the published files, else what kind of copy they are."""
    if all(batch.canonical for batch in batches):
        return name
    return f"{name} (JPEG copy)" if any(batch.jpeg for batch in batches) else f"{name} (modified copy)"


def as_split(batches: list[Batch]) -> Split:
    """The images and labels of ``batches``, one after the other."""
    planes = torch.cat([torch.from_numpy(batch.data) for batch in batches]).view(-1, 3, 32, 32)
    labels = torch.tensor([label for batch in batches for label in batch.labels], dtype=torch.int64)
    return Split(planes.contiguous(memory_format=torch.channels_last), labels)
