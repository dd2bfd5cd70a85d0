"""CIFAR-100 with another file for the published one: in this process, or for ``sepnet WORDS`` in a process of its own.

usage: download_child.py ARCHIVE WORDS...
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import sepnet
from sepnet.data import Entry, datasets


def publish(patch: pytest.MonkeyPatch, archive: Path, **changes: object) -> None:
    """Let ``archive`` be the published file, with ``changes`` of what is said of it."""
    entry = datasets.get("cifar100")
    assert entry.source is not None
    content = archive.read_bytes()
    stated = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    download = replace(entry.source.downloads[0], **(stated | changes))  # type: ignore[arg-type]
    patch.setitem(datasets._entries, "cifar100", Entry(entry.read, replace(entry.source, downloads=(download,)), ""))


def start(archive: Path, *words: str) -> subprocess.Popen[str]:
    """Start this file."""
    source = str(Path(sepnet.__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, __file__, str(archive), *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
    from sepnet.cli import main

    publish(pytest.MonkeyPatch(), Path(sys.argv.pop(1)))
    main()
