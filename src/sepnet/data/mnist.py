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

from sepnet.data._registry import dataset
from sepnet.data._source import Download, Source
from sepnet.data._types import RawData, ReadOptions, Split
from sepnet.errors import DataError, UnsafeFileError, one_line

__all__ = ["read_idx", "read_mnist"]

MAGICS = {3: 2051, 1: 2049}
MAX_BYTES = 2**30
# sha256 over the pixels and labels of all four files, in the order of GZIPPED.
CANONICAL = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"
# Size and SHA-256 of the gzipped files as TensorFlow Datasets (url_checksums/mnist.txt) states them, and the size unpacked.
GZIPPED = {
    "train-images-idx3-ubyte": (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 47_040_016),
    "train-labels-idx1-ubyte": (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 60_008),
    "t10k-images-idx3-ubyte": (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 7_840_016),
    "t10k-labels-idx1-ubyte": (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 10_008),
}

SOURCE = Source(
    name="mnist",
    title="MNIST",
    folders=("MNIST/raw", "mnist", "."),
    needs=tuple(GZIPPED),
    suffixes=("", ".gz"),
    downloads=tuple(
        Download(
            name=f"{stem}.gz",
            size=size,
            sha256=sha256,
            # The publisher's own server no longer hands them out; these are PyTorch's and TensorFlow's copies.
            mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
            into=f"MNIST/raw/{stem}",
            unpacked=unpacked,
            kept=unpacked,
        )
        for stem, (size, sha256, unpacked) in GZIPPED.items()
    ),
    homepage="http://yann.lecun.com/exdb/mnist/",
    licence="CC BY-SA 3.0",
    citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document Recognition. 1998",
)


@dataset("mnist", SOURCE)
def read_mnist(data_dir: Path, options: ReadOptions) -> RawData:
    """Read MNIST from ``data_dir``/MNIST/raw, ``data_dir``/mnist or ``data_dir``.

    Raises:
        DataNotFoundError: the four files are in none of these.
        DataError: a header, a size or a label that is wrong.
        UnsafeFileError: a file that unpacks to more than its header states.
    """
    paths = SOURCE.find(data_dir)
    arrays = [read_idx(path, ndim=3 if "idx3" in path.name else 1) for path in paths]
    train = _split(paths[0], paths[1], arrays[0], arrays[1])
    test = _split(paths[2], paths[3], arrays[2], arrays[3])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(f"{one_line(paths[2])} holds images of another size than {paths[0].name}; unpack MNIST again")
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    title = "MNIST" if digest.hexdigest() == CANONICAL else "MNIST (modified copy)"
    return RawData(title, tuple("0123456789"), train, test=test, mean=(0.1307,), std=(0.3081,), characters=True)


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


def _split(images_path: Path, labels_path: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if len(images) != len(labels):
        raise DataError(f"{one_line(images_path)} holds {len(images)} images but {labels_path.name} {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{one_line(labels_path)} holds the label {labels.max()}; MNIST has 0 to 9")
    pixels: Tensor = torch.from_numpy(images).unsqueeze(1)
    return Split(pixels, torch.from_numpy(labels.astype(np.int64)))
