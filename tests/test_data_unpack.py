"""Archives that lead out of their folder, hold links, or unpack to more than they may; and damaged ones."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sepnet.data import Download
from sepnet.data._disk import Sink
from sepnet.data._unpack import unpack
from sepnet.errors import DataError, SepnetError, UnsafeFileError

Fill = Callable[[tarfile.TarFile], None]


def download(name: str, into: str = "set", **limits: int) -> Download:
    return Download(name, 1, "", (), into, **({"unpacked": 1_000_000, "kept": 1_000_000, "files": 10} | limits))  # type: ignore[arg-type]


def add(tar: tarfile.TarFile, name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    tar.addfile(member, io.BytesIO(content))


def tar_of(tmp_path: Path, fill: Fill, **options: int) -> Path:
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz", **options) as tar:  # type: ignore[call-overload]
        fill(tar)
    return path


def zip_of(tmp_path: Path, names: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content)
    return path


def refused(archive: Path, tmp_path: Path, kind: type[SepnetError] = UnsafeFileError, **limits: int) -> str:
    before = set(tmp_path.rglob("*"))
    with pytest.raises(kind) as error:
        unpack(archive, download(archive.name, **limits), tmp_path / "out")
    text = str(error.value)
    assert "\n" not in text
    assert archive.name in text
    strays = set(tmp_path.rglob("*")) - before
    assert all(path == tmp_path / "out" or (tmp_path / "out") in path.parents for path in strays), "nothing outside the folder"
    return text


def test_a_tar(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "set", b"", tarfile.DIRTYPE)
        add(tar, "./set/deep/b.bin", b"bb")
        add(tar, "set/a.bin", b"a" * 3000)

    steps: list[tuple[str, int, int]] = []
    archive = tar_of(tmp_path, fill)
    made = unpack(archive, download("set.tar.gz"), tmp_path / "out", lambda *step: steps.append(step))
    assert made == tmp_path / "out" / "set"
    assert (made / "a.bin").read_bytes() == b"a" * 3000
    assert (made / "deep" / "b.bin").read_bytes() == b"bb"
    assert steps
    assert all(done <= total == archive.stat().st_size for _, done, total in steps)


def test_a_zip(tmp_path: Path) -> None:
    archive = zip_of(tmp_path, {"set/": b"", "set/deep/b.bin": b"bb", "set/a.bin": b"a" * 3000}, {"set/": stat.S_IFDIR | 0o755})
    made = unpack(archive, download("set.zip"), tmp_path / "out")
    assert (made / "a.bin").read_bytes() == b"a" * 3000
    assert (made / "deep" / "b.bin").read_bytes() == b"bb"


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(b"pixels"))
    made = unpack(tmp_path / "images.gz", download("images.gz", "MNIST/raw/images"), tmp_path / "out")
    assert made == tmp_path / "out" / "images"
    assert made.read_bytes() == b"pixels"


def test_only_what_is_wanted_is_written(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "set/a", b"a")
        add(tar, "set/large", bytes(50_000))
        add(tar, "set/b", b"b")

    archive = tar_of(tmp_path, fill)
    wanted = Download("set.tar.gz", 1, "", (), "set", unpacked=100_000, kept=10, files=3, only=("a", "b"))
    assert sorted(path.name for path in unpack(archive, wanted, tmp_path / "out").iterdir()) == ["a", "b"]


OUTSIDE = [
    "../evil",
    "set/../../evil",
    "/tmp/evil",
    "evil",
    "other/evil",
    "set/..",
    "..\\evil",
    "set\\..\\..\\evil",
    "C:\\evil",
    "C:evil",
    "set/C:evil",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_tar_that_leads_out(tmp_path: Path, name: str) -> None:
    assert "outside set/" in refused(tar_of(tmp_path, lambda tar: add(tar, name)), tmp_path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_zip_that_leads_out(tmp_path: Path, name: str) -> None:
    assert "outside set/" in refused(zip_of(tmp_path, {name: b"x"}), tmp_path)


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, "a"),
        (tarfile.LNKTYPE, "set/a"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
    ],
)
def test_a_tar_with_more_than_files(tmp_path: Path, kind: bytes, link: str) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "set/a")
        add(tar, "set/link", b"", kind, link)
        add(tar, "set/link/inside")

    assert "set/link, which is no plain file" in refused(tar_of(tmp_path, fill), tmp_path)


def test_a_zip_with_a_link(tmp_path: Path) -> None:
    archive = zip_of(tmp_path, {"set/link": b"/etc", "set/link/passwd": b"x"}, {"set/link": stat.S_IFLNK | 0o777})
    assert "no plain file" in refused(archive, tmp_path)


def test_a_name_twice(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "set/a", b"one")
        add(tar, "set/a", b"two")

    with pytest.raises(SepnetError, match="set/a"):
        unpack(tar_of(tmp_path, fill), download("set.tar.gz"), tmp_path / "out")


class Narrow(io.RawIOBase):
    """A file that takes a few bytes at a time, as a disk does that is nearly full."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, block: Any) -> int:
        self.taken += bytes(block[:3])
        return min(3, len(block))


def test_all_of_a_block_is_written(tmp_path: Path) -> None:
    with Sink(tmp_path / "a", "x") as sink:
        sink._file.close()
        sink._file = narrow = Narrow()  # type: ignore[assignment]
        sink.write(b"0123456789")
    assert narrow.taken == b"0123456789"


BOMB = bytes(30_000_000)


def written(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_tar_bomb(tmp_path: Path) -> None:
    archive = tar_of(tmp_path, lambda tar: add(tar, "set/a", BOMB))
    assert archive.stat().st_size < 100_000
    assert "more than the 1,000,000 bytes that are known" in refused(archive, tmp_path)
    assert written(tmp_path) <= 1_000_000
    assert "more than the 2,000,000 bytes to keep" in refused(archive, tmp_path / "again", unpacked=50_000_000, kept=2_000_000)


def test_a_tar_with_an_endless_header(tmp_path: Path) -> None:
    """A pax header is read into memory; it counts as well."""

    def fill(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("set/a")
        member.pax_headers = {"comment": "x" * 5_000_000}
        tar.addfile(member)

    archive = tar_of(tmp_path, fill, format=tarfile.PAX_FORMAT)
    assert "more than the 1,000,000 bytes" in refused(archive, tmp_path)


def test_a_zip_bomb(tmp_path: Path) -> None:
    archive = zip_of(tmp_path, {"set/a": BOMB})
    assert archive.stat().st_size < 100_000
    assert "more than the 1,000,000 bytes" in refused(archive, tmp_path)
    assert written(tmp_path) <= 1_000_000


def test_a_gzip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(BOMB))
    with pytest.raises(UnsafeFileError, match="more than the 1,000,000 bytes"):
        unpack(path, download("images.gz", "MNIST/raw/images"), tmp_path / "out")
    assert written(tmp_path) <= 1_000_000


def test_too_many_files(tmp_path: Path) -> None:
    names = {f"set/{i}": b"" for i in range(11)}
    assert "more than the 10 files and folders" in refused(zip_of(tmp_path, names), tmp_path)
    archive = tar_of(tmp_path, lambda tar: [add(tar, name, b"") for name in names] and None)
    assert "more than the 10 files and folders" in refused(archive, tmp_path / "again")


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b[:5], lambda b: b"", lambda b: b[:60] + bytes(40) + b[100:], lambda b: b"x" * 500],
)
@pytest.mark.parametrize("name", ["set.tar.gz", "set.zip", "set.gz"])
def test_damaged(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    content = bytes(i * i % 251 for i in range(20_000))
    if name == "set.zip":
        path = zip_of(tmp_path, {"set/a": content})
    elif name == "set.gz":
        path = tmp_path / name
        path.write_bytes(gzip.compress(content))
    else:
        path = tar_of(tmp_path, lambda tar: add(tar, "set/a", content))
    path.write_bytes(damage(path.read_bytes()))
    assert "fetch it again" in refused(path, tmp_path, DataError)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    assert "does not hold set" in refused(tar_of(tmp_path, lambda tar: None), tmp_path, DataError)
