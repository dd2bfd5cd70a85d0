"""Decoded images on disk: decoded once with all cores, then read back in a second or mapped into memory.

A cache is one file: the pixels uint8 (N, H, W, C), a JSON table (shape, hash of every source file, files that could not be read,
checksum of the pixels), and a trailer that finds and checks the table. It is written under a temporary name and renamed, and a lock
lets the second of two processes wait for the first instead of repeating it. A cache that is damaged in any way is built again.

The name of a folder's is made of the folder, the settings and the list of files, each with size, times of modification and of
change, and inode. Guaranteed on a POSIX file system: to write, replace, swap or rename a file sets its time of change (which no
program can set as it likes) or gives the path another inode, so the old pixels are not found again, even if sizes and times of
modification are kept. Not guaranteed: a change within one tick of the file system's clock (some milliseconds) after the folder was
read, a clock set back, and Windows, which has no time of change. A folder that was copied or moved is decoded again, as is one the
files of which changed their owner.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor

from sepnet.data._decode import Pixels, decode_measured, loses_half
from sepnet.data._parallel import ordered_map
from sepnet.data._scan import FolderEntry
from sepnet.data._types import MEMORY_BYTES, ResizeMode
from sepnet.errors import DataError, OutputError, one_line
from sepnet.locking import locked

__all__ = ["DecodeSettings", "DecodedImages", "EncodedImages", "decoded_images", "default_cache_dir", "image_files"]

VERSION = 2
MAGIC = b"sepnet-pixels-01"
TRAILER = struct.Struct(">QI16s")  # length and CRC-32 of the table, magic
BLOCK = 32  # files per task: small images decode in less time than a task takes to hand over
SPARE_BYTES = 2**24


class DecodeSettings(NamedTuple):
    """Height and width in pixels, channels, and how images are brought to that size."""

    size: tuple[int, int]
    channels: int
    mode: ResizeMode


@dataclass(frozen=True)
class EncodedImages:
    """Images as they are stored, by number.

    Attributes:
        about: whose they are: two sets of the same name replace one another in the cache.
        listing: JSON value that is another when any of them is.
        count: how many there are.
        read: the bytes of the image file with that number; raises OSError. Called from several threads.
    """

    about: str
    listing: object
    count: int
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class DecodedImages:
    """The images of a folder or another set that could be read.

    Attributes:
        images: uint8 (N, C, H, W), channels innermost; in memory, or mapped from the cache when above ``MEMORY_BYTES``.
        rows: for each image its position in the list of files.
        digests: sha256 of each image's file.
        bad: position in the list of files -> why it could not be read.
        cut: how many images lost more than half of their area to the centre crop.
    """

    images: Tensor
    rows: tuple[int, ...]
    digests: tuple[bytes, ...]
    bad: dict[int, str]
    cut: int


class _Table(NamedTuple):
    shape: tuple[int, int, int, int]
    digests: list[str]
    bad: dict[int, str]
    cut: int
    crc: int


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/sepnet, or ~/.cache/sepnet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sepnet"


def image_files(root: Path, entries: Sequence[FolderEntry]) -> EncodedImages:
    """The files ``entries`` of the folder ``root``."""
    listing = [(entry.path, *entry.stamp) for entry in entries]
    return EncodedImages(os.path.realpath(root), listing, len(entries), lambda number: (root / entries[number].path).read_bytes())


def decoded_images(
    encoded: EncodedImages,
    settings: DecodeSettings,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DecodedImages:
    """The pixels of ``encoded`` from the cache, which is built first if need be.

    Args:
        encoded: the images.
        settings: how to decode them.
        cache_dir: folder of caches; None for ``default_cache_dir``.
        progress: called with (files done, files in all) while the cache is built.

    Raises:
        OutputError: the cache cannot be written, or the disk has no room for it.
    """
    folder = cache_dir or default_cache_dir()
    prefix, key = _name(encoded, settings)
    path = folder / f"{prefix}-{key}.pixels"
    decoded = _load(path, encoded.count)
    if decoded is not None:
        return decoded
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{prefix}.lock"):
            decoded = _load(path, encoded.count)  # the process that held the lock has built it
            if decoded is not None:
                return decoded
            _check_space(folder, encoded.count * _image_bytes(settings))
            _build(path, encoded, settings, progress)
            for stale in folder.glob(f"{prefix}-*.pixels"):
                if stale != path:
                    stale.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write the image cache {one_line(folder)}: {one_line(error.strerror or error)}; "
            "set XDG_CACHE_HOME to a folder with room"
        ) from None
    decoded = _load(path, encoded.count)
    if decoded is None:
        raise OutputError(f"the image cache {one_line(path)} cannot be read back; check the disk")
    return decoded


def _name(encoded: EncodedImages, settings: DecodeSettings) -> tuple[str, str]:
    """What the cache is of (folder and settings), and a hash of the files."""
    about = json.dumps([VERSION, encoded.about, settings, PIL.__version__])
    listing = json.dumps(encoded.listing)
    return hashlib.sha256(about.encode()).hexdigest()[:24], hashlib.sha256(listing.encode()).hexdigest()[:32]


def _image_bytes(settings: DecodeSettings) -> int:
    return settings.size[0] * settings.size[1] * settings.channels


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise OutputError(
            f"the image cache needs {needed / 1e6:.0f} MB in {one_line(folder)}, where {free / 1e6:.0f} MB are free; "
            "set XDG_CACHE_HOME to a folder with room, or choose a smaller --size"
        )


def _build(path: Path, encoded: EncodedImages, settings: DecodeSettings, progress: Callable[[int, int], None] | None) -> None:
    for leftover in path.parent.glob(f"{path.name}.*.tmp"):  # we hold the lock: whoever wrote it is gone
        leftover.unlink(missing_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            table = _write_pixels(file, encoded, settings, progress)
            text = json.dumps(table._asdict()).encode()
            file.write(text + TRAILER.pack(len(text), zlib.crc32(text), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_pixels(
    file: IO[bytes], encoded: EncodedImages, settings: DecodeSettings, progress: Callable[[int, int], None] | None
) -> _Table:
    digests: list[str] = []
    bad: dict[int, str] = {}
    crc = cut = done = 0

    def decode(block: range) -> list[tuple[Pixels, str, bool] | str]:
        return [_decode(encoded, number, settings) for number in block]

    blocks = (range(i, min(i + BLOCK, encoded.count)) for i in range(0, encoded.count, BLOCK))
    for results in ordered_map(decode, blocks):
        for result in results:
            if isinstance(result, str):
                bad[done] = result
            else:
                pixels, digest, halved = result
                cut += halved
                file.write(pixels.data)
                crc = zlib.crc32(pixels.data, crc)
                digests.append(digest)
            done += 1
        if progress is not None:
            progress(done, encoded.count)
    return _Table((len(digests), *settings.size, settings.channels), digests, bad, cut, crc)


def _decode(encoded: EncodedImages, number: int, settings: DecodeSettings) -> tuple[Pixels, str, bool] | str:
    """Pixels and sha256 of one file and whether the crop took half of it, or in words why not."""
    try:
        content = encoded.read(number)
        pixels, header = decode_measured(io.BytesIO(content), *settings, name="")
    except OSError as error:
        return one_line(error.strerror or error)
    except DataError as error:
        return str(error).strip()
    halved = settings.mode == "crop" and loses_half(header, settings.size)
    return pixels, hashlib.sha256(content).hexdigest(), halved


def _load(path: Path, files: int) -> DecodedImages | None:
    """The cache, or None when it is not there or not whole."""
    try:
        with path.open("rb") as file:
            table = _read_table(file)
            count = table.shape[0]
            if count + len(table.bad) != files or len(table.digests) != count:
                return None
            if count == 0:
                pixels = np.zeros(table.shape, np.uint8)
            elif int(np.prod(table.shape)) > MEMORY_BYTES:
                # Copy-on-write, so that torch gets a writable array; checking the sum would read it all.
                pixels = np.memmap(path, np.uint8, "c", shape=table.shape)
            else:
                file.seek(0)
                pixels = np.fromfile(file, np.uint8, int(np.prod(table.shape))).reshape(table.shape)
                if zlib.crc32(pixels.data) != table.crc:
                    return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    return DecodedImages(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        rows=tuple(row for row in range(files) if row not in table.bad),
        digests=tuple(bytes.fromhex(digest) for digest in table.digests),
        bad=table.bad,
        cut=table.cut,
    )


def _read_table(file: IO[bytes]) -> _Table:
    """The table at the end of the file; raises ValueError or struct.error when the file is not whole."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - TRAILER.size))
    length, crc, magic = TRAILER.unpack(file.read(TRAILER.size))
    if magic != MAGIC or length > end - TRAILER.size:
        raise ValueError("no trailer")
    file.seek(end - TRAILER.size - length)
    text = file.read(length)
    if zlib.crc32(text) != crc:
        raise ValueError("damaged table")
    values = json.loads(text)
    n, height, width, channels = (int(v) for v in values["shape"])
    if n * height * width * channels != end - TRAILER.size - length:
        raise ValueError("cut short")
    bad = {int(row): str(reason) for row, reason in values["bad"].items()}
    return _Table((n, height, width, channels), list(values["digests"]), bad, int(values["cut"]), int(values["crc"]))
