"""SVHN (Netzer et al. 2011), cropped digits: 73,257 + 26,032 colour images of 32x32, 10 classes.

``svhn`` trains on train_32x32.mat, ``svhn-extra`` on that and the 531,131 easier images of extra_32x32.mat together; both test on
test_32x32.mat. The files are MATLAB's, version 5: X uint8 (32, 32, 3, N) and y (N, 1), in which the digit 0 has the label 10. Mean
and standard deviation are computed from the training images.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from sepnet.data._registry import dataset
from sepnet.data._source import Download, Source, title_of
from sepnet.data._types import RawData, ReadOptions, Split
from sepnet.errors import DataError, UnsafeFileError, one_line

__all__ = ["read_svhn", "read_svhn_extra"]

SHAPE = (32, 32, 3)
MAX_BYTES = 2**31  # the largest file, extra, unpacks to 1.63 GB
BLOCK = 2**20
COMPRESSED = 15  # the type of a compressed element in a MATLAB 5 file
MIRRORS = ("http://ufldl.stanford.edu/housenumbers",)

# Sizes and SHA-256 as TensorFlow Datasets (url_checksums/svhn_cropped.txt) states them; their MD5s (torchvision's datasets/svhn.py)
# are e26dedcc434d2e4c54c9b2d4a06d8373, eb5a983be6a315427106f1b164d9cef3 and a93ce644f1a588dc4d68dda5feec44a7.
TRAIN, TEST, EXTRA = (
    Download(name, size, sha256, MIRRORS, into=name, kept=size)
    for name, size, sha256 in (
        ("train_32x32.mat", 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        ("test_32x32.mat", 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
        ("extra_32x32.mat", 1_329_278_602, "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
    )
)


def _source(name: str, title: str, *downloads: Download) -> Source:
    return Source(
        name=name,
        title=title,
        folders=(".", "svhn", "SVHN"),
        needs=tuple(download.name for download in downloads),
        downloads=downloads,
        homepage="http://ufldl.stanford.edu/housenumbers/",
        licence="non-commercial use only",
        citation="Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng: Reading Digits in Natural Images with Unsupervised "
        "Feature Learning. NIPS Workshop on Deep Learning and Unsupervised Feature Learning, 2011",
    )


PLAIN = _source("svhn", "SVHN", TRAIN, TEST)
WITH_EXTRA = _source("svhn-extra", "SVHN with extra images", TRAIN, TEST, EXTRA)


@dataset("svhn", PLAIN)
def read_svhn(data_dir: Path, options: ReadOptions) -> RawData:
    """Read SVHN from the .mat files in ``data_dir``, ``data_dir``/svhn or ``data_dir``/SVHN.

    Raises:
        DataNotFoundError: a file is not there.
        DataError: a file that is no MATLAB 5 file, is cut short, or holds arrays of other shapes, types or values.
        UnsafeFileError: a file that unpacks to more than any of SVHN's does.
    """
    return _read(PLAIN, data_dir)


@dataset("svhn-extra", WITH_EXTRA, "SVHN with the 531,131 extra images among the training images: 604,388 + 26,032")
def read_svhn_extra(data_dir: Path, options: ReadOptions) -> RawData:
    """Read SVHN with the extra images among the training images, after the others; raises as ``read_svhn``.

    Needs some 4 GB of memory.
    """
    return _read(WITH_EXTRA, data_dir)


def _read(source: Source, data_dir: Path) -> RawData:
    train, test, *extra = source.find(data_dir)
    published = {download.name: download.sha256 for download in source.downloads}
    images, held_out = _split([train, *extra]), _split([test])
    title = title_of(source.title, [(path, published[path.name]) for path in (train, test, *extra)])
    return RawData(title, tuple("0123456789"), images, test=held_out, characters=True)


def _split(paths: Sequence[Path]) -> Split:
    """The images and labels of the files, one after the other; one copy of the pixels, as they may be more than a gigabyte."""
    counts = [_count_images(path) for path in paths]
    pixels = np.empty((sum(counts), *SHAPE), np.uint8)
    labels = np.empty(sum(counts), np.int64)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        images, found = _load(path)
        # MATLAB's first index is the innermost: the copy turns (width, height, channel) of each image into rows of pixels
        pixels[start : start + count] = images.transpose(3, 0, 1, 2)
        labels[start : start + count] = _digits(found, path)
        start += count
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels))


def _count_images(path: Path) -> int:
    """How many images the file states in its headers, after seeing that it is whole and what scipy may unpack of it."""
    from scipy.io import whosmat  # a third of a second to import: only for who reads this data set

    try:
        with path.open("rb") as file:
            _check_container(file, path)
    except OSError as error:
        raise DataError(f"{one_line(path)} cannot be read: {one_line(error.strerror or error)}") from None
    found = {name: (tuple(shape), kind) for name, shape, kind in _ask(whosmat, path)}
    for name in ("X", "y"):
        if name not in found:
            raise DataError(f"{one_line(path)} holds no array {name}, only {one_line(', '.join(sorted(found)) or 'nothing')}")
    shape, kind = found["X"]
    if len(shape) != 4 or shape[:3] != SHAPE or shape[3] < 1 or kind != "uint8":
        raise DataError(f"{one_line(path)}: X must be uint8 (32, 32, 3, images), found {one_line(kind)} {one_line(shape)}")
    label_shape, label_kind = found["y"]
    if math.prod(label_shape) != shape[3] or max(label_shape) != shape[3] or label_kind not in ("uint8", "double"):
        raise DataError(
            f"{one_line(path)}: y must be uint8 ({shape[3]}, 1), as X has {shape[3]} images; "
            f"found {one_line(label_kind)} {one_line(label_shape)}"
        )
    return int(shape[3])


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """X and y, and nothing else that the file may hold; ``_count_images`` has looked at their headers."""
    from scipy.io import loadmat

    values = _ask(loadmat, path, variable_names=("X", "y"))
    images, labels = values["X"], values["y"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or not isinstance(labels, np.ndarray):
        raise DataError(f"{one_line(path)}: X and y are not stored as the numbers that their headers state")
    return images, labels.reshape(-1)


def _ask(function: Any, path: Path, **options: object) -> Any:
    """scipy's answer, or one line: on a damaged file its readers fail in any way that one of their steps can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a name that occurs twice, for one
            return function(path, **options)
    except Exception as error:
        raise DataError(f"{one_line(path)} is damaged ({type(error).__name__}: {one_line(error, 80)}); fetch it again") from None


def _digits(labels: np.ndarray, path: Path) -> np.ndarray:
    """The labels 1..10 as digits: 10 is 0."""
    if not np.isin(labels, np.arange(1, 11)).all():
        raise DataError(f"{one_line(path)}: y must hold whole numbers from 1 to 10, found {labels.min()} to {labels.max()}")
    return labels.astype(np.int64) % 10


def _check_container(file: BinaryIO, path: Path) -> None:
    """See that the file is a MATLAB 5 one, that every element in it is whole, and that all unpack to ``MAX_BYTES`` at most.

    The elements are unpacked block by block and thrown away: scipy takes a size from the file and unpacks to it in one piece.
    """
    header = file.read(128)
    if header.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise DataError(f"{one_line(path)} is a MATLAB 7.3 (HDF5) file, which SVHN's are not; fetch it again, or save it with -v6")
    order = {b"IM": "<", b"MI": ">"}.get(header[126:])
    if order is None or struct.unpack(f"{order}H", header[124:126])[0] != 0x0100:
        raise DataError(f"{one_line(path)} is not a MATLAB 5 file (SVHN's are); fetch it again")
    total = 0
    while tag := file.read(8):
        kind, size = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, BLOCK)
        for unpacked in _unpacked(file, size, path) if kind == COMPRESSED else _plain(file, size, path):
            total += unpacked
            if total > MAX_BYTES:
                raise UnsafeFileError(
                    f"{one_line(path)} unpacks to more than {MAX_BYTES} bytes, which no file of SVHN does: refused"
                )


def _plain(file: BinaryIO, size: int, path: Path) -> Sequence[int]:
    """The bytes of an element that is not compressed, as sizes of blocks."""
    start = file.tell()
    end = file.seek(0, 2)
    if start + size > end:
        raise DataError(f"{one_line(path)} is cut short: {end - start} of {size} bytes; fetch it again")
    file.seek(start + size)
    return (size,)


def _unpacked(file: BinaryIO, size: int, path: Path) -> Any:
    """Unpack an element of ``size`` bytes; yields the sizes of the blocks that come out."""
    stream = zlib.decompressobj()
    left = size
    try:
        while left and (block := file.read(min(left, BLOCK))):
            left -= len(block)
            while block and not stream.eof:
                yield len(stream.decompress(block, BLOCK))
                block = stream.unconsumed_tail
    except zlib.error as error:
        raise DataError(f"{one_line(path)} is damaged: {one_line(error)}; fetch it again") from None
    if left or not stream.eof:
        raise DataError(f"{one_line(path)} is cut short: {size - left} of {size} bytes; fetch it again")
