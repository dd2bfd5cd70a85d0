"""``sepnet data get``: fetch a data set, check it, unpack it, and only then give it its name.

A file is fetched into a hidden folder of its own beside where it will lie, unpacked there, and renamed. What an interrupted run
leaves is that folder with a part of the file: the next run goes on from it, and trusts the whole only by its hash. A lock lets the
second of two processes wait for the first and use what it has fetched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sepnet.data._disk import require_space, writing
from sepnet.data._registry import datasets
from sepnet.data._source import Download, Source
from sepnet.data._transfer import Progress, TransferError, transfer
from sepnet.data._unpack import unpack
from sepnet.errors import ConfigError, DataNotFoundError, DownloadError, OutputError, one_line
from sepnet.locking import locked

__all__ = ["Downloaded", "Patience", "download_dataset"]

DISK_BLOCK = 4096  # what the smallest file takes up


@dataclass(frozen=True)
class Patience:
    """When a server is given up.

    Attributes:
        timeout: seconds without a byte, or with next to none.
        attempts: at each address.
        pause: seconds before the second attempt; doubled for every further one.
    """

    timeout: float = 30.0
    attempts: int = 3
    pause: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout < 1e6:
            raise ConfigError(f"timeout must be above 0 seconds, got {self.timeout}")
        if self.attempts < 1:
            raise ConfigError(f"attempts must be at least 1, got {self.attempts}")


@dataclass(frozen=True)
class Downloaded:
    """A data set that is there.

    Attributes:
        source: what it is.
        files: those that are read.
        fetched: names of the files that were fetched; none if all was there.
    """

    source: Source
    files: tuple[Path, ...]
    fetched: tuple[str, ...]


def download_dataset(
    name: str,
    data_dir: Path = Path("data"),
    *,
    mirrors: Sequence[str] = (),
    patience: Patience = Patience(),
    progress: Progress | None = None,
    waiting: Callable[[str], object] | None = None,
) -> Downloaded:
    """Fetch what is not there of a registered data set.

    Args:
        name: of the data set.
        data_dir: where registered data sets lie.
        mirrors: URLs of folders that hold the files, in the order in which they are asked, instead of the known ones.
        progress: see ``Progress``.
        waiting: called with the name of a file that another process is fetching, before waiting for it.

    Raises:
        UnknownNameError: no such data set.
        ConfigError: a data set that is not downloaded, or a mirror that is no URL.
        DownloadError: no address gave a file; the message says what each of them did.
        OutputError: no room, a disk that fills up, no permission, or something else in the place of the data set.
        UnsafeFileError, DataError: an archive that is not what it should be.
    """
    if name.startswith("hf:"):
        raise ConfigError(
            f"a data set of the hub is fetched by whoever reads it, into the hub's own cache; run: sepnet train {one_line(name)}"
        )
    source = datasets.get(name).source
    if source is None:
        raise ConfigError(f"there is nothing to fetch: {name} comes with sepnet's own requirements; run: sepnet train {name}")
    for url in mirrors:
        _check_url(url)
    with contextlib.suppress(DataNotFoundError):
        return Downloaded(source, tuple(source.find(data_dir)), ())
    fetched = []
    with _made(data_dir):
        for download in source.downloads:
            with _alone(data_dir / f".{download.name}.lock", download.name, waiting):
                if not _is_there(download, source, data_dir):
                    _fetch(download, data_dir, mirrors or download.mirrors, patience, progress)
                    fetched.append(download.name)
    return Downloaded(source, tuple(source.find(data_dir)), tuple(fetched))


def _check_url(url: str) -> None:
    """Raises ConfigError."""
    with contextlib.suppress(ValueError):  # what urlsplit makes of a bracket without its fellow
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url:
            return
    raise ConfigError(f"a mirror is the URL of a folder, such as https://example.org/data; got {one_line(url)}")


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again if nothing has come into it."""
    there = folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _alone(path: Path, name: str, waiting: Callable[[str], object] | None) -> Iterator[None]:
    """Hold the lock of a file."""
    with contextlib.ExitStack() as held:
        with writing(path):
            held.enter_context(locked(path, waiting=lambda: waiting(name) if waiting is not None else None))
        yield


def _is_there(download: Download, source: Source, data_dir: Path) -> bool:
    """Whether it is there, be it that another process has fetched it meanwhile. A folder in its place is not ours to remove."""
    target = data_dir / download.into
    with writing(target):
        if target.is_file():
            return True
        if not target.is_dir() or not any(target.iterdir()):
            return False
    try:
        source.find(data_dir)
    except DataNotFoundError as error:
        raise OutputError(str(error)) from None
    return True


def _fetch(download: Download, data_dir: Path, mirrors: Sequence[str], patience: Patience, progress: Progress | None) -> None:
    """Fetch, unpack and name one file. Only a part of it, to go on from, may stay behind when this fails."""
    target, staging = data_dir / download.into, data_dir / f".{download.name}.get"
    _tidy(staging, download)
    archive = _by_hand(download, data_dir)
    with writing(staging):
        arrived = sum(path.stat().st_size for path in staging.iterdir()) if staging.exists() else 0
        left = 0 if archive is not None else max(0, download.size - arrived)
        require_space(data_dir, left + download.kept + DISK_BLOCK * download.files, download.name)
        staging.mkdir(exist_ok=True)
    keep = None
    try:
        archive = archive or _download(download, staging, mirrors, patience, progress)
        made = unpack(archive, download, staging / "unpacked", progress) if download.unpacked else archive
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            made.replace(target)
    except (DownloadError, KeyboardInterrupt):
        keep = download
        raise
    finally:
        _tidy(staging, keep)


def _tidy(staging: Path, keep: Download | None) -> None:
    """Remove all of ``staging`` but what has arrived of the file ``keep``: a killed run could not do it itself."""
    kept = {keep.name, f"{keep.name}.part"} if keep is not None else set()
    with contextlib.suppress(OSError):
        for path in staging.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in kept or not path.stat().st_size:
                path.unlink()
        staging.rmdir()  # if nothing is left in it


def _download(download: Download, staging: Path, mirrors: Sequence[str], patience: Patience, progress: Progress | None) -> Path:
    """The whole file in ``staging``, its hash checked, from the first address that gives it."""
    failures = []
    for mirror in mirrors:
        try:
            return _persist(f"{mirror.rstrip('/')}/{download.name}", download, staging, patience, progress)
        except TransferError as error:
            failures.append(f"{one_line(urlsplit(mirror).hostname or mirror, 60)}: {error}")
    raise DownloadError(
        f"cannot fetch {download.name} ({'; '.join(failures)}); check the network and run the command again, name another address "
        f"with --mirror URL, or put the file into {one_line(staging.parent)} by hand"
    )


def _persist(url: str, download: Download, staging: Path, patience: Patience, progress: Progress | None) -> Path:
    """Try one address until it has given the whole file. Raises TransferError."""
    for attempt in range(patience.attempts):
        if attempt:
            time.sleep(patience.pause * 2 ** (attempt - 1))
        try:
            return _retrieve(url, download, staging, patience.timeout, progress)
        except TransferError as error:
            if not error.again or attempt + 1 == patience.attempts:
                raise
    raise AssertionError("attempts are at least 1")


def _retrieve(url: str, download: Download, staging: Path, timeout: float, progress: Progress | None) -> Path:
    """One attempt: pooch fetches to a temporary file, compares the hash and renames; the transfer itself is ours, which resumes."""
    import pooch

    part = staging / f"{download.name}.part"
    resumed = part.exists()

    def resume(address: str, output: str, _: object) -> None:
        transfer(address, part, download.size, timeout, progress)
        with writing(part):
            part.replace(output)

    try:
        with _quiet(pooch.get_logger()), writing(staging):
            return Path(pooch.retrieve(url, f"sha256:{download.sha256}", download.name, staging, downloader=resume))
    except ValueError:  # pooch has removed the file
        raise TransferError("what it sent has another checksum than the published file", again=resumed) from None


def _by_hand(download: Download, data_dir: Path) -> Path | None:
    """The file itself, if the user or another tool has put it into the data folder."""
    import pooch

    path = data_dir / download.name
    with writing(path):
        whole = path.is_file() and path.stat().st_size == download.size
        return path if whole and pooch.file_hash(os.fspath(path)) == download.sha256 else None


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without pooch's own account of what it does."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
