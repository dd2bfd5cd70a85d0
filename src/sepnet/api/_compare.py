"""``sepnet compare``: several networks under one recipe, each trained once a seed, and what their accuracy costs on this device."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sepnet.api._compare_plan import ComparePlan, Trial
from sepnet.api._lock import writing_alone
from sepnet.api._release import load_release
from sepnet.api._run import run_training
from sepnet.api._speed_meter import SpeedMeter
from sepnet.data import Dataset, load_dataset
from sepnet.engine import Reporter, atomic_write
from sepnet.recipes import TrainConfig
from sepnet.report import (
    ComparedNetwork,
    Environment,
    RunRecord,
    comparison_json,
    comparison_markdown,
    load_record,
    tradeoff_figure,
)
from sepnet.report.record import command_line

__all__ = ["CompareListener", "Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """The result: the networks with their runs and speed, the content of compare.json, and the files written."""

    networks: tuple[ComparedNetwork, ...]
    content: dict[str, Any]
    files: tuple[Path, ...]


class CompareListener(Protocol):
    """What ``compare`` tells of its progress."""

    def begin(self, trial: Trial, number: int, total: int) -> Reporter | None:
        """A run starts; the reporter returned follows it."""
        ...

    def finished(self, trial: Trial, record: RunRecord) -> None:
        """A run is finished."""
        ...

    def measuring(self, label: str, number: int, total: int) -> None:
        """The speed of a network is being measured."""
        ...


def compare(agreed: ComparePlan, *, listener: CompareListener | None = None) -> Comparison:
    """Train what is not trained, measure every network's speed on this device, and write compare.json, .md and .png.

    Finished runs are not repeated: a call that was interrupted is continued by the same call.

    Raises:
        SepnetError, Interrupted: as in training.
    """
    with writing_alone(agreed.output):
        _train(agreed, listener)
        networks = []
        meter = SpeedMeter(agreed.common, agreed.device)
        for number, contender in enumerate(agreed.contenders, start=1):
            if listener:
                listener.measuring(contender.label, number, len(agreed.contenders))
            folders = contender.given or tuple(t.folder for t in agreed.trials if t.contender is contender)
            records = [load_record(folder / "run.json") for folder in folders]
            single, batch = meter.measure(load_release(folders[0]).model, records[0].input_shape)
            networks.append(ComparedNetwork(contender.label, records, single, batch, [os.fspath(folder) for folder in folders]))
        return _write(agreed, tuple(networks), meter.environment)


def _train(agreed: ComparePlan, listener: CompareListener | None) -> None:
    todo = agreed.todo
    dataset = agreed.dataset
    for number, trial in enumerate(todo, start=1):
        config = trial.config
        if number == 1 or config.seed != todo[number - 2].seed:  # the seed decides which images validate
            dataset = agreed.dataset if config.seed == 0 else _dataset_of(agreed, config)
        reporter = listener.begin(trial, number, len(todo)) if listener else None
        resume = (trial.folder / "config.yaml").exists()
        run = run_training(config, dataset, trial.folder, device=agreed.device, resume=resume, reporter=reporter)
        if listener:
            listener.finished(trial, run.record)


def _dataset_of(agreed: ComparePlan, config: TrainConfig) -> Dataset:
    return load_dataset(config.data, data_dir=agreed.data_dir, seed=config.seed, size=config.size, val_fraction=config.val_fraction)


def _write(agreed: ComparePlan, networks: tuple[ComparedNetwork, ...], measured_on: Environment) -> Comparison:
    command = command_line()
    settings = {k: v for k, v in agreed.common.model_dump(mode="json").items() if k not in ("seed", "model", "model_options")}
    content = comparison_json(networks, measured_on, command=command, plan=agreed.summary, settings=settings, notes=agreed.notes)
    page = comparison_markdown(networks, measured_on, command=command, plan=agreed.summary, notes=agreed.notes)
    host = f"{measured_on.processor}, {measured_on.threads} thread{'s' if measured_on.threads > 1 else ''}"
    where = f"{host if measured_on.device == 'cpu' else measured_on.device}, {measured_on.precision}"
    figure = tradeoff_figure(
        networks,
        f"Accuracy against its cost: {agreed.dataset.title}",
        f"{agreed.summary}. Latency on {where}. Dashed, with filled markers: the Pareto front.",
    )
    files = {
        "compare.json": (json.dumps(content, indent=1) + "\n").encode(),
        "compare.md": page.encode(errors="backslashreplace"),
        "compare.png": figure,
    }
    for name, data in files.items():
        _put(agreed.output / name, data)
    return Comparison(networks, content, tuple(agreed.output / name for name in files))


def _put(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
