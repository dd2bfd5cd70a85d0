"""MNIST (LeCun et al. 1998): 60,000 + 10,000 grey images of 28x28, 10 classes, from the four IDX files, plain or gzipped.

An IDX file is a big-endian header (magic number 2051 and three sizes for images, 2049 and one for labels) and the bytes.
Mean and standard deviation are the customary .1307 and .3081.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from sepnet.data._registry import datasets
from sepnet.data._types import RawData, Split
from sepnet.errors import DataError, DataNotFoundError, UnsafeFileError, one_line

__all__ = ["read_idx", "read_mnist"]

FOLDERS = ("MNIST/raw", "mnist", ".")
STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MAGICS = {3: 2051, 1: 2049}
MAX_BYTES = 2**30
# sha256 over the pixels and labels of all four files, in the order of STEMS.
CANONICAL = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"


@datasets.register("mnist")
def read_mnist(data_dir: Path) -> RawData:
    """Read MNIST from ``data_dir``/MNIST/raw, ``data_dir``/mnist or ``data_dir``.

    Raises:
        DataNotFoundError: the four files are in none of these.
        DataError: a header, a size or a label that is wrong.
        UnsafeFileError: a file that unpacks to more than its header states.
    """
    paths = _find(data_dir)
    arrays = [read_idx(path, ndim=3 if "idx3" in path.name else 1) for path in paths]
    train = _split(paths[0], paths[1], arrays[0], arrays[1])
    test = _split(paths[2], paths[3], arrays[2], arrays[3])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(f"{one_line(paths[2])} holds images of another size than {paths[0].name}; unpack MNIST again")
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    title = "MNIST" if digest.hexdigest() == CANONICAL else "MNIST (modified copy)"
    return RawData(title, tuple("0123456789"), train, test=test, mean=(0.1307,), std=(0.3081,))


def read_idx(path: Path, ndim: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The bytes of one IDX file (``.gz`` or plain) as a uint8 array of ``ndim`` (1 or 3) dimensions.

    Raises:
        DataError: not such a file, or cut short.
        UnsafeFileError: more data than the header states; reading stops there.
    """
    try:
        with cast("BinaryIO", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
            return _parse(file, path, ndim)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{one_line(path)} cannot be read: {one_line(error)}; download it again") from None


def _parse(file: BinaryIO, path: Path, ndim: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    header = file.read(4 + 4 * ndim)
    if len(header) < 4 + 4 * ndim:
        raise DataError(f"{one_line(path)} is cut short: {len(header)} bytes of header; download it again")
    magic, *shape = struct.unpack(f">{1 + ndim}I", header)
    if magic != MAGICS[ndim]:
        raise DataError(f"{one_line(path)} is not an IDX file of {ndim} dimension(s): it begins with {magic}, not {MAGICS[ndim]}")
    size = math.prod(shape)
    if not 0 < size <= MAX_BYTES:
        raise UnsafeFileError(f"{one_line(path)} states {'x'.join(map(str, shape))} values; from 1 to {MAX_BYTES} are read")
    # One byte more than stated, never all there is: a gzip bomb stops here.
    data = file.read(size + 1)
    if len(data) < size:
        raise DataError(f"{one_line(path)} is cut short: {len(data)} of {size} bytes; download it again")
    if len(data) > size:
        raise UnsafeFileError(f"{one_line(path)} holds more than the {size} bytes its header states; download it again")
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape)


def _find(data_dir: Path) -> list[Path]:
    best: list[Path] = []
    for folder in (data_dir / name for name in FOLDERS):
        found = [p for stem in STEMS for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()]
        complete = [next((p for p in found if p.name.startswith(stem)), None) for stem in STEMS]
        if all(complete):
            return [p for p in complete if p is not None]
        best = max(best, found, key=len)
    missing = [stem for stem in STEMS if not any(p.name.startswith(stem) for p in best)]
    raise DataNotFoundError(
        f"MNIST is not in {one_line(data_dir / FOLDERS[0])}: put {', '.join(missing)} (plain or .gz) there, "
        "or name another folder with --data-dir"
    )


def _split(images_path: Path, labels_path: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if len(images) != len(labels):
        raise DataError(f"{one_line(images_path)} holds {len(images)} images but {labels_path.name} {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{one_line(labels_path)} holds the label {labels.max()}; MNIST has 0 to 9")
    pixels: Tensor = torch.from_numpy(images).unsqueeze(1)
    return Split(pixels, torch.from_numpy(labels.astype(np.int64)))
