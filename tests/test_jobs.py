"""``sepnet reproduce --jobs``: several runs at a time, in processes that are started, fail, die and are interrupted."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sepnet
from cli_runner import error_of, invoke
from jobs_work import work
from sepnet.api import check_jobs, plan, reproduce
from sepnet.api._jobs import Failure, run_jobs
from sepnet.engine import Interrupted
from sepnet.errors import ConfigError
from sepnet.recipes import Paper, papers
from small_paper import RECIPES, lasting, small_paper

SLOW_SIGKILL = pytest.param(getattr(signal, "SIGKILL", None), marks=pytest.mark.slow)
ITERATIONS = 1_000_000  # of runs that are interrupted
PATIENCE = 120  # seconds; only a hang lasts so long


@pytest.fixture(autouse=True)
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Paper], None]:
    """Makes a paper the only one; at first the small one."""

    def make(paper: Paper) -> None:
        monkeypatch.setattr(papers, "get", lambda _: paper)

    make(small_paper())
    monkeypatch.setattr("sepnet.api._plan.seconds_per_run", lambda *_: 1.0)
    monkeypatch.chdir(tmp_path)
    return make


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.results: dict[str, object] = {}
        self.reasons: dict[str, str] = {}

    def begin(self, task: str, number: int) -> None:
        self.began.append(task)
        assert number == len(self.began)

    def finished(self, task: str, result: object) -> None:
        self.results[task] = result

    def failed(self, task: str, failure: Failure) -> None:
        self.reasons[task] = failure.reason
        assert bool(failure.trace) == (task == "defect")


def records(output: Path) -> dict[str, dict[str, Any]]:
    """All records without their times."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((output / "records").glob("*.json"))}
    for record in found.values():
        del record["finished"], record["seconds"]
        for row in record["history"]:
            del row["seconds"]
    return found


def test_two_at_a_time_leave_the_records_of_one_whatever_becomes_of_a_third(
    tmp_path: Path, use: Callable[[Paper], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(small_paper({"plain": "plain", "broken": "broken", "modern": "modern"}))
    words = ("reproduce", "small", "--table", 1, "--seeds", 1, "--models", "mobilenet_units", "--device", "cpu")
    result = invoke(*words, "--jobs", 2, exit_code=2)
    assert multiprocessing.active_children() == []
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: 1 of 3 runs failed, the others are recorded: digits-mobilenet_units-broken-seed0: ")
    assert "loss" in last
    assert "[1/3] digits, mobilenet_units, plain, seed 0: begins" in result.stderr
    assert "[2/3] digits, mobilenet_units, broken, seed 0: failed: " in result.stderr
    assert "[3/3] digits, mobilenet_units, modern, seed 0: test accuracy" in result.stderr
    assert (tmp_path / "runs/small/table-1.md").exists()
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    reproduce(plan("small", tables=[1], seeds=1, models=["mobilenet_units"], recipes=["plain", "modern"]), device="cpu")
    found, alone = records(tmp_path / "runs/small"), records(tmp_path / "alone/runs/small")
    assert list(found) == [f"digits-mobilenet_units-{recipe}-seed0" for recipe in ("modern", "plain")]
    assert found == alone  # the command and the number of threads are among it


def test_the_expected_time_says_that_it_is_of_one_after_the_other() -> None:
    words = ("reproduce", "small", "--table", 1, "--seeds", 1, "--dry-run")
    assert "if the runs followed one another; 3 go on at a time" in invoke(*words, "--jobs", 3).stdout
    assert "if the runs" not in invoke(*words).stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_a_process_that_dies_takes_its_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    listener = Listener()
    run_jobs(work, ["dies", "defect", "runs"], 2, listener)
    assert listener.began == ["dies", "defect", "runs"]
    assert listener.reasons == {
        "dies": "its process was ended by SIGKILL (memory may be short: fewer jobs need less)",
        "defect": "internal error: ZeroDivisionError: by zero",
    }
    assert listener.results == {"runs": ("2", 2, sys.argv)}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes from /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, SLOW_SIGKILL], ids=lambda number: number.name)
def test_an_interruption_saves_the_runs_and_leaves_no_process(
    number: signal.Signals, tmp_path: Path, use: Callable[[Paper], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = ("--table", "1", "--seeds", "1", "--models", "mobilenet_units", "--device", "cpu", "--jobs", "2")
    source, here = Path(sepnet.__file__).resolve().parents[1], Path(__file__).resolve().parent
    command = [sys.executable, str(here / "reproduce_child.py"), str(ITERATIONS), "reproduce", "small", *choice]
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}
    folders = [tmp_path / "runs/small" / f"digits-mobilenet_units-{recipe}-seed0" for recipe in RECIPES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as process:
        _until(lambda: process.poll() is not None or all((folder / "metrics.csv").exists() for folder in folders))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert len(children) >= 2, stderr
    if number == signal.SIGINT:
        assert process.returncode == 130, stderr
        assert stderr.splitlines()[-1].endswith("the same command goes on from here")
    assert "Traceback" not in stderr
    assert stdout.count("the script runs") == 1
    _until(lambda: not any(_lives(child) for child in children))
    assert all((folder / "last.pt").exists() for folder in folders)
    use(small_paper(configure=lasting(ITERATIONS)))
    resumed: list[bool] = []

    def fit(*_: object, resume: bool, **__: object) -> None:
        resumed.append(resume)
        raise Interrupted(0, None)

    monkeypatch.setattr("sepnet.api._run.fit", fit)
    for recipe in RECIPES:
        with pytest.raises(Interrupted):
            reproduce(plan("small", tables=[1], seeds=1, models=["mobilenet_units"], recipes=[recipe]), device="cpu")
    assert resumed == [True, True]


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


def _lives(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("jobs", ["0", "-1", "257", "two", "1.5"])
def test_a_number_of_jobs_that_is_none(jobs: str) -> None:
    assert "--jobs" in error_of("reproduce", "small", "--jobs", jobs)


@pytest.mark.parametrize("jobs", [0, True, 1.5, "2"])
def test_a_number_of_jobs_that_is_none_in_python(jobs: Any) -> None:
    with pytest.raises(ConfigError, match="--jobs must be a whole number from 1 to 256, got "):
        reproduce("small", jobs=jobs)


def test_jobs_and_torchrun_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_jobs(1)
    with pytest.raises(ConfigError, match="torchrun"):
        check_jobs(2)
