"""A run that is killed, at any moment and however often, and resumed, ends with the bytes of one that was not.

The processes are real and die by SIGKILL. They are forked from a server that has imported everything, so that a death costs
milliseconds.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import crash_child
import pytest
from training_tools import parts_in

from sepnet.engine import load_checkpoint
from sepnet.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX's")

PATIENCE = 300  # seconds; only a hang lasts so long
DIED, INTERRUPTED, DISK_FULL = -signal.SIGKILL, 3, 4

Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_child", "sepnet.api", "sepnet.data", "sklearn.datasets", "matplotlib.pyplot"])
    started: list[BaseProcess] = []

    def begin(folder: Path, **options: Any) -> BaseProcess:
        resume = options.pop("resume", (folder / "config.yaml").exists())
        started.append(context.Process(target=crash_child.train, args=(folder, resume), kwargs=options))
        started[-1].start()
        return started[-1]

    yield begin
    for process in started:
        if process.is_alive():
            process.kill()
        process.join(PATIENCE)


def finish(process: BaseProcess) -> int:
    process.join(PATIENCE)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash") / "whole"
    assert finish(start(folder)) == 0
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves and that does not depend on the clock."""
    with (folder / "metrics.csv").open(newline="") as file:
        metrics = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    record = json.loads((folder / "run.json").read_text())
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in record["history"]]
    release = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "config.yaml")}
    return {"metrics": metrics, "history": history, "result": record["result"], "config": record["config"], **release}


def assert_ends_alike(start: Start, folder: Path, uninterrupted: Path) -> None:
    assert finish(start(folder)) == 0
    assert outcome(folder) == outcome(uninterrupted)
    assert parts_in(folder) == []


# --- deaths at chosen moments -----------------------------------------------------------------------------------------

MOMENTS = [
    ("before a step", 1),
    ("before a step", 23),
    ("in the middle of writing a checkpoint", 1),
    ("in the middle of writing a checkpoint", 19),
    ("when a file is written and not yet on the disk", 1),
    ("when a file is written and not yet on the disk", 30),
    ("before a file gets its name", 2),
    ("before a file gets its name", 11),  # metrics.csv, after the ninth iteration
    ("when a file has got its name", 11),
    ("before a file gets its name", 47),  # the release
    ("when a file has got its name", 47),
    ("when a file has got its name", 48),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: f"{m[0]} {m[1]}".replace(" ", "-"))
def test_killed_at(start: Start, uninterrupted: Path, tmp_path: Path, moment: tuple[str, int]) -> None:
    folder = tmp_path / "run"
    assert finish(start(folder, death=moment)) == DIED
    if (folder / "last.pt").exists():
        load_checkpoint(folder / "last.pt")
    assert_ends_alike(start, folder, uninterrupted)


def test_killed_in_every_way_in_turn(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for death in crash_child.DEATHS:
        for count in (5, 3):
            assert finish(start(folder, death=(death, count))) == DIED
    assert_ends_alike(start, folder, uninterrupted)


# --- deaths at random moments -----------------------------------------------------------------------------------------


def kill_at_random(start: Start, folder: Path, times: int, draw: random.Random, longest: float) -> int:
    """Kill the run until it has died ``times`` times or is finished; the number of deaths."""
    deaths = 0
    while deaths < times:
        process = start(folder)
        time.sleep(draw.uniform(0, longest))
        process.kill()
        code = finish(process)
        deaths += code == DIED
        if code == 0:
            break
    return deaths


def measured(start: Start, folder: Path) -> float:
    """Seconds of a whole run in a process of its own."""
    begin = time.monotonic()
    assert finish(start(folder)) == 0
    return time.monotonic() - begin


def test_killed_at_random_moments(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    seconds = measured(start, tmp_path / "timed")
    draw, deaths = random.Random(0), 0
    for attempt in range(50):
        folder = tmp_path / f"run{attempt}"
        deaths += kill_at_random(start, folder, 6 - deaths, draw, seconds / 2)
        assert_ends_alike(start, folder, uninterrupted)
        if deaths >= 6:
            return
    pytest.fail(f"only {deaths} deaths: the process is not killed in time")


@pytest.mark.slow
def test_killed_at_forty_random_moments(start: Start, tmp_path: Path) -> None:
    settings = {"iterations": 400, "eval_every": 30}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    begin = time.monotonic()
    assert finish(start(whole, settings=settings)) == 0
    seconds = time.monotonic() - begin
    deaths, draw = 0, random.Random(1)
    for attempt in range(50):
        folder = tmp_path / f"run{attempt}"
        assert finish(start(folder, settings=settings, death=("before a step", draw.randint(1, 20)))) == DIED
        deaths += 1 + kill_at_random(start, folder, 39 - deaths, draw, seconds / 6)
        assert_ends_alike(start, folder, whole)
        if deaths >= 40:
            return
    pytest.fail(f"only {deaths} deaths: the process is not killed in time")


# --- other ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(start: Start, uninterrupted: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = start(folder, settings={"checkpoint_seconds": 3600.0, "iterations": 100_000})
    while not (folder / "metrics.csv").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process_signal(process, number)
    assert finish(process) == INTERRUPTED
    assert load_checkpoint(folder / "last.pt")["state"]["iteration"] >= 9
    assert parts_in(folder) == []
    process = start(folder)
    process_signal(process, number)
    finish(process)


def process_signal(process: BaseProcess, number: signal.Signals) -> None:
    import os

    assert process.pid is not None
    os.kill(process.pid, number)
