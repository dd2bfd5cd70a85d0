"""A folder of images as a data set."""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sepnet.data._cache import DecodedImages, DecodeSettings, EncodedImages, decoded_images, image_files
from sepnet.data._decode import ImageHeader, crop_note, read_header
from sepnet.data._notes import NAMED
from sepnet.data._parallel import ordered_map
from sepnet.data._scan import FolderEntry, FolderScan, scan_folder
from sepnet.data._types import RawData, ReadOptions, Split
from sepnet.errors import DataError, ImageError, one_line

__all__ = ["SAMPLE", "TEST_FRACTION", "choose_size", "read_folder", "read_scan", "settings_for"]

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224)
DEFAULT_LIMIT = 128  # larger images cost more than a CPU trains in an evening; who wants them says --size
SAMPLE = 256
TEST_FRACTION = 0.15


def read_folder(
    root: Path, options: ReadOptions, *, whole: bool = False, part: str = "test", classes: Sequence[str] | None = None
) -> RawData:
    """Read root/{train,val,test}/<class>/ or root/<class>/, decoded to one size.

    ``whole``, ``part`` and ``classes`` are those of ``load_dataset``.

    Raises:
        DataNotFoundError: no such folder.
        DataError: no images, no readable image, a class that is not among ``classes``; unless ``whole``, fewer than two classes or
            a class without training images.
        ImageError: an unreadable file, with ``on_bad`` "error".
        OutputError: the cache of decoded images cannot be written.
    """
    scan = scan_folder(root, whole=whole, part=part, classes=classes)
    if not whole:
        _require_classes(scan)
    check = f"sepnet data check {one_line(root)}"
    settings = settings_for(options, lambda: _sample_headers(scan), f"{one_line(root)}; run: {check}")
    raw = read_scan(scan, settings, options, check, whole=whole)
    return replace(raw, title=f"image folder {one_line(root.resolve().name)}", test_fraction=TEST_FRACTION, part=scan.part)


def read_scan(
    scan: FolderScan,
    settings: DecodeSettings,
    options: ReadOptions,
    check: str,
    *,
    whole: bool = False,
    encoded: EncodedImages | None = None,
) -> RawData:
    """The files of ``scan`` as a data set, decoded.

    Args:
        encoded: where the images come from, if they are no files below ``scan.root``.
        check: the command that tells more of unreadable files.
        whole: there need be no training images; ``train`` is then the same as ``test``.

    Raises:
        DataError: no readable image; unless ``whole``, a class without readable training images.
        ImageError: an unreadable file, with ``on_bad`` "error".
        OutputError: the cache of decoded images cannot be written.
    """
    encoded = encoded or image_files(scan.root, scan.entries)
    decoded = decoded_images(encoded, settings, options.cache_dir, options.progress)
    notes = list(scan.notes)
    if decoded.bad:
        if options.on_bad == "error":
            row, reason = next(iter(decoded.bad.items()))
            raise ImageError(f"{one_line(scan.root / scan.entries[row].path)} {reason}")
        notes.append(_bad_note(scan, decoded.bad))
    if not decoded.rows:
        raise DataError(f"no image in {one_line(scan.root)} can be read; run: {check}")
    if not whole:
        _require_readable(scan, decoded, check)
    kept = [scan.entries[row] for row in decoded.rows]
    notes += _content_notes(kept, decoded)
    return _assemble(scan, kept, decoded, settings, notes)


def choose_size(headers: Sequence[ImageHeader], limit: int = DEFAULT_LIMIT) -> int:
    """The side of ``SIZES``, up to ``limit``, nearest to the median of the images' shorter sides, in pixels."""
    median = statistics.median(min(header.height, header.width) for header in headers)
    return min((side for side in SIZES if side <= limit), key=lambda side: abs(side - median))


def settings_for(options: ReadOptions, sample: Callable[[], Sequence[ImageHeader]], where: str) -> DecodeSettings:
    """How to decode images: as asked for, else by the sizes and colours of a ``sample``. Raises DataError if that is empty."""
    size, channels = options.size, options.channels
    if size is None or channels is None:
        headers = sample()
        if not headers:
            raise DataError(f"none of the images sampled can be read: {where}")
        size = size or choose_size(headers)
        channels = channels or (1 if all(header.grey for header in headers) else 3)
    return DecodeSettings((size, size), channels, options.mode)


def _sample_headers(scan: FolderScan) -> list[ImageHeader]:
    """Headers of up to ``SAMPLE`` files, evenly spread over the folder."""

    def header(path: str) -> ImageHeader | None:
        try:
            return read_header(scan.root / path)
        except DataError:
            return None

    step = max(1, len(scan.entries) // SAMPLE)
    return [h for h in ordered_map(header, [entry.path for entry in scan.entries[::step]]) if h is not None]


def _require_classes(scan: FolderScan) -> None:
    if len(scan.classes) < 2:
        raise DataError(
            f"{one_line(scan.root)} has one class only ({scan.classes[0]}); a classifier needs a folder for each of two or more"
        )
    counts = scan.counts()
    if "train" not in counts:
        raise DataError(f"no images for training in {one_line(scan.root)}; expected train/<class>/*.jpg")
    for split, per_class in counts.items():
        for name, count, trained in zip(scan.classes, per_class, counts["train"], strict=True):
            if count and not trained:
                raise DataError(f"class '{name}' is in {split} but has no images in train, below {one_line(scan.root)}")


def _require_readable(scan: FolderScan, decoded: DecodedImages, check: str) -> None:
    readable = {scan.entries[row].label for row in decoded.rows if scan.entries[row].split == "train"}
    for label, name in enumerate(scan.classes):
        if label not in readable:
            raise DataError(f"no image of class '{name}' in {one_line(scan.root)} can be read; run: {check}")


def _bad_note(scan: FolderScan, bad: dict[int, str]) -> str:
    named = [f"{one_line(scan.entries[row].path)} ({reason})" for row, reason in list(bad.items())[:NAMED]]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{len(bad)} unreadable file(s) skipped: {', '.join(named)}{more}"


def _content_notes(kept: Sequence[FolderEntry], decoded: DecodedImages) -> list[str]:
    """What the contents of the files tell: images with two labels, images to test on that are trained on, images cut in half."""
    notes: list[str] = []
    labels: dict[bytes, set[int]] = defaultdict(set)
    trained: set[bytes] = set()
    for entry, digest in zip(kept, decoded.digests, strict=True):
        labels[digest].add(entry.label)
        if entry.split == "train":
            trained.add(digest)
    torn = sum(len(labels[digest]) > 1 for digest in decoded.digests)
    if torn:
        notes.append(f"{torn} image(s) are byte for byte in more than one class, so some labels are wrong; see: sepnet data check")
    for part in ("val", "test"):
        digests = [digest for entry, digest in zip(kept, decoded.digests, strict=True) if entry.split == part]
        leaked = sum(digest in trained for digest in digests)
        if leaked:
            notes.append(
                f"{leaked} of the {len(digests)} {part} images are also in train, byte for byte: figures on {part} flatter"
            )
    cropped = crop_note(decoded.cut, len(kept))
    return [*notes, cropped] if cropped else notes


def _assemble(
    scan: FolderScan, kept: Sequence[FolderEntry], decoded: DecodedImages, settings: DecodeSettings, notes: list[str]
) -> RawData:
    labels = torch.tensor([entry.label for entry in kept], dtype=torch.int64)
    splits: dict[str, Split] = {}
    start = 0
    for part in ("train", "val", "test"):  # the order in which the files were listed, so each split is one run of images
        stop = start + sum(entry.split == part for entry in kept)
        if stop > start:
            splits[part] = Split(decoded.images[start:stop], labels[start:stop])
        start = stop
    train = splits["train"] if "train" in splits else splits["test"]  # of a folder read whole
    return RawData(
        title=one_line(scan.root.resolve().name),
        classes=scan.classes,
        train=train,
        val=splits.get("val"),
        test=splits.get("test"),
        mode=settings.mode,
        digests=decoded.digests[: len(train)],
        fingerprint=_fingerprint(scan, decoded),
        notes=tuple(notes),
    )


def _fingerprint(scan: FolderScan, decoded: DecodedImages) -> str:
    """Hash of split, class and content of every file; names and places of files play no part."""
    lines = sorted(
        f"{scan.entries[row].split} {scan.classes[scan.entries[row].label]} {digest.hex()}"
        for row, digest in zip(decoded.rows, decoded.digests, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
