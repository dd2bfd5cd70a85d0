"""Tiny ImageNet (Le, Yang 2015): 100,000 + 10,000 colour images of 64x64, 200 classes, from the JPEG files of tiny-imagenet-200.

The labels of its test images were never published, so its validation images serve as the test split, as is custom; images to
validate on are carved from the training ones. Classes are numbered in the order of their WordNet numbers, the names of their
folders, as ImageFolder does. The decoded images are kept in the cache. Mean and standard deviation are computed from the images of
the training set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sepnet.data._cache import DecodeSettings
from sepnet.data._folder import read_scan
from sepnet.data._notes import some
from sepnet.data._registry import dataset
from sepnet.data._scan import FolderEntry, FolderScan, stamp_of
from sepnet.data._source import Download, Source, get_command
from sepnet.data._types import RawData, ReadOptions
from sepnet.errors import DataError, UnsafeFileError, one_line

__all__ = ["read_tiny_imagenet"]

FOLDER = "tiny-imagenet-200"
SIDE = 64
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 200, 100_000, 10_000
MAX_TEXT = 2**24  # words.txt, the longest, has 2.7 MB
VAL_NOTE = "tested on the validation images: the labels of Tiny ImageNet's test images were never published"

SOURCE = Source(
    name="tiny-imagenet",
    title="Tiny ImageNet",
    folders=(FOLDER, "."),
    needs=("wnids.txt", "words.txt", "train", "val/val_annotations.txt", "val/images"),
    downloads=(
        Download(
            name="tiny-imagenet-200.zip",
            size=248_100_043,
            # As TensorFlow Datasets (url_checksums/tiny_imagenet.txt) states it; its MD5 is 90528d7ca1a48142e341f4ef8d21d0de.
            sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            mirrors=("http://cs231n.stanford.edu", "https://zenodo.org/records/10720917/files"),
            into=FOLDER,
            unpacked=300_000_000,  # 120,000 images of 1.9 KB on average, 200 lists of boxes of 15 to 30 KB, words.txt
            kept=300_000_000,
            files=120_609,
        ),
    ),
    homepage="http://cs231n.stanford.edu/",
    licence="non-commercial research and education (ImageNet's terms)",
    citation="Y. Le, X. Yang: Tiny ImageNet Visual Recognition Challenge. CS231N, Stanford, 2015",
)


@dataset("tiny-imagenet", SOURCE)
def read_tiny_imagenet(data_dir: Path, options: ReadOptions) -> RawData:
    """Read Tiny ImageNet from ``data_dir``/tiny-imagenet-200 (or from ``data_dir`` when that is the folder itself).

    A folder with some of the classes or images only is read as well; title and notes say so.

    Raises:
        DataNotFoundError: the folder, or a file that it must have, is not there.
        DataError: a list that does not agree with the folders and images, or no readable image of a class.
        ImageError: an unreadable image, with ``on_bad`` "error".
        OutputError: the cache of decoded images cannot be written.
    """
    root = SOURCE.find(data_dir)[0].parent
    wnids = _class_numbers(root / "wnids.txt")
    entries = [entry for label, wnid in enumerate(wnids) for entry in _training(root, wnid, label)]
    trained = len(entries)
    entries += _validation(root, wnids)
    scan = FolderScan(root, "split", _names(root / "words.txt", wnids), tuple(entries), (VAL_NOTE,))
    side = options.size or SIDE
    settings = DecodeSettings((side, side), options.channels or 3, options.mode)
    raw = read_scan(scan, settings, options, get_command(SOURCE.name, data_dir))
    if (len(wnids), trained, len(entries) - trained) == (CLASSES, TRAIN_IMAGES, VAL_IMAGES):
        return replace(raw, title="Tiny ImageNet")
    part = f"{len(wnids)} of {CLASSES} classes, {trained:,} of {TRAIN_IMAGES:,} training images"
    note = f"a part of Tiny ImageNet ({part}): accuracies on it are not comparable with those on all of it"
    return replace(raw, title=f"Tiny ImageNet (part: {len(wnids)} classes)", notes=(*raw.notes, note))


def _class_numbers(path: Path) -> list[str]:
    """The WordNet numbers of the classes, sorted."""
    wnids = [line.strip() for line in _lines(path) if line.strip()]
    odd = [wnid for wnid in wnids if not (wnid.isascii() and wnid.isalnum())]
    if odd or len(set(wnids)) != len(wnids) or not 2 <= len(wnids) <= CLASSES:
        found = f"{some(odd)} among them" if odd else f"{len(wnids)}, {len(set(wnids))} of them different"
        raise DataError(f"{one_line(path)} must list 2 to {CLASSES} WordNet numbers such as n01443537, found {found}")
    return sorted(wnids)


def _names(path: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """For each class the first of its names; with its number behind it where two classes share that name."""
    words = dict(line.rstrip("\r\n").split("\t", 1) for line in _lines(path) if "\t" in line)
    first = [one_line(words.get(wnid, wnid).split(",")[0].strip()) for wnid in wnids]
    return tuple(name if first.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(first, wnids, strict=True))


def _training(root: Path, wnid: str, label: int) -> list[FolderEntry]:
    place = f"train/{wnid}/images"
    found = [FolderEntry("train", label, f"{place}/{file.name}", stamp_of(file)) for file in _images(root / place)]
    if not found:
        raise DataError(f"no images in {one_line(root / place)}; unpack the archive again")
    return found


def _validation(root: Path, wnids: Sequence[str]) -> list[FolderEntry]:
    """The validation images by label and name; their file of labels and their folder must agree."""
    path = root / "val" / "val_annotations.txt"
    number = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for count, line in enumerate(_lines(path), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if wnid not in number or name in labels:
            raise DataError(
                f"{one_line(path)}, line {count}: expected a new file name and a class of wnids.txt, found {one_line(line, 60)}"
            )
        labels[name] = number[wnid]
    files = {file.name: file for file in _images(root / "val" / "images")}
    if files.keys() != labels.keys():
        strays = sorted(files.keys() ^ labels.keys())
        raise DataError(
            f"{one_line(path)} lists {len(labels)} images and {one_line(path.parent / 'images')} holds {len(files)}, "
            f"which do not agree: {some(strays)}; unpack the archive again"
        )
    ordered = sorted(labels, key=lambda name: (labels[name], name))
    return [FolderEntry("test", labels[name], f"val/images/{name}", stamp_of(files[name])) for name in ordered]


def _images(folder: Path) -> list[os.DirEntry[str]]:
    """The JPEG files of a folder by name; a link is none of them."""
    try:
        with os.scandir(folder) as listing:
            found = [entry for entry in listing if entry.name.endswith(".JPEG") and entry.is_file(follow_symlinks=False)]
    except OSError as error:
        raise DataError(f"cannot read the folder {one_line(folder)}: {one_line(error.strerror or error)}") from None
    return sorted(found, key=lambda entry: entry.name)


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise DataError(f"{one_line(path)} cannot be read: {one_line(error.strerror or error)}") from None
    if len(text) > MAX_TEXT:
        raise UnsafeFileError(f"{one_line(path)} is far longer than the file of that name in Tiny ImageNet; nothing more was read")
    return text.splitlines()
