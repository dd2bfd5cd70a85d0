"""Lock files: one holder at a time, whoever comes, goes or dies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sepnet.locking import locked

# Reads a number, waits, writes the next one, some times over; without a lock several processes would write the same one.
COUNT = """
import sys, time
from pathlib import Path
from sepnet.locking import locked
lock, number = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(15):
    with locked(lock):
        found = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(found + 1))
"""

HOLD = """
import sys, time
from pathlib import Path
from sepnet.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_processes_take_turns(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    crowd = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path / ".lock"), str(number)]) for _ in range(4)]
    assert [process.wait(30) for process in crowd] == [0] * 4
    assert number.read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["number"], "the last one takes the lock file away"


def test_a_killed_holder_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
        holder.kill()
    assert path.exists()
    with locked(path, wait=False):
        pass
    assert not path.exists()


def test_the_next_one_is_told_and_waits(tmp_path: Path) -> None:
    told, entered = threading.Event(), threading.Event()

    def second() -> None:
        with locked(tmp_path / ".lock", waiting=told.set):
            entered.set()

    with locked(tmp_path / ".lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        time.sleep(0.05)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()


def test_an_error_inside_passes_and_releases(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(BlockingIOError, match="mine"), locked(tmp_path / ".lock", wait=False):
            raise BlockingIOError("mine")
