"""``sepnet data get`` as a process: Ctrl-C, a kill, a full disk, two at once; and every source of the registry."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import resource
import signal
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import download_child
from cli_runner import error_of, invoke
from data_files import write_cifar100, write_mnist, write_stl10, write_svhn, write_tiny_imagenet
from download_child import publish
from file_server import FileServer
from sepnet.data import Download, Entry, datasets, download_dataset, load_dataset

NAME = "cifar-100-python.tar.gz"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / NAME
    folder = write_cifar100(tmp_path_factory.mktemp("made"))
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    return path


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    publish(monkeypatch, archive)
    with FileServer(archive.parent, slowly=0.02) as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def words(server: FileServer, data: Path, way: str) -> tuple[str, ...]:
    return ("data", "get", "cifar100", "--data-dir", str(data), "--mirror", server.url(way))


def part(data: Path) -> Path:
    return data / f".{NAME}.get" / f"{NAME}.part"


def until_it_arrives(*folders: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(part(data).exists() and part(data).stat().st_size for data in folders):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fetched(*line: str) -> list[str]:
    found: list[str] = json.loads(invoke(*line, "--json").stdout)["fetched"]
    return found


# ---- processes ----


def test_stopped_and_gone_on_with(server: FileServer, archive: Path, tmp_path: Path) -> None:
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    with (
        download_child.start(archive, *words(server, stopped, "hang")) as first,
        download_child.start(archive, *words(server, killed, "hang")) as second,
    ):
        until_it_arrives(stopped, killed)
        first.send_signal(signal.SIGINT)
        second.kill()
        stdout, stderr = first.communicate(timeout=60)
        second.communicate(timeout=60)
    assert (first.returncode, stdout) == (130, "")
    assert (
        stderr.splitlines()[-1] == f"interrupted; go on from what has arrived with: sepnet data get cifar100 --data-dir {stopped}"
    )
    assert "Traceback" not in stderr
    assert [path.name for path in stopped.rglob("*")] == [f".{NAME}.get", f"{NAME}.part"]
    for data in (stopped, killed):
        assert "sepnet data get cifar100" in error_of("train", "cifar100", "--data-dir", data), "it does not pass for the data set"
        assert fetched(*words(server, data, "whole")) == [NAME]
        assert server.asked[-1][2] is not None, "resumed"
        assert [path.name for path in data.iterdir()] == ["cifar-100-python"]
        load_dataset("cifar100", data_dir=data)


def test_two_at_once_fetch_it_once(server: FileServer, archive: Path, data: Path) -> None:
    with download_child.start(archive, *words(server, data, "slow"), "--json") as first:
        until_it_arrives(data)
        waited = invoke(*words(server, data, "slow"), "--json")
        assert json.loads(first.communicate(timeout=60)[0])["fetched"] == [NAME]
    assert json.loads(waited.stdout)["fetched"] == []
    assert f"another process is fetching {NAME}" in waited.stderr
    assert server.ways() == ["slow"]
    assert [path.name for path in data.iterdir()] == ["cifar-100-python"]


# ---- disks that fill up ----


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets every file of this process end at so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda largest: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_disk_fills_up_while_it_arrives(server: FileServer, data: Path, small_disk: Callable[[int], None]) -> None:
    small_disk(100_000)
    said = invoke(*words(server, data, "whole"), exit_code=2).stderr.splitlines()[-1]
    assert re.fullmatch(r"error: cannot write .*\.part: File too large", said)
    assert not data.exists()


def test_the_disk_fills_up_while_it_unpacks(
    server: FileServer, tmp_path: Path, data: Path, small_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zeros").write_bytes(bytes(2_000_000))
    with tarfile.open(tmp_path / NAME, "w:gz") as tar:
        tar.add(tmp_path / "zeros", "cifar-100-python/zeros")
    publish(monkeypatch, tmp_path / NAME)
    server.root = tmp_path
    small_disk(1_000_000)
    said = invoke(*words(server, data, "whole"), exit_code=2).stderr.splitlines()[-1]
    assert re.fullmatch(r"error: cannot write .*/zeros: File too large", said)
    assert not data.exists()


# ---- the command ----


def test_the_command(server: FileServer, data: Path) -> None:
    done = invoke(*words(server, data, "whole"))
    assert "Krizhevsky" in done.stdout
    assert f"sepnet train cifar100 --data-dir {data}" in done.stdout
    assert NAME in done.stderr, "progress in a log"
    found = json.loads(invoke("data", "get", "cifar100", "--data-dir", data, "--json").stdout)
    assert found["fetched"] == []
    assert str(data / "cifar-100-python" / "train") in found["files"]
    assert "which was there already" in invoke("data", "get", "cifar100", "--data-dir", data).stdout


def test_the_list_tells_what_is_there(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    for line in (("data",), ("data", "list")):
        found = {row["name"]: row for row in json.loads(invoke(*line, "--data-dir", tmp_path, "--json").stdout)}
        assert list(found) == list(datasets)
        assert {name for name, row in found.items() if row["present"]} == {"cifar100", "cifar100-coarse"}
        assert found["digits"]["present"] is None
        assert all(row["summary"] for row in found.values())
    rows = [line.split() for line in invoke("data", "--data-dir", tmp_path).stdout.splitlines()]
    assert ["cifar100", "169.0", "MB", "yes"] in [row[:4] for row in rows]
    assert ["cifar10", "170.5", "MB", "no"] in [row[:4] for row in rows]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("cifar1000",), "did you mean cifar100"),
        (("digits",), "nothing to fetch"),
        (("mnist", "--mirror", "example.org"), "example.org"),
        (("mnist", "--timeout", 0), "above 0 seconds"),
        ((), "Missing argument"),
    ],
)
def test_refused(line: tuple[object, ...], said: str) -> None:
    assert said in error_of("data", "get", *line)


# ---- every source ----

SOURCES = [name for name in datasets if datasets.get(name).source is not None]


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_complete(name: str) -> None:
    source = datasets.get(name).source
    assert source is not None
    assert datasets.get(source.name).source == source, "the name that messages tell to fetch"
    assert all((source.title, source.homepage, source.licence, source.citation, source.needs, source.downloads))
    for download in source.downloads:
        assert re.fullmatch(r"[0-9a-f]{64}", download.sha256)
        assert download.size > 0
        assert download.mirrors
        assert all(re.fullmatch(r"https?://[^/]+\S*[^/]", url) for url in download.mirrors)
        assert download.kept > 0
        assert download.unpacked == 0 or download.kept <= download.unpacked
        packed = download.name.endswith((".tar.gz", ".zip", ".gz"))
        assert bool(download.unpacked) == packed


def pack(download: Download, data: Path, served: Path) -> Download:
    """Write the file that ``download`` names, of the data set in ``data``, to the server; and state its size and hash."""
    made, target = data / download.into, served / download.name
    if download.name.endswith(".tar.gz"):
        with tarfile.open(target, "w:gz", compresslevel=1) as tar:
            tar.add(made, made.name)
    elif download.name.endswith(".zip"):
        with zipfile.ZipFile(target, "w") as archive:
            for path in [made, *sorted(made.rglob("*"))]:
                archive.write(path, path.relative_to(data))
    elif download.name.endswith(".gz"):
        target.write_bytes(gzip.compress(made.read_bytes()))
    else:
        target.write_bytes(made.read_bytes())
    content = target.read_bytes()
    return replace(download, size=len(content), sha256=hashlib.sha256(content).hexdigest())


WRITERS: dict[str, Callable[[Path], object]] = {
    "cifar100": write_cifar100,
    "mnist": write_mnist,
    "stl10": write_stl10,
    "svhn": write_svhn,
    "svhn-extra": write_svhn,
    "tiny-imagenet": write_tiny_imagenet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_fetched_is_read(name: str, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, served = tmp_path / "made", tmp_path / "served"
    served.mkdir()
    WRITERS[name](made)
    if name == "stl10":
        (made / "stl10_binary" / "unlabeled_X.bin").write_bytes(bytes(27_648))
    entry = datasets.get(name)
    assert entry.source is not None
    source = replace(entry.source, downloads=tuple(pack(download, made, served) for download in entry.source.downloads))
    monkeypatch.setitem(datasets._entries, name, Entry(entry.read, source, ""))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FileServer(served) as server:
        fetched = download_dataset(name, data, mirrors=[f"{server.url()}/"]).fetched
    assert fetched == tuple(download.name for download in source.downloads)
    cache = tmp_path / "cache"
    assert (
        load_dataset(name, data_dir=data, cache_dir=cache).fingerprint
        == load_dataset(name, data_dir=made, cache_dir=cache).fingerprint
    )
    assert not list(data.rglob(".*"))
    assert not (data / "stl10_binary" / "unlabeled_X.bin").exists(), "2.8 GB that nobody reads"
