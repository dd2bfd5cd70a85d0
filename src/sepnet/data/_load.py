"""From a name or a folder to a data set: read, carve the splits, bring to size, compute the constants."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from sepnet.data._folder import read_folder
from sepnet.data._hub import PREFIX, read_hub
from sepnet.data._registry import datasets
from sepnet.data._scan import class_numbers
from sepnet.data._split import carve, image_digests
from sepnet.data._types import MAX_SIDE, Dataset, Place, Preprocessing, RawData, ReadOptions, ResizeMode, Split
from sepnet.errors import ConfigError, DataNotFoundError, UnknownNameError, one_line

__all__ = ["load_dataset"]

# A test split carved here does not follow the seed: a network trained under one seed must not be tested on images it saw under
# another.
TEST_SEED = 2018


def load_dataset(
    name_or_path: str | Path,
    *,
    data_dir: Path = Path("data"),
    seed: int = 0,
    size: int | None = None,
    val_fraction: float = 0.1,
    channels: int | None = None,
    whole: bool = False,
    part: Literal["test", "val", "train"] = "test",
    classes: tuple[str, ...] | None = None,
    mode: ResizeMode = "crop",
    on_bad: Literal["skip", "error"] = "skip",
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Read a registered data set, or an image folder, ready for training; or ``whole``, to evaluate on.

    Args:
        name_or_path: a name of ``datasets``, hf:owner/name for one of the Hugging Face hub (needs the extra [hub]), or an image
            folder (root/{train,val,test}/<class>/ or root/<class>/). A path wins when it contains a separator or when no data set
            has that name.
        data_dir: where registered data sets lie.
        seed: which training images become validation ones; a test split carved from an image folder does not depend on it.
        size: side of the square images in pixels; None for the data set's own, or for a folder a size near its median.
        val_fraction: share of the training images to validate on, 0 for none; not used when the source has a validation split.
        channels: 1 or 3 to convert; None for the data set's own.
        whole: carve nothing. Of an image folder one set is read, the first of root/{``part``,test,val,train}/<class>/ that is there
            or else root/<class>/; it becomes ``test``, and ``train`` is the same. It may have one class only, and needs no training
            images.
        classes: class names that number the labels, when the data may have some of them only; None for the data's own.
        mode: "crop" resizes the shorter side of an image file and cuts out the centre; "squash" resizes both sides.
        on_bad: image folders: "skip" unreadable files with a note, or "error".
        cache_dir: image folders: where decoded images are kept; None for $XDG_CACHE_HOME/sepnet.
        progress: called with (images done, images in all) while an image folder is decoded.

    Raises:
        UnknownNameError: neither a data set nor a folder.
        DataNotFoundError: the data set's files, or the folder, are not there.
        DownloadError, MissingExtraError: the hub cannot be reached, or the extra [hub] is not installed.
        DataError: files that cannot be used, or a class that is not among ``classes``.
        ConfigError: ``val_fraction``, ``size``, ``channels`` or ``mode`` out of range.
    """
    _check_options(seed, size, val_fraction, channels, mode)
    text = os.fspath(name_or_path)
    _check_names(text, data_dir)
    options = ReadOptions(size, channels, mode, on_bad, cache_dir, progress)
    place = Place()
    if text.startswith(PREFIX):
        raw, name = _renumbered(read_hub(text, options), classes), text
    elif _is_path(text):
        raw, name = read_folder(Path(text), options, whole=whole, part=part, classes=classes), one_line(Path(text).resolve().name)
        place = Place(folder=Path(text))
    else:
        raw, name = _renumbered(replace(datasets.get(text).read(data_dir, options), mode=mode), classes), text
        place = Place(data_dir=data_dir)
    fingerprint = raw.fingerprint or _fingerprint(raw)
    raw = _convert(raw, size, channels)
    return _dataset(name, raw if whole else _carve_splits(raw, val_fraction, seed), fingerprint, place)


def _dataset(name: str, raw: RawData, fingerprint: str, place: Place) -> Dataset:
    return Dataset(
        name=name,
        title=raw.title,
        classes=raw.classes,
        train=raw.train,
        val=raw.val,
        test=raw.test,
        preprocessing=_preprocessing(raw),
        fingerprint=_with_settings(fingerprint, raw),
        notes=raw.notes,
        characters=raw.characters,
        part=raw.part,
        place=place,
    )


def _renumbered(raw: RawData, classes: tuple[str, ...] | None) -> RawData:
    """The data set with the labels that its classes have among ``classes``."""
    if classes is None or classes == raw.classes:
        return raw
    numbers = torch.tensor(class_numbers(raw.classes, classes, raw.title))

    def renumber(split: Split | None) -> Split | None:
        return None if split is None else replace(split, labels=numbers[split.labels])

    train = renumber(raw.train)
    assert train is not None
    return replace(raw, classes=classes, train=train, val=renumber(raw.val), test=renumber(raw.test))


def _check_options(seed: int, size: int | None, val_fraction: float, channels: int | None, mode: str) -> None:
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction must be at least 0 and below 1, got {val_fraction}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}")
    if size is not None and not 1 <= size <= MAX_SIDE:
        raise ConfigError(f"size must be from 1 to {MAX_SIDE} pixels, got {size}")
    if channels not in (None, 1, 3):
        raise ConfigError(f"channels must be 1 or 3, got {channels}")
    if mode not in get_args(ResizeMode):
        raise ConfigError(f"resize mode must be {' or '.join(get_args(ResizeMode))}, got {one_line(mode)}")


def _check_names(*paths: str | Path) -> None:
    """Refuse names that no file system takes: asked whether such a file exists, Python raises instead of saying no."""
    for path in paths:
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise DataNotFoundError(f"no folder or data set {one_line(path, 60)}: the name is too long") from error
        except ValueError as error:
            raise DataNotFoundError(f"no folder or data set {one_line(path, 60)}: {one_line(error)}") from error


def _is_path(text: str) -> bool:
    if os.sep in text or (os.altsep and os.altsep in text) or text in (".", ".."):
        if not Path(text).is_dir():
            raise DataNotFoundError(f"no folder {one_line(text)}; name a folder of images, or a data set: {', '.join(datasets)}")
        return True
    if text in datasets:
        return False
    if Path(text).is_dir():
        return True
    try:
        datasets.get(text)
    except UnknownNameError as error:
        raise UnknownNameError(f"there is no folder '{one_line(text)}' here, and {error}") from None
    return False


def _carve_splits(raw: RawData, val_fraction: float, seed: int) -> RawData:
    """Carve the test and validation splits that the source lacks."""
    need_test = raw.test is None and raw.test_fraction > 0
    need_val = raw.val is None and val_fraction > 0
    if not (need_test or need_val):
        return raw
    train, notes, test, val = raw.train, list(raw.notes), raw.test, raw.val
    digests = raw.digests or image_digests(train)
    indices = torch.arange(len(train))
    if need_test:
        indices, held_out, found = carve(train.labels, digests, raw.test_fraction, TEST_SEED, raw.classes, "test")
        test = train.select(held_out) if len(held_out) else None
        notes += found
    if need_val:
        left = [digests[i] for i in indices.tolist()]
        kept, held_out, found = carve(train.labels[indices], left, val_fraction, seed, raw.classes, "validation")
        val = train.select(indices[held_out]) if len(held_out) else None
        indices = indices[kept]
        notes += found
    return replace(raw, train=train.select(indices), val=val, test=test, notes=tuple(notes))


def _convert(raw: RawData, size: int | None, channels: int | None) -> RawData:
    """Bring the images to another size or number of channels; published constants then no longer hold."""
    have = raw.train.shape
    want = (channels or have[0], size or have[1], size or have[2])
    if want == have:
        return raw
    val, test = (None if split is None else split.converted(want) for split in (raw.val, raw.test))
    constants = (raw.mean, raw.std) if want[0] == have[0] else (None, None)
    return replace(raw, train=raw.train.converted(want), val=val, test=test, mean=constants[0], std=constants[1])


def _preprocessing(raw: RawData) -> Preprocessing:
    channels, height, width = raw.train.shape
    mean, std = (raw.mean, raw.std) if raw.mean and raw.std else _constants(raw.train)
    return Preprocessing((height, width), channels, raw.mode, mean, std)


def _constants(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the scale 0..1, four digits; a constant channel gets the deviation 1."""
    channels = split.shape[0]
    counts = np.zeros((channels, 256))  # of each value: exact, and two times faster than sums of converted pixels
    for chunk in split.chunks():
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].numpy().ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 0))
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) if s >= 1e-4 else 1.0 for s in std.tolist())


def _fingerprint(raw: RawData) -> str:
    """Hash of the source's own splits, before any carving: the same for every seed."""
    digest = hashlib.sha256(repr(raw.classes).encode("utf-8", "surrogateescape"))
    for name, split in (("train", raw.train), ("val", raw.val), ("test", raw.test)):
        if split is not None:
            digest.update(f"{name} {(len(split), *split.shape)}".encode())
            for chunk in split.chunks():
                digest.update(chunk.permute(0, 2, 3, 1).contiguous().numpy().data)
            digest.update(split.labels.numpy().data)
    return digest.hexdigest()


def _with_settings(fingerprint: str, raw: RawData) -> str:
    return hashlib.sha256(f"{fingerprint} {raw.train.shape} {raw.mode}".encode()).hexdigest()
