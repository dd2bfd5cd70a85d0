"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 100 classes, from the Python pickles.

``cifar100`` has the fine labels, ``cifar100-coarse`` the superclasses; the images are the same, those of cifar-100-python. Mean and
standard deviation are the customary (.5071 .4865 .4409) and (.2673 .2564 .2762). A copy whose checksums are not those of the
canonical files is read as well, and its title says so.
"""

from __future__ import annotations

from pathlib import Path

from sepnet.data._cifar import MIRRORS, as_split, read_batch, title_of_batches
from sepnet.data._registry import dataset
from sepnet.data._source import Download, Source
from sepnet.data._types import RawData, ReadOptions
from sepnet.data._unpickle import read_pickle
from sepnet.errors import DataError, one_line

__all__ = ["read_cifar100", "read_cifar100_coarse"]

FOLDER = "cifar-100-python"
# Of the files in the archive, as torchvision (datasets/cifar.py) states them.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}

SOURCE = Source(
    name="cifar100",
    title="CIFAR-100",
    folders=(FOLDER, "."),
    needs=("train", "test", "meta"),
    downloads=(
        Download(
            name="cifar-100-python.tar.gz",
            size=169_001_437,
            # As Keras (datasets/cifar100.py) and torchvision's prototype state it; its MD5 is eb9058c3a382ffc7106e4002c42a8d85.
            sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            mirrors=MIRRORS,
            into=FOLDER,
            unpacked=200_000_000,  # 155.2 and 31.0 MB of images, names
            kept=200_000_000,
            files=16,
        ),
    ),
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated; cite the report",
    citation="A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto, 2009",
)


@dataset("cifar100", SOURCE)
def read_cifar100(data_dir: Path, options: ReadOptions) -> RawData:
    """Read CIFAR-100 with its 100 classes from ``data_dir``/cifar-100-python (or ``data_dir`` itself).

    Raises:
        DataNotFoundError: the folder, or train, test or meta in it, is not there.
        DataError: a file of another shape, with labels out of range or without the names of the classes.
        UnsafeFileError: a pickle that would run code.
    """
    return _read(data_dir, "fine", 100, "CIFAR-100")


@dataset("cifar100-coarse", SOURCE, "CIFAR-100 with its 20 superclasses for classes")
def read_cifar100_coarse(data_dir: Path, options: ReadOptions) -> RawData:
    """Read CIFAR-100 with its 20 superclasses; raises as ``read_cifar100``."""
    return _read(data_dir, "coarse", 20, "CIFAR-100, 20 superclasses")


def _read(data_dir: Path, level: str, count: int, title: str) -> RawData:
    train, test, meta = SOURCE.find(data_dir)
    classes = _class_names(meta, f"{level}_label_names", count)
    batches = [read_batch(path, f"{level}_labels", count, MD5[path.name]) for path in (train, test)]
    return RawData(
        title=title_of_batches(title, batches),
        classes=classes,
        train=as_split(batches[:1]),
        test=as_split(batches[1:]),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )


def _class_names(path: Path, key: str, count: int) -> tuple[str, ...]:
    values = read_pickle(path)[0].get(key)
    found = values if isinstance(values, list) else []
    names = tuple(one_line(name.decode("latin1") if isinstance(name, bytes) else name) for name in found)
    if len(names) != count or len(set(names)) != count:
        raise DataError(f"{one_line(path)}: '{key}' must hold {count} different names, found {len(set(names))}; unpack it again")
    return names
