"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 classes, from the Python pickles of cifar-10-batches-py.

Mean and standard deviation are the customary (.4914 .4822 .4465) and (.2470 .2435 .2616). A copy whose checksums are not those of
the canonical files is read as well, and its title says so: figures measured on it are not comparable with published ones.
"""

from __future__ import annotations

from pathlib import Path

from sepnet.data._cifar import MIRRORS, as_split, read_batch, title_of_batches
from sepnet.data._registry import dataset
from sepnet.data._source import Download, Source
from sepnet.data._types import RawData, ReadOptions

__all__ = ["read_cifar10"]

FOLDER = "cifar-10-batches-py"
# Of the files in the archive, as torchvision (datasets/cifar.py) states them.
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SOURCE = Source(
    name="cifar10",
    title="CIFAR-10",
    folders=(FOLDER, "."),
    needs=tuple(MD5),
    downloads=(
        Download(
            name="cifar-10-python.tar.gz",
            size=170_498_071,
            # As Keras (datasets/cifar10.py) and torchvision's prototype state it; its MD5 is c58f30108f718f92721af3b95e74349a.
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            mirrors=MIRRORS,
            into=FOLDER,
            unpacked=200_000_000,  # six batches of 31.0 MB, names, a page
            kept=200_000_000,
            files=16,
        ),
    ),
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated; cite the report",
    citation="A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto, 2009",
)


@dataset("cifar10", SOURCE)
def read_cifar10(data_dir: Path, options: ReadOptions) -> RawData:
    """Read CIFAR-10 from ``data_dir``/cifar-10-batches-py (or from ``data_dir`` when that is the folder itself).

    Raises:
        DataNotFoundError: the folder or one of its six batches is not there.
        DataError: a batch of another shape or with labels outside 0..9.
        UnsafeFileError: a pickle that would run code.
    """
    batches = [read_batch(path, "labels", len(CLASSES), MD5[path.name]) for path in SOURCE.find(data_dir)]
    return RawData(
        title=title_of_batches("CIFAR-10", batches),
        classes=CLASSES,
        train=as_split(batches[:-1]),
        test=as_split(batches[-1:]),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
