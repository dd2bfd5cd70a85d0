"""What lies in an image folder: root/{train,val,test}/<class>/... or root/<class>/...

The names of the splits may be spelt as in ``SPLITS``, in capitals or not. Hidden files and folders are passed over, as are files
whose names do not end as an image's does, and folders that hold runs of sepnet. Names are compared as bytes, so the order, and with
it every label, is the same on every machine.

A link is followed only while it stays below the root. A link to a folder is not followed if it leads to a folder that it lies in,
or to where another class folder lies: each image would have two labels. Each folder is read once for a class, so a ring of links
ends.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from sepnet.data._decode import IMAGE_SUFFIXES
from sepnet.data._notes import some
from sepnet.errors import DataError, DataNotFoundError, one_line

__all__ = ["SPLITS", "FileStamp", "FolderEntry", "FolderScan", "class_numbers", "scan_folder", "stamp_of"]

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
ORDER = ("train", "val", "test")
PREFERRED = ("test", "val", "train")  # where an evaluation looks first, behind what it was told


class FileStamp(NamedTuple):
    """What tells that a file is the one it was: size in bytes, times of modification and of change in ns, inode."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class FolderEntry(NamedTuple):
    """One image file: its split, label, path relative to the root, and stamp."""

    split: str
    label: int
    path: str
    stamp: FileStamp


@dataclass(frozen=True)
class FolderScan:
    """The files of an image folder.

    Attributes:
        root: the folder.
        layout: "split" for root/{train,val,test}/<class>/, "flat" for root/<class>/ (then every file is in one split).
        classes: names as printed: control and undecodable characters escaped.
        entries: all image files, by split, label and path.
        notes: lines the user should read.
        part: of a folder listed whole, which of its split folders it was; None where it has none.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    entries: tuple[FolderEntry, ...]
    notes: tuple[str, ...]
    part: str | None = None

    def counts(self) -> dict[str, list[int]]:
        """Number of files of each class in each split that has any."""
        tally = Counter((entry.split, entry.label) for entry in self.entries)
        present = [split for split in ORDER if any(entry.split == split for entry in self.entries)]
        return {split: [tally[split, label] for label in range(len(self.classes))] for split in present}


class _Part(NamedTuple):
    """A folder of class folders, and the split that its images are for."""

    split: str
    path: str


class _Found(NamedTuple):
    split: str
    class_name: str
    path: str
    stamp: FileStamp


@dataclass
class _ClassFolder:
    """What the walk through one class folder, really at ``real``, has met."""

    real: str
    files: list[tuple[str, FileStamp]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)


class _Walker:
    """Collects the files below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.taken: set[str] = set()  # the class folders, where they really are
        self.found: list[_Found] = []
        self.skipped: Counter[str] = Counter()
        self.runs: list[str] = []
        self.hidden: list[str] = []
        self.empty: list[str] = []

    def collect(self, parts: Iterable[_Part]) -> None:
        """The images of all class folders of ``parts``."""
        folders = [(part.split, entry) for part in parts for entry in self._class_folders(part.path)]
        self.taken = {os.path.realpath(entry.path) for _, entry in folders if not entry.is_symlink()}
        for split, entry in folders:
            if not self._may_follow(entry, None, self.skipped):
                continue
            walk = _ClassFolder(os.path.realpath(entry.path))
            self.taken.add(walk.real)
            if self._collect(entry.path, walk):
                self.found += [_Found(split, entry.name, path, stamp) for path, stamp in walk.files]
                self.skipped += walk.skipped
                if not walk.files:
                    self.empty.append(os.path.relpath(entry.path, self.root))
            else:
                self.runs.append(os.path.relpath(entry.path, self.root))

    def _class_folders(self, folder: str) -> list[os.DirEntry[str]]:
        entries = [entry for entry in _listing(folder) if _is_folder(entry)]
        self.hidden += [
            os.path.relpath(entry.path, self.root) for entry in entries if entry.name.startswith(".") and _has_images(entry.path)
        ]
        return [entry for entry in entries if not entry.name.startswith(".")]

    def _collect(self, folder: str, walk: _ClassFolder) -> bool:
        """All image files below ``folder``; False, and no more is read, as soon as it turns out to hold a run."""
        real = os.path.realpath(folder)
        if real in walk.seen:
            return True
        walk.seen.add(real)
        entries = _listing(folder)
        if _is_run(entries):
            return False
        for entry in entries:
            if entry.name.startswith(".") or not self._may_follow(entry, walk.real, walk.skipped):
                continue
            if _is_folder(entry):
                if not self._collect(entry.path, walk):
                    return False
            elif _is_image_file(entry):
                walk.files.append((os.path.relpath(entry.path, self.root), stamp_of(entry)))
            else:
                walk.skipped["ignored"] += 1
        return True

    def _may_follow(self, entry: os.DirEntry[str], own: str | None, skipped: Counter[str]) -> bool:
        """Whether ``entry`` is no link, or one that may be followed from the class folder at ``own``."""
        if not entry.is_symlink():
            return True
        real = os.path.realpath(entry.path)
        if not _within(real, self.real_root):
            skipped["outside"] += 1
            return False
        if _is_folder(entry):
            above = _within(os.path.realpath(os.path.dirname(entry.path)), real)  # noqa: PTH120 - a name as the system gave it
            others = (folder for folder in self.taken if folder != own)
            if above or any(_within(real, folder) or _within(folder, real) for folder in others):
                skipped["circular"] += 1
                return False
        return True

    def notes(self) -> list[str]:
        lines = []
        if self.runs:
            lines.append(
                f"{len(self.runs)} folder(s) that hold runs of sepnet are no classes and were passed over: {some(self.runs)}"
            )
        if self.empty:
            lines.append(
                f"{len(self.empty)} folder(s) without any image of a type that is read were passed over: {some(self.empty)}"
            )
        if self.hidden:
            lines.append(f"{len(self.hidden)} hidden folder(s) with images were passed over: {some(self.hidden)}")
        if self.skipped["outside"]:
            lines.append(f"{self.skipped['outside']} link(s) that lead out of {one_line(self.root)} were not followed")
        if self.skipped["circular"]:
            lines.append(f"{self.skipped['circular']} link(s) to a folder above them or of another class were not followed")
        if self.skipped["ignored"]:
            lines.append(f"{self.skipped['ignored']} file(s) of no type that is read, or links to nothing, were passed over")
        return lines


def scan_folder(root: Path, *, whole: bool = False, part: str = "test", classes: Sequence[str] | None = None) -> FolderScan:
    """List the images of ``root`` without opening them.

    Args:
        root: root/{train,val,test}/<class>/ or root/<class>/.
        whole: list one set, all as "test": the first of ``part``, test, val and train that has class folders, or else
            root/<class>/.
        classes: names that number the labels; None for those found, in order.

    Raises:
        DataNotFoundError: no such folder.
        DataError: a folder that cannot be read, two folders for one split, no image in any class folder, or a class folder that is
            not among ``classes``.
    """
    if not root.is_dir():
        raise DataNotFoundError(f"no folder {one_line(root)}")
    walker = _Walker(root)
    layout, parts, beside = _layout(root, part if whole else None)
    walker.collect(parts)
    if not walker.found:
        also = "".join(f"; {note}" for note in walker.notes())
        raise DataError(
            f"no images in {one_line(root)}; expected {one_line(root)}/<class>/*.jpg or {one_line(root)}/train/<class>/*.jpg{also}"
        )
    found = _assemble(root, layout, walker, beside, classes)
    return replace(found, part=_split_of(parts[0].path)) if whole and layout == "split" else found


def class_numbers(found: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """For each name of ``found`` its place in ``classes``.

    Raises:
        DataError: a name that is not there; ``where`` says whose it is.
    """
    number = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in found if name not in number]
    if unknown:
        raise DataError(f"{where} has {len(unknown)} class(es) that are not among the {len(classes)} known ones: {some(unknown)}")
    return [number[name] for name in found]


def _split_of(folder: str) -> str:
    return SPLITS[Path(folder).name.lower()]


def _layout(root: Path, wanted: str | None) -> tuple[str, list[_Part], list[str]]:
    """ "split" or "flat", the folders that hold class folders, and notes on what lies beside them.

    Args:
        wanted: the split of a folder that is listed whole; None for all, to train on.
    """
    whole = wanted is not None
    visible = _visible_folders(os.fspath(root))
    real_root = os.path.realpath(root)
    top = [entry for entry in visible if _within(os.path.realpath(entry.path), real_root)]
    parts: dict[str, list[os.DirEntry[str]]] = {split: [] for split in ORDER}
    for entry in top:
        if entry.name.lower() in SPLITS:
            parts[SPLITS[entry.name.lower()]].append(entry)
    order = dict.fromkeys([wanted, *PREFERRED] if wanted is not None else PREFERRED)
    filled = [split for split in order if any(_visible_folders(entry.path) for entry in parts[split])]
    if whole and filled:
        chosen = filled[:1]
    elif not whole and "train" in filled:
        chosen = [split for split in ORDER if parts[split]]
    else:
        if not whole:
            _refuse_without_train(root, top, filled)
        return "flat", [_Part("test" if whole else "train", os.fspath(root))], []
    for split in chosen:
        if len(parts[split]) > 1:
            names = some([entry.name for entry in parts[split]])
            raise DataError(f"{one_line(root)} has more than one folder for the {split} split ({names}); keep one")
    used = {parts[split][0].name for split in chosen}
    others = [entry.name for entry in visible if entry.name not in used]
    beside = [f"folders beside {chosen[0]} were passed over: {some(others)}"] if others else []
    return "split", [_Part("test" if whole else split, parts[split][0].path) for split in chosen], beside


def _refuse_without_train(root: Path, top: Sequence[os.DirEntry[str]], filled: Sequence[str]) -> None:
    """A root of nothing but val/ and test/ (and runs) has no training images, and no classes called "val" and "test"."""
    splits = [entry.name for entry in top if entry.name.lower() in SPLITS]
    others = [entry for entry in top if entry.name.lower() not in SPLITS]
    if splits and (filled or not others) and all(_holds_runs(entry.path) for entry in others):
        raise DataError(
            f"{one_line(root)} has {some(splits)} but no class folders in train; expected train/<class>/ or <class>/ to train on "
            "(sepnet val takes a folder without train)"
        )


def _assemble(root: Path, layout: str, walker: _Walker, beside: list[str], classes: Sequence[str] | None) -> FolderScan:
    names = sorted({found.class_name for found in walker.found}, key=os.fsencode)
    shown = tuple(one_line(name, limit=2000) for name in names)
    if len(set(shown)) < len(shown):
        raise DataError(f"two class folders of {one_line(root)} have names that print the same; rename one of them")
    asked = shown if classes is None else tuple(classes)
    labels = dict(zip(names, class_numbers(shown, asked, one_line(root)), strict=True))
    entries = [FolderEntry(f.split, labels[f.class_name], f.path, f.stamp) for f in walker.found]
    entries.sort(key=lambda entry: (ORDER.index(entry.split), entry.label, os.fsencode(entry.path)))
    return FolderScan(root, layout, asked, tuple(entries), tuple(walker.notes() + beside))


def _listing(folder: str) -> list[os.DirEntry[str]]:
    """All entries of a folder by name."""
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(
            f"cannot read the folder {one_line(folder)}: {one_line(error.strerror or error)}; make it readable, or take it out"
        ) from None


def _visible_folders(folder: str) -> list[os.DirEntry[str]]:
    return [entry for entry in _listing(folder) if not entry.name.startswith(".") and _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return _answer(entry.is_dir)


def _is_image_file(entry: os.DirEntry[str]) -> bool:
    return _is_image(entry.name) and _answer(entry.is_file)


def _answer(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - speed over many files


def _is_run(entries: Iterable[os.DirEntry[str]]) -> bool:
    """Whether a folder of these entries is a run's: a finished one's record, or checkpoint and configuration of one under way."""
    names = {entry.name for entry in entries}
    return "run.json" in names or {"last.pt", "config.yaml"} <= names


def _holds_runs(folder: str) -> bool:
    """Whether a folder is a run's or has such folders in it."""
    return _is_run(_listing(folder)) or any(_is_run(_listing(entry.path)) for entry in _visible_folders(folder))


def _has_images(folder: str) -> bool:
    """Whether there are images in a hidden folder, as in those that editors and version control make there are not."""
    try:
        return any(_is_image(name) for name in os.listdir(folder))  # noqa: PTH208 - names are all we need
    except OSError:
        return False


def _within(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies below it; both real."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def stamp_of(entry: os.DirEntry[str]) -> FileStamp:
    """What tells the file ``entry`` from any other, and from itself once it is changed."""
    stat = entry.stat()
    return FileStamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
