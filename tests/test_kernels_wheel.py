"""Wheels of the source distribution, built with a C compiler and without, installed and used."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from test_kernels_library import needs_compiler, train_with

ROOT = Path(__file__).resolve().parents[1]
LIBRARY_IN_WHEEL = "sepnet/kernels/_sepnet_kernels.so"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="no library is built there"),
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a source tree"),
]


def python(*words: object, cwd: Path, **environment: str) -> str:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a clean tree: what the repository keeps, and nothing that was built in it."""
    pytest.importorskip("setuptools", minversion="77")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not in a clone: which files belong to it cannot be told")
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    python("-W", "ignore", "-c", build, out, cwd=tree)
    (archive,) = out.iterdir()
    return archive


def build_and_install(archive: Path, tmp_path: Path, **environment: str) -> tuple[Path, Path]:
    """The wheel, and the folder that it was installed into."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    python(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path, source, cwd=tmp_path, **environment)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    python(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    return wheel, site


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@needs_compiler
def test_with_a_compiler_the_wheel_carries_the_library(archive: Path, tmp_path: Path) -> None:
    wheel, site = build_and_install(archive, tmp_path)
    interpreter, abi, platform = wheel.stem.split("-")[2:]
    assert (interpreter, abi) == ("py3", "none")  # one wheel for every Python
    assert platform != "any"
    assert LIBRARY_IN_WHEEL in names_in(wheel)
    trained, native, caught = train_with(site, tmp_path).split(maxsplit=2)
    assert (trained, native, caught.strip()) == ("True", "True", "[]")


def test_without_a_compiler_the_wheel_trains_all_the_same(archive: Path, tmp_path: Path) -> None:
    wheel, site = build_and_install(archive, tmp_path, CC="false", CXX="false", LDSHARED="false")
    assert LIBRARY_IN_WHEEL not in names_in(wheel)
    trained, native, caught = train_with(site, tmp_path).split(maxsplit=2)
    assert (trained, native) == ("True", "False")
    assert caught.count("sepnet's native kernels are not in use") == 1
