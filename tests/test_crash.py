"""A run that is killed, at any moment and however often, and resumed, ends with the bytes of one that was not.

The processes are real and die by SIGKILL. They are forked from a server that has imported everything, so that a death costs
milliseconds.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import sepnet
from sepnet.engine import load_checkpoint
from sepnet.errors import CheckpointError, ConfigError
from training_tools import parts_in

if sys.platform == "win32":
    pytest.skip("SIGKILL and fork are POSIX's", allow_module_level=True)

from crash_child import DEATHS, DISK_FULL, ERROR, INTERRUPTED, WAITING, train

PATIENCE = 300  # seconds; only a hang lasts so long
DIED = -signal.SIGKILL

Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_child", "sepnet.api", "sepnet.data", "sklearn.datasets", "matplotlib.pyplot"])
    started: list[BaseProcess] = []

    def begin(folder: Path, **options: Any) -> BaseProcess:
        resume = options.pop("resume", (folder / "config.yaml").exists())
        started.append(context.Process(target=train, args=(folder, resume), kwargs=options))
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


def is_finished(folder: Path) -> bool:
    """Whether the run has written its last file; a kill after that came too late."""
    return (folder / "run.json").exists()


def assert_ends_alike(start: Start, folder: Path, uninterrupted: Path) -> None:
    assert is_finished(folder) or finish(start(folder)) == 0
    assert outcome(folder) == outcome(uninterrupted)
    assert parts_in(folder) == []


# --- deaths at chosen moments -----------------------------------------------------------------------------------------

# 40 checkpoints, 5 times metrics.csv, once config.yaml: the 47th file is the release
MOMENTS = [
    ("before a step", 1),
    ("before a step", 23),
    ("half of a checkpoint is written", 1),
    ("half of a checkpoint is written", 19),
    ("a file is written but not on the disk", 1),
    ("before a file gets its name", 2),
    ("before a file gets its name", 11),
    ("after a file got its name", 11),
    ("before a file gets its name", 47),
    ("after a file got its name", 48),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: f"{m[0]} {m[1]}".replace(" ", "-"))
def test_killed_when(start: Start, uninterrupted: Path, tmp_path: Path, moment: tuple[str, int]) -> None:
    folder = tmp_path / "run"
    assert finish(start(folder, mishap=moment)) == DIED
    if (folder / "last.pt").exists():
        load_checkpoint(folder / "last.pt")
    assert_ends_alike(start, folder, uninterrupted)


def test_killed_in_every_way_in_turn(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in DEATHS:
        for count in (5, 3):
            assert finish(start(folder, mishap=(name, count))) == DIED
    assert_ends_alike(start, folder, uninterrupted)


# --- deaths at random moments -----------------------------------------------------------------------------------------


def kill_at_random(start: Start, folder: Path, times: int, draw: random.Random, longest: float) -> int:
    """Kill the run until it has died ``times`` times or is finished; the number of deaths."""
    deaths = 0
    while deaths < times and not is_finished(folder):
        process = start(folder)
        time.sleep(draw.uniform(0, longest))
        process.kill()
        code = finish(process)
        assert code in (0, DIED)
        deaths += code == DIED
    return deaths


def measured(start: Start, folder: Path, **options: Any) -> float:
    """Seconds of a whole run in a process of its own."""
    begin = time.monotonic()
    assert finish(start(folder, **options)) == 0
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
    whole = tmp_path / "whole"
    seconds = measured(start, whole, settings=settings)
    deaths, draw = 0, random.Random(1)
    for attempt in range(50):
        folder = tmp_path / f"run{attempt}"
        # the settings are those of the first process; the others read them from the folder
        assert finish(start(folder, settings=settings, mishap=("before a step", draw.randint(1, 20)))) == DIED
        deaths += 1 + kill_at_random(start, folder, 39 - deaths, draw, seconds / 6)
        assert_ends_alike(start, folder, whole)
        if deaths >= 40:
            return
    pytest.fail(f"only {deaths} deaths: the process is not killed in time")


# --- other ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(start: Start, uninterrupted: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder, marker = tmp_path / "run", tmp_path / WAITING
    # no other checkpoint than the one of the interruption
    process = start(folder, mishap=(WAITING, 15), settings={"checkpoint_seconds": 3600.0})
    while not marker.exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    marker.unlink()
    assert finish(process) == INTERRUPTED
    assert load_checkpoint(folder / "last.pt")["state"]["iteration"] == 15
    assert parts_in(folder) == []
    assert finish(start(folder)) == 0
    expected, found = outcome(uninterrupted), outcome(folder)
    assert found["model.safetensors"] == expected["model.safetensors"]
    assert (found["metrics"], found["history"]) == (expected["metrics"], expected["history"])


def test_the_disk_is_full(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finish(start(folder, mishap=("the disk is full", 13))) == DISK_FULL
    message = (tmp_path / ERROR).read_text()
    assert re.fullmatch(r"cannot write [^\n]*last\.pt: [^\n]+; the earlier file is untouched", message)
    assert load_checkpoint(folder / "last.pt")["state"]["iteration"] == 12
    assert parts_in(folder) == []
    assert_ends_alike(start, folder, uninterrupted)


# --- what cannot be resumed -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(uninterrupted: Path, tmp_path: Path) -> Path:
    """The run as a kill before its last file would have left it."""
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "copy"))
    (folder / "run.json").unlink()
    return folder


def refused(folder: Path, **settings: Any) -> str:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        sepnet.train(resume=folder, device="cpu", **settings)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_cut_in_half(copy: Path) -> None:
    whole = (copy / "last.pt").read_bytes()
    (copy / "last.pt").write_bytes(whole[: len(whole) // 2])
    assert f"{copy / 'last.pt'} is not a whole checkpoint" in refused(copy)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.06}, "with lr 0.05, this run has lr 0.06"),
        ({"iterations": 41}, "with iterations 40, this run has iterations 41"),
        ({"model": "alexnet_units"}, "with model multiscale_concat, this run has model alexnet_units"),
        ({"model_options": {"units": [4, 16]}}, "[4, 8]"),
        ({"seed": 1}, "with seed 0"),
        ({"size": 9}, "with size 8, this run has size 9"),
    ],
    ids=str,
)
def test_other_settings(copy: Path, settings: dict[str, Any], said: str) -> None:
    message = refused(copy, **settings)
    assert said in message
    assert "--output" in message


def test_no_run_there(tmp_path: Path) -> None:
    assert "no run to resume" in refused(tmp_path)


def test_a_finished_run_is_not_resumed(uninterrupted: Path, tmp_path: Path) -> None:
    finished = Path(shutil.copytree(uninterrupted, tmp_path / "finished"))
    assert "is finished: there is nothing to resume" in refused(finished)
    assert "another data set" in refused(finished, size=9)


def test_a_folder_that_holds_a_run_is_not_written_over(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"already holds a run; .*--resume"):
        sepnet.train("digits", output=copy)


@pytest.mark.parametrize("settings", [{"shift": 8}, {"keep": "best", "val_fraction": 0.0}, {"model_options": {"unit": 1}}], ids=str)
def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        sepnet.train("digits", output=tmp_path / "run", device="cpu", **settings)
    assert not (tmp_path / "run").exists()
