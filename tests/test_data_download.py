"""``sepnet data get`` against a server that breaks off, corrupts, hangs and lies: afterwards the data set is whole, or absent."""

from __future__ import annotations

import shutil
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_files import write_cifar100
from download_child import publish
from file_server import FileServer
from sepnet.data import Patience, download_dataset, load_dataset
from sepnet.data import _disk as disk_module
from sepnet.data import _download as download_module
from sepnet.errors import ConfigError, DataError, DownloadError, OutputError, SepnetError, UnknownNameError

NAME = "cifar-100-python.tar.gz"
QUICK = Patience(timeout=0.3, attempts=3, pause=0.01)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archive of a small CIFAR-100."""
    root = tmp_path_factory.mktemp("served")
    folder = write_cifar100(tmp_path_factory.mktemp("made"))
    with tarfile.open(root / NAME, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    return root


@pytest.fixture
def server(served: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    publish(monkeypatch, served / NAME)
    with FileServer(served) as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def get(server: FileServer, data: Path, *ways: str, patience: Patience = QUICK, **options: object) -> tuple[str, ...]:
    """Names of the files that were fetched."""
    return download_dataset("cifar100", data, mirrors=[server.url(way) for way in ways], patience=patience, **options).fetched  # type: ignore[arg-type]


def refused(server: FileServer, data: Path, *ways: str, kind: type[SepnetError] = DownloadError) -> str:
    with pytest.raises(kind) as error:
        get(server, data, *ways)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    assert not (data / "cifar-100-python").exists()
    return text


def whole(data: Path) -> bool:
    """Whether the data set is there, can be read, and nothing else is."""
    assert load_dataset("cifar100", data_dir=data).title.startswith("CIFAR-100")
    return [path.name for path in data.iterdir()] == ["cifar-100-python"]


def part(data: Path) -> Path:
    return data / f".{NAME}.get" / f"{NAME}.part"


# ---- what goes well ----


@pytest.mark.parametrize("way", ["whole", "redirect", "from_the_start", "unsized", "labelled", "slow"])
def test_fetched_checked_unpacked(server: FileServer, data: Path, way: str) -> None:
    seen: list[tuple[str, int, int]] = []
    assert get(server, data, way, progress=lambda *step: seen.append(step)) == (NAME,)
    assert whole(data)
    size = (server.root / NAME).stat().st_size
    done = [count for what, count, total in seen if what == NAME and total == size]
    assert done == sorted(done)
    assert done[-1] == size
    assert seen[-1][0] == f"unpacking {NAME}"


def test_what_is_there_is_not_fetched(server: FileServer, data: Path) -> None:
    get(server, data, "whole")
    asked = len(server.asked)
    assert get(server, data, "whole") == ()
    assert len(server.asked) == asked


@pytest.mark.parametrize("way", ["missing", "corrupt", "other", "half", "hang", "silent", "endless", "circle"])
def test_the_next_address_is_asked(server: FileServer, data: Path, way: str) -> None:
    assert get(server, data, way, "whole") == (NAME,)
    assert whole(data)
    assert server.ways()[0] == way
    assert server.ways()[-1] == "whole"


def test_an_archive_put_there_by_hand_is_used_and_kept(server: FileServer, data: Path) -> None:
    data.mkdir()
    shutil.copy(server.root / NAME, data)
    get(server, data, "missing")
    assert server.asked == []
    (data / NAME).unlink()
    assert whole(data)


def test_another_file_of_that_name_is_neither_used_nor_overwritten(server: FileServer, data: Path) -> None:
    data.mkdir()
    (data / NAME).write_bytes(b"x" * (server.root / NAME).stat().st_size)
    get(server, data, "whole")
    assert (data / NAME).read_bytes()[:1] == b"x"


# ---- a server that breaks off, resumed ----


def test_broken_off_and_resumed(server: FileServer, data: Path) -> None:
    size = (server.root / NAME).stat().st_size
    assert "broke off" in refused(server, data, "half")
    assert server.ways() == ["half"] * QUICK.attempts
    arrived = [size // 2, (size // 2 + size) // 2]
    assert [asked for _, _, asked in server.asked] == [None, *(f"bytes={n}-" for n in arrived)]
    kept = part(data).stat().st_size
    assert get(server, data, "whole") == (NAME,)
    assert server.asked[-1][2] == f"bytes={kept}-"
    assert whole(data)


@pytest.mark.parametrize("way", ["from_the_start", "unsized", "whole"])
@pytest.mark.parametrize("content", [b"not of this file", b"x" * 10_000_000])
def test_what_an_earlier_run_left_is_not_trusted(server: FileServer, data: Path, content: bytes, way: str) -> None:
    part(data).parent.mkdir(parents=True)
    part(data).write_bytes(content)
    assert get(server, data, way) == (NAME,)
    assert whole(data)


def test_a_killed_run_leaves_nothing_that_counts(server: FileServer, data: Path) -> None:
    left = part(data).parent
    (left / "unpacked" / "cifar-100-python").mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (left / "unpacked" / "cifar-100-python" / name).write_bytes(b"half")
    (left / NAME).write_bytes(b"half")
    (left / "tmpabc").write_bytes(b"half")
    (data / f".{NAME}.lock").touch()
    get(server, data, "whole")
    assert whole(data)


def test_a_server_that_resumes_at_another_place(server: FileServer, data: Path) -> None:
    part(data).parent.mkdir(parents=True)
    part(data).write_bytes((server.root / NAME).read_bytes()[:5000])
    assert "another place" in refused(server, data, "elsewhere")
    assert get(server, data, "elsewhere", "whole") == (NAME,)


def test_a_busy_server_is_asked_again(server: FileServer, data: Path) -> None:
    assert get(server, data, "busy") == (NAME,)
    assert server.ways() == ["busy"] * 3


# ---- servers that are given up ----


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("missing", "it answers 404"),
        ("corrupt", "another checksum"),
        ("other", "another file, of 500 bytes"),
        ("endless", "sends more than"),
        ("hang", "no byte came for 0.3 s"),
        ("silent", "no byte came for 0.3 s"),
        ("drip", "bytes in 0.3"),
        ("circle", "redirects"),
    ],
)
def test_given_up_with_a_line(server: FileServer, data: Path, way: str, said: str) -> None:
    begun = time.monotonic()
    text = refused(server, data, way)
    assert time.monotonic() - begun < 4
    assert said in text
    assert "127.0.0.1: " in text
    assert "--mirror" in text
    assert [path for path in data.rglob("*") if path.is_file()] == [path for path in [part(data)] if path.exists()]


def test_a_corrupt_file_leaves_nothing(server: FileServer, data: Path) -> None:
    refused(server, data, "corrupt")
    assert not data.exists()
    assert server.ways() == ["corrupt"], "the same bytes are not fetched thrice"


def test_every_address_is_named(server: FileServer, data: Path) -> None:
    text = refused(server, data, "missing", "corrupt", "other")
    assert all(said in text for said in ("404", "checksum", "500 bytes"))


def test_without_a_network(server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError, match=r"www\.cs\.example: its name cannot be resolved.*check the network"):
        download_dataset("cifar100", data, mirrors=["https://www.cs.example/files/"], patience=QUICK)
    assert not data.exists()


def test_nobody_listens(server: FileServer, data: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadError, match="refuses connections"):
            download_dataset("cifar100", data, mirrors=[f"http://127.0.0.1:{reserved.getsockname()[1]}"], patience=QUICK)


# ---- disks ----


def test_too_little_room_is_said_before_anything_is_asked(server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    assert "where 10 MB are free" in refused(server, data, "whole", kind=OutputError)
    assert server.asked == []
    assert not data.exists()


def test_an_incomplete_folder_of_the_user_is_not_touched(server: FileServer, data: Path) -> None:
    (data / "cifar-100-python").mkdir(parents=True)
    (data / "cifar-100-python" / "train").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"is not whole: .* lacks test, meta; move that folder away"):
        get(server, data, "whole")
    assert server.asked == []
    assert (data / "cifar-100-python" / "train").read_bytes() == b"mine"


def test_an_empty_folder_is_filled(server: FileServer, data: Path) -> None:
    (data / "cifar-100-python").mkdir(parents=True)
    get(server, data, "whole")
    assert whole(data)


def test_the_data_folder_is_a_file(server: FileServer, data: Path) -> None:
    data.write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        get(server, data, "whole")


# ---- interrupted ----


def test_interrupted_while_it_unpacks(server: FileServer, data: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("unpacking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, data, "whole", progress=interrupt)
    assert [path.name for path in data.rglob("*") if path.is_file()] == [NAME]
    with pytest.raises(DataError):
        load_dataset("cifar100", data_dir=data)
    assert get(server, data, "missing") == (NAME,)
    assert server.ways() == ["whole"], "what was fetched and is whole is not fetched again"
    assert whole(data)


def test_interrupted_while_it_fetches(server: FileServer, data: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, data, "hang", progress=interrupt)
    assert 0 < part(data).stat().st_size < (server.root / NAME).stat().st_size
    get(server, data, "whole")
    assert whole(data)


def test_an_archive_that_is_not_what_it_should_be(server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server.root / NAME, kept=1000)
    assert "more than the 1,000 bytes to keep" in refused(server, data, "whole", kind=DataError)
    assert not data.exists()


# ---- what is asked for ----


@pytest.mark.parametrize(
    "url", ["ftp://example.org", "example.org/data", "http://", "file:///etc", "/data", "http://a\nb", "http://[1"]
)
def test_a_mirror_that_is_no_url(data: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="URL of a folder"):
        download_dataset("cifar100", data, mirrors=[url])


def test_nothing_to_fetch(data: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to fetch: digits"):
        download_dataset("digits", data)
    with pytest.raises(UnknownNameError, match="cifar10"):
        download_dataset("cifar11", data)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": float("nan")}, {"attempts": 0}])
def test_impatience(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Patience(**wrong)  # type: ignore[arg-type]


def test_pooch_is_as_loud_as_before(server: FileServer, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import pooch

    before = pooch.get_logger().level
    get(server, data, "whole")
    assert pooch.get_logger().level == before
    assert capfd.readouterr() == ("", "")


def test_waiting_is_told(server: FileServer, data: Path) -> None:
    data.mkdir()
    told: list[str] = []

    def release(name: str) -> None:
        told.append(name)
        lock.close()

    lock = download_module.contextlib.ExitStack()
    lock.enter_context(download_module.locked(data / f".{NAME}.lock"))
    assert get(server, data, "whole", waiting=release) == (NAME,)
    assert told == [NAME]
