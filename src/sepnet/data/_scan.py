"""What lies in an image folder: root/{train,val,test}/<class>/... or root/<class>/...

Hidden files and folders are passed over, as are files whose names do not end as an image's does. A link is followed only while it
stays below the root. Names are compared as bytes, so the order, and with it every label, is the same on every machine.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sepnet.data._decode import IMAGE_SUFFIXES
from sepnet.errors import DataError, DataNotFoundError, one_line

__all__ = ["FolderEntry", "FolderScan", "scan_folder"]

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ORDER = ("train", "val", "test")


class FolderEntry(NamedTuple):
    """One image file: its split, label, path relative to the root, size in bytes and time of change in ns."""

    split: str
    label: int
    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class FolderScan:
    """The files of an image folder.

    Attributes:
        root: the folder.
        layout: "split" for root/{train,val,test}/<class>/, "flat" for root/<class>/ (then every file is in "train").
        classes: names as printed: control and undecodable characters escaped.
        entries: all image files, by split, label and path.
        notes: lines the user should read.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    entries: tuple[FolderEntry, ...]
    notes: tuple[str, ...]

    def counts(self) -> dict[str, list[int]]:
        """Number of files of each class in each split that has any."""
        tally = Counter((entry.split, entry.label) for entry in self.entries)
        present = [split for split in ORDER if any(entry.split == split for entry in self.entries)]
        return {split: [tally[split, label] for label in range(len(self.classes))] for split in present}


class _Found(NamedTuple):
    split: str
    class_name: str
    path: str
    size: int
    mtime_ns: int


class _Walker:
    """Collects the files below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.found: list[_Found] = []
        self.outside = 0
        self.ignored = 0

    def children(self, folder: str) -> list[os.DirEntry[str]]:
        """Visible entries by name, without links that leave the root."""
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise DataError(f"cannot read the folder {one_line(folder)}: {one_line(error.strerror or error)}") from None
        return [entry for entry in entries if not entry.name.startswith(".") and self._inside(entry)]

    def folders(self, folder: str) -> list[os.DirEntry[str]]:
        return [entry for entry in self.children(folder) if entry.is_dir()]

    def collect(self, folder: str, split: str, class_name: str, above: tuple[str, ...] = ()) -> None:
        """All image files below ``folder``; ``above`` are the real folders we came through, to end at a link to one of them."""
        real = os.path.realpath(folder)
        if real in above:
            return
        for entry in self.children(folder):
            if entry.is_dir():
                self.collect(entry.path, split, class_name, (*above, real))
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and entry.is_file():  # noqa: PTH122 - speed over many files
                stat = entry.stat()
                path = os.path.relpath(entry.path, self.root)
                self.found.append(_Found(split, class_name, path, stat.st_size, stat.st_mtime_ns))
            else:
                self.ignored += 1

    def _inside(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink():
            return True
        real = os.path.realpath(entry.path)
        if real == self.real_root or real.startswith(self.real_root + os.sep):
            return True
        self.outside += 1
        return False

    def notes(self) -> list[str]:
        lines = []
        if self.outside:
            lines.append(f"{self.outside} link(s) that lead out of {one_line(self.root)} were not followed")
        if self.ignored:
            lines.append(f"{self.ignored} file(s) that are not images were passed over")
        return lines


def scan_folder(root: Path) -> FolderScan:
    """List the images of ``root`` without opening them.

    Raises:
        DataNotFoundError: no such folder.
        DataError: a folder that cannot be read, or no image in any class folder.
    """
    if not root.is_dir():
        raise DataNotFoundError(f"no folder {one_line(root)}")
    walker = _Walker(root)
    top = walker.folders(os.fspath(root))
    parts = {entry.name: entry.path for entry in top if entry.name in SPLITS}
    split_layout = "train" in parts and bool(walker.folders(parts["train"]))
    if not split_layout and top and len(parts) == len(top):
        raise DataError(
            f"{one_line(root)} has {', '.join(parts)} but no class folders in train; expected train/<class>/ or <class>/"
        )
    walker.outside = walker.ignored = 0  # the look ahead above has counted
    extra: list[str] = []
    if split_layout:
        names = [SPLITS[name] for name in parts]
        if len(set(names)) < len(names):
            raise DataError(f"{one_line(root)} has more than one validation folder ({', '.join(parts)}); keep one")
        for name, path in parts.items():
            for folder in walker.folders(path):
                walker.collect(folder.path, SPLITS[name], folder.name)
        others = [one_line(entry.name) for entry in top if entry.name not in SPLITS]
        extra = [f"folders beside train were passed over: {', '.join(others)}"] if others else []
    else:
        for folder in top:
            walker.collect(folder.path, "train", folder.name)
    if not walker.found:
        raise DataError(
            f"no images in {one_line(root)}; expected {one_line(root)}/<class>/*.jpg or {one_line(root)}/train/<class>/*.jpg"
        )
    return _assemble(root, "split" if split_layout else "flat", walker, extra)


def _assemble(root: Path, layout: str, walker: _Walker, extra: list[str]) -> FolderScan:
    names = sorted({found.class_name for found in walker.found}, key=os.fsencode)
    shown = tuple(one_line(name, limit=2000) for name in names)
    if len(set(shown)) < len(shown):
        raise DataError(f"two class folders of {one_line(root)} have names that print the same; rename one of them")
    labels = {name: label for label, name in enumerate(names)}
    entries = [FolderEntry(f.split, labels[f.class_name], f.path, f.size, f.mtime_ns) for f in walker.found]
    entries.sort(key=lambda entry: (ORDER.index(entry.split), entry.label, os.fsencode(entry.path)))
    return FolderScan(root, layout, shown, tuple(entries), tuple(walker.notes() + extra))
