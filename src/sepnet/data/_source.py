"""Where a data set's files lie on disk, where they come from, and under what terms."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sepnet.errors import DataError, DataNotFoundError, one_line

__all__ = ["Download", "Source", "get_command", "title_of"]


@dataclass(frozen=True)
class Download:
    """A file on a server, and what becomes of it.

    Attributes:
        name: of the file; its ending says how it is unpacked: .tar.gz, .zip, .gz, or not at all.
        size: in bytes.
        sha256: hex digest, as published.
        mirrors: the folders on servers that hold it, in the order in which they are asked.
        into: the file or folder below the data folder that it becomes; of an archive, the one folder that it holds.
        unpacked: at most so many bytes may come out of it, 0 if it is not unpacked. What it holds is known, so more is no accident.
        kept: at most so many of these are written to the disk.
        files: at most so many files and folders may come out of it.
        only: names of the files to unpack; empty for all.
    """

    name: str
    size: int
    sha256: str
    mirrors: tuple[str, ...]
    into: str
    unpacked: int = 0
    kept: int = 0
    files: int = 1
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes:
        name: what ``sepnet data get`` calls it.
        title: the name to print.
        folders: where below the data folder the files may lie, the customary place first.
        needs: names of the files that are read.
        downloads: what to fetch.
        homepage: who publishes it.
        licence: its terms, as the publisher states them.
        citation: what to cite.
        suffixes: what may follow each name of ``needs``.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    needs: tuple[str, ...]
    downloads: tuple[Download, ...]
    homepage: str
    licence: str
    citation: str
    suffixes: tuple[str, ...] = ("",)

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(download.size for download in self.downloads)

    def find(self, data_dir: Path) -> list[Path]:
        """The files, in the order of ``needs``, from the first folder that has them all.

        Raises:
            DataNotFoundError: none has; the message says what to run.
        """
        best: list[Path | None] = [None] * len(self.needs)
        for folder in self.folders:
            found = [self._file(data_dir / folder, name) for name in self.needs]
            whole = [path for path in found if path is not None]
            if len(whole) == len(found):
                return whole
            best = max(best, found, key=lambda paths: sum(path is not None for path in paths))
        missing = [name for name, path in zip(self.needs, best, strict=True) if path is None]
        raise DataNotFoundError(self._absence(data_dir, missing, begun=any(best)))

    def _file(self, folder: Path, name: str) -> Path | None:
        return next((path for suffix in self.suffixes if (path := folder / (name + suffix)).exists()), None)

    def _absence(self, data_dir: Path, missing: Sequence[str], begun: bool) -> str:
        place = data_dir / self.folders[0]
        lacks = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        command = get_command(self.name, data_dir)
        if begun and any((data_dir / download.into).is_dir() for download in self.downloads):
            return f"{self.title} is not whole: {one_line(place)} lacks {lacks}; move that folder away, then run: {command}"
        return f"{self.title} is not in {one_line(place)} (no {lacks}); run: {command}, or name another folder with --data-dir"


def get_command(name: str, data_dir: Path) -> str:
    """The command that fetches the data set ``name`` into ``data_dir``."""
    return f"sepnet data get {name} --data-dir {one_line(shlex.quote(os.fspath(data_dir)))}"


def title_of(name: str, files: Sequence[tuple[Path, str]]) -> str:
    """``name`` if each file has the MD5 or SHA-256 (hex, told by its length) beside it, else that it is a modified copy.

    Raises:
        DataError: a file that cannot be read.
    """
    for path, expected in files:
        try:
            with path.open("rb") as file:
                kind = "md5" if len(expected) == 32 else "sha256"
                digest = hashlib.file_digest(file, lambda kind=kind: hashlib.new(kind, usedforsecurity=False))  # type: ignore[misc]
        except OSError as error:
            raise DataError(f"{one_line(path)} cannot be read: {one_line(error.strerror or error)}") from None
        if digest.hexdigest() != expected:
            return f"{name} (modified copy)"
    return name
