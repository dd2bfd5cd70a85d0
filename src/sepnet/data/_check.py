"""What is wrong with an image folder, before a night of training on it: ``check_folder``.

Every file is read and decoded. Byte-identical files are found by sha256: twice in a split they waste time, under two classes one
label is wrong, in two splits the accuracy is measured on images that were trained on.
"""

from __future__ import annotations

import hashlib
import io
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from sepnet.data._decode import ImageHeader, crop_note, decode_measured, loses_half
from sepnet.data._notes import NAMED, some
from sepnet.data._parallel import ordered_map
from sepnet.data._scan import FolderEntry, FolderScan, scan_folder
from sepnet.errors import DataError, one_line

__all__ = ["FolderReport", "SizeRange", "check_folder"]

PROBE = (32, 32)
BLOCK = 32


class SizeRange(NamedTuple):
    """Smallest, median and largest of a measure of the images, in pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class FolderReport:
    """The findings about an image folder; file names are relative to ``root`` and escaped for printing.

    Attributes:
        root: the folder.
        layout: "split" (root/{train,val,test}/<class>/) or "flat" (root/<class>/, all counted as "train").
        classes: class names in the order of the labels.
        counts: split -> class -> number of image files.
        imbalance: training files of the largest class divided by those of the smallest; None when a class has none.
        height, width: of the readable images, EXIF orientation applied; None when there is none.
        modes, formats: Pillow mode and file format -> number of readable images.
        unreadable: (file, reason).
        duplicates: groups of byte-identical files of one class in one split.
        conflicts: groups of byte-identical files in more than one class.
        leaks: groups of byte-identical files in more than one split.
        problems: what keeps the folder from being trained on.
        notes: links not followed, folders and files passed over, images that the centre crop to a square halves.
    """

    root: str
    layout: str
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    imbalance: float | None
    height: SizeRange | None
    width: SizeRange | None
    modes: dict[str, int]
    formats: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    conflicts: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, ...], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing to mend: every file readable, no label conflict, no leak, no problem."""
        return not (self.unreadable or self.conflicts or self.leaks or self.problems)

    def to_dict(self) -> dict[str, object]:
        """The findings as JSON values."""
        values = asdict(self)
        for measure in ("height", "width"):
            found: SizeRange | None = getattr(self, measure)
            values[measure] = None if found is None else found._asdict()
        return values | {"ok": self.ok}

    def lines(self) -> list[str]:
        """The findings for a person, worst first after the summary."""
        total = {split: sum(per_class.values()) for split, per_class in self.counts.items()}
        out = [f"{self.root}: {len(self.classes)} classes, " + ", ".join(f"{count} {split}" for split, count in total.items())]
        if self.height is not None and self.width is not None:
            out.append(
                f"sizes (min / median / max): height {self.height.min} / {self.height.median:g} / {self.height.max}, "
                f"width {self.width.min} / {self.width.median:g} / {self.width.max}"
            )
        out += [
            f"{name}: " + ", ".join(f"{k} {n}" for k, n in of.items())
            for name, of in (("modes", self.modes), ("formats", self.formats))
        ]
        if self.imbalance is not None:
            out.append(f"imbalance: the largest class has {self.imbalance:.1f} times the images of the smallest")
        out += [f"problem: {line}" for line in self.problems]
        out += _listed("unreadable", [f"{file} ({reason})" for file, reason in self.unreadable])
        out += _listed("in more than one split", [" = ".join(group) for group in self.leaks])
        out += _listed("in more than one class", [" = ".join(group) for group in self.conflicts])
        out += _listed("identical within a class", [" = ".join(group) for group in self.duplicates])
        return out + [f"note: {line}" for line in self.notes]


class _Probe(NamedTuple):
    digest: str
    header: ImageHeader | None
    reason: str


def check_folder(root: Path, progress: Callable[[int, int], None] | None = None) -> FolderReport:
    """Read and decode every image of ``root`` and report; nothing is changed and nothing is cached.

    Args:
        root: root/{train,val,test}/<class>/ or root/<class>/.
        progress: called with (files done, files in all).

    Raises:
        DataNotFoundError: no such folder.
        DataError: a folder that cannot be read, or no images at all.
    """
    scan = scan_folder(root)
    probes: list[_Probe] = []
    blocks = (scan.entries[i : i + BLOCK] for i in range(0, len(scan.entries), BLOCK))
    for results in ordered_map(lambda block: [_probe(root, entry) for entry in block], blocks):
        probes += results
        if progress is not None:
            progress(len(probes), len(scan.entries))
    duplicates, conflicts, leaks = _identical(scan, probes)
    headers = [probe.header for probe in probes if probe.header is not None]
    counts = scan.counts()
    trained = counts.get("train", [0])
    cropped = crop_note(sum(loses_half(header, PROBE) for header in headers), len(headers))
    return FolderReport(
        root=one_line(root),
        layout=scan.layout,
        classes=scan.classes,
        counts={split: dict(zip(scan.classes, per_class, strict=True)) for split, per_class in counts.items()},
        imbalance=max(trained) / min(trained) if min(trained) else None,
        height=_range([header.height for header in headers]),
        width=_range([header.width for header in headers]),
        modes=dict(Counter(header.mode for header in headers).most_common()),
        formats=dict(Counter(header.format for header in headers).most_common()),
        unreadable=tuple((one_line(e.path), p.reason) for e, p in zip(scan.entries, probes, strict=True) if p.header is None),
        duplicates=duplicates,
        conflicts=conflicts,
        leaks=leaks,
        problems=_problems(scan, counts),
        notes=scan.notes + ((cropped,) if cropped else ()),
    )


def _probe(root: Path, entry: FolderEntry) -> _Probe:
    try:
        content = (root / entry.path).read_bytes()
    except OSError as error:
        return _Probe("", None, one_line(error.strerror or error))
    digest = hashlib.sha256(content).hexdigest()
    try:
        header = decode_measured(io.BytesIO(content), PROBE, 3, "squash", name="")[1]
    except DataError as error:
        return _Probe(digest, None, str(error).strip())
    return _Probe(digest, header, "")


Groups = tuple[tuple[str, ...], ...]


def _identical(scan: FolderScan, probes: Sequence[_Probe]) -> tuple[Groups, Groups, Groups]:
    """Groups of byte-identical files: within a class of a split, across classes, across splits."""
    groups: dict[str, list[FolderEntry]] = defaultdict(list)
    for entry, probe in zip(scan.entries, probes, strict=True):
        if probe.header is not None:
            groups[probe.digest].append(entry)
    duplicates, conflicts, leaks = [], [], []
    for group in groups.values():
        names = tuple(one_line(entry.path) for entry in group)
        if len({entry.label for entry in group}) > 1:
            conflicts.append(names)
        if len({entry.split for entry in group}) > 1:
            leaks.append(names)
        places: dict[tuple[str, int], list[str]] = defaultdict(list)
        for entry, name in zip(group, names, strict=True):
            places[entry.split, entry.label].append(name)
        duplicates += [tuple(same) for same in places.values() if len(same) > 1]
    return tuple(duplicates), tuple(conflicts), tuple(leaks)


def _problems(scan: FolderScan, counts: dict[str, list[int]]) -> tuple[str, ...]:
    found = []
    if len(scan.classes) < 2:
        found.append(f"one class only ({scan.classes[0]}); a classifier needs two or more")
    if "train" not in counts:
        found.append("no training images")
    for split in counts if "train" in counts else ():
        untrained = [
            n for n, here, trained in zip(scan.classes, counts[split], counts["train"], strict=True) if here and not trained
        ]
        if untrained:
            found.append(f"{len(untrained)} class(es) in {split} have no training images: {some(untrained)}")
    return tuple(found)


def _range(values: Sequence[int]) -> SizeRange | None:
    return SizeRange(min(values), statistics.median(values), max(values)) if values else None


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"  ... and {len(items) - NAMED} more"] if len(items) > NAMED else []
    return [f"{title}: {len(items)}", *(f"  {item}" for item in items[:NAMED]), *more]
