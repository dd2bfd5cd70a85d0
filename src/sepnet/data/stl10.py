"""STL-10 (Coates, Lee, Ng 2011): 5,000 + 8,000 labelled colour images of 96x96, 10 classes, from the files of stl10_binary.

An image is 3 planes (R, G, B) of 96 columns of 96 bytes: column by column, not row by row. Labels are 1 to 10. The 100,000 images
without labels are not read, and ``sepnet data get`` does not unpack them. Mean and standard deviation are computed from the images
of the training set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sepnet.data._registry import dataset
from sepnet.data._source import Download, Source, title_of
from sepnet.data._types import RawData, ReadOptions, Split
from sepnet.errors import DataError, UnsafeFileError, one_line

__all__ = ["read_stl10"]

FOLDER = "stl10_binary"
SIDE = 96
MAX_IMAGES = 100_000
# Of the files in the archive, as torchvision (datasets/stl10.py) states them.
MD5 = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

SOURCE = Source(
    name="stl10",
    title="STL-10",
    folders=(FOLDER, "."),
    needs=tuple(MD5),
    downloads=(
        Download(
            name="stl10_binary.tar.gz",
            size=2_640_397_119,
            # As TensorFlow Datasets (url_checksums/stl10.txt) states it; its MD5 is 91f7769df0f17e558f3565bffb0c7dfb.
            sha256="f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
            mirrors=("https://ai.stanford.edu/~acoates/stl10", "http://ai.stanford.edu/~acoates/stl10"),
            into=FOLDER,
            unpacked=3_200_000_000,  # 113,000 images of 27,648 bytes are 3.12 GB, of which the labelled are 0.36
            kept=400_000_000,
            files=16,
            only=(*MD5, "class_names.txt", "fold_indices.txt"),
        ),
    ),
    homepage="https://cs.stanford.edu/~acoates/stl10/",
    licence="none stated; cite the paper (the images come from ImageNet)",
    citation="A. Coates, H. Lee, A. Y. Ng: An Analysis of Single-Layer Networks in Unsupervised Feature Learning. AISTATS, 2011",
)


@dataset("stl10", SOURCE)
def read_stl10(data_dir: Path, options: ReadOptions) -> RawData:
    """Read STL-10 from ``data_dir``/stl10_binary (or from ``data_dir`` when that is the folder itself).

    Raises:
        DataNotFoundError: the folder or one of its four files is not there.
        DataError: a file of another size, or with labels outside 1..10.
        UnsafeFileError: a file far larger than STL-10's.
    """
    files = SOURCE.find(data_dir)
    train, test = _split(files[0], files[1]), _split(files[2], files[3])
    title = title_of(SOURCE.title, [(path, MD5[path.name]) for path in files])
    return RawData(title, CLASSES, train, test=test)


def _split(images: Path, labels: Path) -> Split:
    pixels, numbers = _bytes(images), _bytes(labels)
    count, rest = divmod(len(pixels), 3 * SIDE * SIDE)
    if rest or not count:
        raise DataError(
            f"{one_line(images)} is cut short: its {len(pixels)} bytes are not a whole number of images of {3 * SIDE * SIDE}; "
            "unpack the archive again"
        )
    if len(numbers) != count:
        raise DataError(
            f"{one_line(images)} holds {count} images but {labels.name} {len(numbers)} labels; unpack the archive again"
        )
    if numbers.min() < 1 or numbers.max() > len(CLASSES):
        raise DataError(f"{one_line(labels)} must hold labels from 1 to 10, found {numbers.min()} to {numbers.max()}")
    rows = np.ascontiguousarray(pixels.reshape(count, 3, SIDE, SIDE).transpose(0, 3, 2, 1))
    return Split(torch.from_numpy(rows).permute(0, 3, 1, 2), torch.from_numpy(numbers.astype(np.int64) - 1))


def _bytes(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > MAX_IMAGES * 3 * SIDE * SIDE:
            raise UnsafeFileError(
                f"{one_line(path)} is far larger than a file of STL-10: {path.stat().st_size} bytes; nothing was read"
            )
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{one_line(path)} cannot be read: {one_line(error.strerror or error)}") from None
