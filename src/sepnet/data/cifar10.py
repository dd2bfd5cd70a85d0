"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 classes, from the Python pickles of cifar-10-batches-py.

Mean and standard deviation are the customary (.4914 .4822 .4465) and (.2470 .2435 .2616). A copy whose checksums are not those of
the canonical files is read as well, and its title says so: figures measured on it are not comparable with published ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sepnet.data._registry import datasets
from sepnet.data._types import RawData, Split
from sepnet.data._unpickle import read_pickle
from sepnet.errors import DataError, DataNotFoundError, one_line

__all__ = ["read_cifar10"]

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32


class _Batch(NamedTuple):
    data: np.ndarray[Any, np.dtype[np.uint8]]
    labels: list[int]
    jpeg: bool
    canonical: bool


@datasets.register("cifar10")
def read_cifar10(data_dir: Path) -> RawData:
    """Read CIFAR-10 from ``data_dir``/cifar-10-batches-py (or from ``data_dir`` when that is the folder itself).

    Raises:
        DataNotFoundError: the folder or one of its six batches is not there.
        DataError: a batch of another shape or with labels outside 0..9.
        UnsafeFileError: a pickle that would run code.
    """
    folder = data_dir if (data_dir / "test_batch").is_file() else data_dir / FOLDER
    missing = [name for name in MD5 if not (folder / name).is_file()]
    if missing:
        raise DataNotFoundError(
            f"CIFAR-10 is not in {one_line(folder)} (no {missing[0]}): unpack {ARCHIVE} so that {FOLDER}/ lies in "
            f"{one_line(data_dir)}, or name another folder with --data-dir"
        )
    batches = [_read_batch(folder / name) for name in MD5]
    return RawData(
        title=_title(batches),
        classes=CLASSES,
        train=_split(batches[:-1]),
        test=_split(batches[-1:]),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )


def _read_batch(path: Path) -> _Batch:
    values, content = read_pickle(path)
    data, labels = values.get("data"), values.get("labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS or len(data) == 0:
        found = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{one_line(path)}: 'data' must be uint8 (images, {PIXELS}), found {one_line(found)}")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(x) is int and 0 <= x <= 9 for x in labels):
        raise DataError(f"{one_line(path)}: 'labels' must be {len(data)} whole numbers from 0 to 9")
    names = values.get("filenames")
    jpeg = isinstance(names, list) and bool(names) and str(names[0]).rstrip("'").lower().endswith((".jpg", ".jpeg"))
    return _Batch(data, labels, jpeg, hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[path.name])


def _title(batches: list[_Batch]) -> str:
    if all(batch.canonical for batch in batches):
        return "CIFAR-10"
    return "CIFAR-10 (JPEG copy)" if any(batch.jpeg for batch in batches) else "CIFAR-10 (modified copy)"


def _split(batches: list[_Batch]) -> Split:
    planes = torch.cat([torch.from_numpy(batch.data) for batch in batches]).view(-1, 3, 32, 32)
    labels = torch.tensor([label for batch in batches for label in batch.labels], dtype=torch.int64)
    return Split(planes.contiguous(memory_format=torch.channels_last), labels)
