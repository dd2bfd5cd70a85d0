"""Unpacking what was fetched, into an empty folder: no path outside it, no links, and never more than is known to be in it.

The limits are counted while unpacking; what an archive says of itself is not believed.
"""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from sepnet.data._disk import Sink, flush, writing
from sepnet.data._source import Download
from sepnet.data._transfer import Progress
from sepnet.errors import DataError, UnsafeFileError, one_line

__all__ = ["unpack"]

BLOCK = 2**20
DAMAGED = (EOFError, OSError, RuntimeError, ValueError, struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class _Limits:
    """What has come out of an archive so far, against what may."""

    def __init__(self, archive: Path, download: Download) -> None:
        self.archive = archive
        self.download = download
        self.files = self.unpacked = self.kept = 0

    def file(self) -> None:
        self.files += 1
        self._check(self.files, self.download.files, "files and folders")

    def read(self, count: int) -> None:
        self.unpacked += count
        self._check(self.unpacked, self.download.unpacked, "bytes")

    def write(self, count: int) -> None:
        self.kept += count
        self._check(self.kept, self.download.kept, "bytes to keep")

    def _check(self, found: int, limit: int, what: str) -> None:
        if found > limit:
            raise UnsafeFileError(
                f"{one_line(self.archive)} unpacks to more than the {limit:,} {what} that are known to be in it: refused"
            )


class _Counted:
    """A stream that counts what is read from it: also what a header is too long by."""

    def __init__(self, stream: BinaryIO, limits: _Limits) -> None:
        self._stream, self._limits = stream, limits

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(min(size, BLOCK) if size >= 0 else BLOCK)
        self._limits.read(len(block))
        return block


def unpack(archive: Path, download: Download, folder: Path, progress: Progress | None = None) -> Path:
    """Unpack ``archive`` into ``folder``, which is made, and flush it to the disk.

    Returns:
        Where in ``folder`` the file or folder is that ``download`` becomes.

    Raises:
        UnsafeFileError: a path that leads out of ``folder``, a link or device, or more than ``download`` admits.
        DataError: damaged, or without what it should hold.
        OutputError: it cannot be written.
    """
    limits = _Limits(archive, download)
    made = folder / PurePosixPath(download.into).name
    method = _untar if download.name.endswith(".tar.gz") else _unzip if download.name.endswith(".zip") else _gunzip
    with writing(folder):
        folder.mkdir(parents=True)
    try:
        with archive.open("rb") as file:
            total = archive.stat().st_size

            def tell(done: int) -> None:
                if progress is not None:
                    progress(f"unpacking {download.name}", done, total)

            method(file, made, limits, tell)
    except DAMAGED as error:
        raise DataError(f"{one_line(archive)} is damaged ({type(error).__name__}: {one_line(error, 80)}); fetch it again") from None
    if not made.exists():
        raise DataError(f"{one_line(archive)} does not hold {one_line(made.name)}; fetch it again")
    flush(made)
    return made


def _untar(file: BinaryIO, made: Path, limits: _Limits, tell: Callable[[int], None]) -> None:
    stream = _Counted(cast("BinaryIO", gzip.GzipFile(fileobj=file)), limits)
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as tar:
        for member in tar:
            limits.file()
            path = _inside(member.name, made, limits)
            if member.isdir():
                _make_folder(path)
            elif not member.isreg() or member.issparse():
                raise UnsafeFileError(f"{one_line(limits.archive)} holds {one_line(member.name)}, which is no plain file: refused")
            elif _wanted(path, limits):
                content = tar.extractfile(member)
                assert content is not None
                _write(content, path, limits, lambda: tell(file.tell()))


def _unzip(file: BinaryIO, made: Path, limits: _Limits, tell: Callable[[int], None]) -> None:
    with zipfile.ZipFile(file) as archive:
        done = 0
        for entry in archive.infolist():
            limits.file()
            path = _inside(entry.filename, made, limits)
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeFileError(
                    f"{one_line(limits.archive)} holds {one_line(entry.filename)}, which is no plain file: refused"
                )
            if entry.is_dir():
                _make_folder(path)
            elif _wanted(path, limits):
                with archive.open(entry) as content:
                    _write(_Counted(cast("BinaryIO", content), limits), path, limits, lambda: None)
            done += entry.compress_size
            tell(done)


def _gunzip(file: BinaryIO, made: Path, limits: _Limits, tell: Callable[[int], None]) -> None:
    limits.file()
    content = _Counted(cast("BinaryIO", gzip.GzipFile(fileobj=file)), limits)
    _write(content, made, limits, lambda: tell(file.tell()))
    if not limits.kept:
        raise ValueError("there is nothing in it")


def _inside(name: str, made: Path, limits: _Limits) -> Path:
    """The path below ``made``, the one folder of the archive, that the archive calls ``name``; as Windows reads it, too."""
    path = PurePosixPath(name)
    if ".." in path.parts or any(sign in name for sign in "\\:") or path.parts[:1] != (made.name,):
        raise UnsafeFileError(f"{one_line(limits.archive)} holds {one_line(name)}, which lies outside {made.name}/: refused")
    return made.joinpath(*path.parts[1:])


def _wanted(path: Path, limits: _Limits) -> bool:
    return not limits.download.only or path.name in limits.download.only


def _make_folder(path: Path) -> None:
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def _write(content: IO[bytes] | _Counted, path: Path, limits: _Limits, tell: Callable[[], None]) -> None:
    """Copy a stream to a file that is not there yet, within the limits."""
    _make_folder(path.parent)
    with Sink(path, "x") as file:
        while block := content.read(BLOCK):
            limits.write(len(block))
            file.write(block)
            tell()
