"""``sepnet.reproduce``: a paper's tables and figures, each run once, recorded, and picked up where it was left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from sepnet.api._experiment import Experiment, dataset_of, record_path, same_settings
from sepnet.api._paper_report import write_report
from sepnet.api._plan import Plan, plan
from sepnet.api._run import run_training
from sepnet.api._speed import SpeedTest, run_speed_test
from sepnet.engine import Reporter, atomic_write
from sepnet.errors import CheckpointError, SepnetError
from sepnet.recipes import load_yaml
from sepnet.report import RunRecord, SpeedRecord, save_record

__all__ = ["Listener", "reproduce"]


class Listener(Protocol):
    """What ``reproduce`` tells of its progress."""

    def begin(self, experiment: Experiment, number: int, total: int) -> Reporter | None:
        """A run starts; the reporter returned follows it."""
        ...

    def finished(self, experiment: Experiment, record: RunRecord) -> None:
        """A run is recorded."""
        ...

    def timed(self, test: SpeedTest, record: SpeedRecord) -> None:
        """A measurement of speed is recorded."""
        ...


def reproduce(agreed: Plan | str, *, device: str = "auto", listener: Listener | None = None) -> list[Path]:
    """Run what a plan has left to run, and write its tables (Markdown, JSON), figures (PNG).

    Speed is measured first: it is short. Each run is recorded as it ends, and the tables are drawn anew, so a call that was
    interrupted is continued by the same call: finished runs are not repeated, the interrupted one resumes from its checkpoint.

    Args:
        agreed: a plan, or a paper's name for a plan of everything.

    Returns:
        The files written.

    Raises:
        SepnetError, Interrupted: as in training.
    """
    todo_plan = plan(agreed, device=device) if isinstance(agreed, str) else agreed
    for test in todo_plan.speed_todo:
        speed = run_speed_test(test, todo_plan.output, device)
        if listener:
            listener.timed(test, speed)
    todo = todo_plan.todo
    for number, experiment in enumerate(todo, start=1):
        reporter = listener.begin(experiment, number, len(todo)) if listener else None
        record = _run(experiment, todo_plan, device, reporter)
        write_report(todo_plan)
        if listener:
            listener.finished(experiment, record)
    return write_report(todo_plan)


def _run(experiment: Experiment, agreed: Plan, device: str, reporter: Reporter | None) -> RunRecord:
    folder = agreed.work / experiment.key
    dataset = dataset_of(experiment.config, agreed.data_dir)
    watched: Literal["val", "test"] = "val" if experiment.config.val_fraction else "test"

    def train(resume: bool) -> RunRecord:
        run = run_training(experiment.config, dataset, folder, device=device, resume=resume, evaluate_on=watched, reporter=reporter)
        return run.record

    record = _resume_or_start(train, experiment, folder)
    small = record.model_copy(update={"result": {k: _without_matrix(v) for k, v in record.result.items()}})
    atomic_write(record_path(experiment, agreed.output), lambda file: file.write(save_record(small)))
    (folder / "last.pt").unlink(missing_ok=True)  # the release stays; the record says the run is done
    return small


def _resume_or_start(train: Callable[[bool], RunRecord], experiment: Experiment, folder: Path) -> RunRecord:
    if (folder / "last.pt").exists() and _same_config(experiment, folder):
        (folder / "run.json").unlink(missing_ok=True)  # killed between the run's end and its record: its end comes again
        try:
            return train(True)
        except CheckpointError:
            pass  # damaged, or of an earlier version of the recipe: nothing of it can be used, the run starts anew
    return train(False)


def _same_config(experiment: Experiment, folder: Path) -> bool:
    try:
        saved = load_yaml(folder / "config.yaml")
    except SepnetError:
        return False
    return same_settings(saved, experiment.config)


def _without_matrix(scores: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in scores.items() if k not in ("confusion", "per_class")}
