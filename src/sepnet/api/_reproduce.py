"""``sepnet.reproduce``: a paper's tables and figures, each run once, recorded, and picked up where it was left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from sepnet.api._experiment import Experiment, dataset_of, record_path, same_config
from sepnet.api._jobs import Failure, check_jobs, run_jobs
from sepnet.api._paper_report import write_report
from sepnet.api._plan import Plan, plan
from sepnet.api._run import run_training
from sepnet.api._speed import SpeedTest, run_speed_test
from sepnet.engine import Reporter, atomic_write, check_writable
from sepnet.errors import CheckpointError, TrainingError
from sepnet.report import RunRecord, SpeedRecord, save_record

__all__ = ["Listener", "reproduce"]


class Listener(Protocol):
    """What ``reproduce`` tells of its progress."""

    def begin(self, experiment: Experiment, number: int, total: int) -> Reporter | None:
        """A run starts; the reporter returned follows it, unless several run at a time."""
        ...

    def finished(self, experiment: Experiment, record: RunRecord) -> None:
        """A run is recorded."""
        ...

    def failed(self, experiment: Experiment, reason: str) -> None:
        """One of several runs at a time has failed; the others go on."""
        ...

    def timed(self, test: SpeedTest, record: SpeedRecord) -> None:
        """A measurement of speed is recorded."""
        ...


def reproduce(agreed: Plan | str, *, device: str = "auto", jobs: int = 1, listener: Listener | None = None) -> list[Path]:
    """Run what a plan has left to run, and write its tables (Markdown, JSON), figures (PNG).

    Speed is measured first: it is short. Each run is recorded as it ends, and the tables are drawn anew, so a call that was
    interrupted is continued by the same call: finished runs are not repeated, the interrupted one resumes from its checkpoint.

    Args:
        agreed: a plan, or a paper's name for a plan of everything.
        jobs: runs at a time, each in a process of its own. They share the threads of this one, or the GPU. What a script has
            entered into a registry itself is not known there.

    Returns:
        The files written.

    Raises:
        SepnetError, Interrupted: as in training. With several jobs, a run that fails does not end the others: a TrainingError
            names those that did once all have ended, and an interruption is a plain KeyboardInterrupt.
    """
    check_jobs(jobs)
    todo_plan = plan(agreed, device=device) if isinstance(agreed, str) else agreed
    for folder in todo_plan.folders:
        check_writable(folder)
    for test in todo_plan.speed_todo:
        speed = run_speed_test(test, todo_plan.output, device)
        if listener:
            listener.timed(test, speed)
    place = _Place(todo_plan.work, todo_plan.output, todo_plan.data_dir, device)
    if jobs > 1:
        _run_side_by_side(todo_plan, place, jobs, listener)
    else:
        _run_in_turn(todo_plan, place, listener)
    return write_report(todo_plan)


@dataclass(frozen=True)
class _Place:
    """Where runs find and leave what they need: what another process must know of a plan."""

    work: Path
    output: Path
    data_dir: Path
    device: str


def _run_in_turn(agreed: Plan, place: _Place, listener: Listener | None) -> None:
    todo = agreed.todo
    for number, experiment in enumerate(todo, start=1):
        reporter = listener.begin(experiment, number, len(todo)) if listener else None
        record = _run(place, experiment, reporter)
        write_report(agreed)
        if listener:
            listener.finished(experiment, record)


def _run_side_by_side(agreed: Plan, place: _Place, jobs: int, listener: Listener | None) -> None:
    """Raises TrainingError, once all runs have ended, if some of them failed."""
    todo = agreed.todo
    follower = _SideBySide(agreed, len(todo), listener)
    run_jobs(partial(_run, place), todo, jobs, follower)
    if follower.failures:
        write_report(agreed)
        raise follower.error()


class _SideBySide:
    """Follows several runs at a time: draws the report anew after each, and remembers those that failed."""

    def __init__(self, agreed: Plan, total: int, listener: Listener | None) -> None:
        self.agreed, self.total, self.listener = agreed, total, listener
        self.failures: dict[str, Failure] = {}

    def begin(self, task: Experiment, number: int) -> None:
        if self.listener:
            self.listener.begin(task, number, self.total)

    def finished(self, task: Experiment, result: RunRecord) -> None:
        write_report(self.agreed)
        if self.listener:
            self.listener.finished(task, result)

    def failed(self, task: Experiment, failure: Failure) -> None:
        self.failures[task.key] = failure
        if self.listener:
            self.listener.failed(task, failure.reason)

    def error(self) -> TrainingError:
        """All failures in one line, runs with the same reason together; the traces are its notes."""
        keys: dict[str, list[str]] = {}
        for key, failure in self.failures.items():
            keys.setdefault(failure.reason, []).append(key)
        why = "; ".join(f"{', '.join(which)}: {reason}" for reason, which in keys.items())
        error = TrainingError(f"{len(self.failures)} of {self.total} runs failed, the others are recorded: {why}")
        for key, failure in self.failures.items():
            if failure.trace:
                error.add_note(f"in {key}:\n{failure.trace}")
        return error


def _run(place: _Place, experiment: Experiment, reporter: Reporter | None = None) -> RunRecord:
    folder = place.work / experiment.key
    dataset = dataset_of(experiment.config, place.data_dir)
    watched: Literal["val", "test"] = "val" if experiment.config.val_fraction else "test"

    def train(resume: bool) -> RunRecord:
        run = run_training(
            experiment.config, dataset, folder, device=place.device, resume=resume, evaluate_on=watched, reporter=reporter
        )
        return run.record

    record = _resume_or_start(train, experiment, folder)
    small = record.model_copy(update={"result": {k: _without_matrix(v) for k, v in record.result.items()}})
    atomic_write(record_path(experiment, place.output), lambda file: file.write(save_record(small)))
    (folder / "last.pt").unlink(missing_ok=True)  # the release stays; the record says the run is done
    return small


def _resume_or_start(train: Callable[[bool], RunRecord], experiment: Experiment, folder: Path) -> RunRecord:
    if (folder / "last.pt").exists() and same_config(experiment, folder):
        (folder / "run.json").unlink(missing_ok=True)  # killed between the run's end and its record: its end comes again
        try:
            return train(True)
        except CheckpointError:
            pass  # damaged, or of an earlier version of the recipe: nothing of it can be used, the run starts anew
    return train(False)


def _without_matrix(scores: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in scores.items() if k not in ("confusion", "per_class")}
