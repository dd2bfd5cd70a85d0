"""One run of a paper: its name, its data, and its record, which holds only for its settings and these data."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

from pydantic import ValidationError

from sepnet.data import Dataset, load_dataset
from sepnet.engine import load_checkpoint
from sepnet.errors import CheckpointError, DataNotFoundError, SepnetError
from sepnet.recipes import TrainConfig, load_yaml
from sepnet.report import RunRecord, load_record

__all__ = [
    "Experiment",
    "Facts",
    "FactsOfData",
    "budget_suffix",
    "dataset_of",
    "facts_of",
    "find_record",
    "iterations_done",
    "record_path",
    "recorded",
    "same_config",
    "same_settings",
    "scaled",
]


@dataclass(frozen=True)
class Experiment:
    """One run of a table (None: of a figure that has runs of its own).

    Attributes:
        row: of the table: the network, or a variant of it.
        budget: share of the paper's iterations; ``config`` has them scaled already.
    """

    table: int | None
    row: str
    recipe: str
    seed: int
    budget: float
    config: TrainConfig

    @property
    def key(self) -> str:
        """Name of its record and of its run folder."""
        return f"{self.config.data}-{self.row}-{self.recipe}-seed{self.seed}{budget_suffix(self.budget)}"


@dataclass(frozen=True)
class Facts:
    """What a report needs to know of a data set."""

    fingerprint: str
    classes: int
    channels: int
    side: int


def budget_suffix(budget: float) -> str:
    """ "-budget0.1"; empty for the whole budget."""
    return "" if budget == 1 else f"-budget{budget:g}"


def scaled(config: TrainConfig, budget: float) -> TrainConfig:
    """``config`` at a share of its iterations. Warm-up and drops of the rate are fractions of the run and scale with it."""
    if budget == 1:
        return config
    if config.iterations is None:
        raise ValueError("a paper's configuration gives its length in iterations")
    return config.model_copy(update={"iterations": max(1, round(budget * config.iterations))})


@lru_cache(maxsize=4)
def _load(data: str, size: int | None, data_dir: Path, val_fraction: float, seed: int) -> Dataset:
    return load_dataset(data, data_dir=data_dir, size=size, val_fraction=val_fraction, seed=seed)


def dataset_of(config: TrainConfig, data_dir: Path) -> Dataset:
    """The data of a run; the whole training set where it holds nothing out. The last four are kept in memory."""
    seed = config.seed if config.val_fraction else 0  # without a held-out part all seeds share the data
    return _load(config.data, config.size, data_dir, config.val_fraction, seed)


@cache
def facts_of(data: str, size: int | None, data_dir: Path) -> Facts:
    """What is known of a data set, read once. Raises DataError."""
    dataset = _load(data, size, data_dir, 0.0, 0)
    return Facts(dataset.fingerprint, len(dataset.classes), dataset.preprocessing.channels, dataset.preprocessing.size[0])


@dataclass(frozen=True)
class FactsOfData:
    """Where the facts of data sets come from: the data themselves; for a report alone, where they are not there, its records.

    Attributes:
        data_dir: where registered data sets lie.
        output: folder whose records may stand in for them; None where they may not.
    """

    data_dir: Path
    output: Path | None = None
    _known: dict[tuple[str, int | None], Facts] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, data: str, size: int | None) -> Facts:
        """What is known of a data set. Raises DataNotFoundError: it is not there, and its records are none, or of several."""
        try:
            return facts_of(data, size, self.data_dir)
        except DataNotFoundError:
            if (data, size) not in self._known:
                found = _facts_in_records(data, size, self.output) if self.output is not None else set()
                if len(found) != 1:
                    raise
                self._known[data, size] = found.pop()
            return self._known[data, size]


def _facts_in_records(data: str, size: int | None, output: Path) -> set[Facts]:
    """What the records of a data set say of it: one answer, if all were made of the same images."""
    found = set()
    for path in (output / "records").glob(f"{data}-*-seed*.json"):
        try:
            record = load_record(path)
        except CheckpointError:
            continue
        if record.config.get("size") == size:
            channels, side, _ = record.input_shape
            found.add(Facts(record.data_fingerprint, record.classes, channels, side))
    return found


def record_path(experiment: Experiment, output: Path) -> Path:
    """Where the record of an experiment lies."""
    return output / "records" / f"{experiment.key}.json"


def recorded(experiment: Experiment, output: Path, facts: FactsOfData) -> RunRecord | None:
    """The record of a finished run, if it is of this configuration and these data."""
    found = find_record(experiment, output, facts)
    return found if isinstance(found, RunRecord) else None


def find_record(experiment: Experiment, output: Path, facts: FactsOfData) -> RunRecord | str | None:
    """The record of a finished run; why it does not count, where there is one that does not; None where there is none."""
    path = record_path(experiment, output)
    if not path.exists():
        return None
    try:
        record = load_record(path)
    except CheckpointError:
        return f"damaged ({path.name}); delete it, and the run is made anew"
    config = experiment.config
    if record.data_fingerprint != facts.of(config.data, config.size).fingerprint:
        return "of other images"
    if same_settings(record.config, config):
        return record
    return f"made with other settings ({', '.join(_changed(record.config, config) or ['of another version'])})"


def iterations_done(experiment: Experiment, folder: Path) -> int:
    """How far the run in ``folder`` has come that would be continued; 0 where it would begin anew."""
    if not (folder / "last.pt").exists() or not same_config(experiment, folder):
        return 0
    try:
        return int(load_checkpoint(folder / "last.pt")["state"]["iteration"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return 0


def same_config(experiment: Experiment, folder: Path) -> bool:
    """Whether the run in ``folder`` was begun with the settings of this one."""
    try:
        saved = load_yaml(folder / "config.yaml")
    except SepnetError:
        return False
    return same_settings(saved, experiment.config)


def same_settings(saved: dict[str, object], wanted: TrainConfig) -> bool:
    """Whether a saved configuration gives the same result; settings that it does not know have their defaults."""
    return _changed(saved, wanted) == []


def _changed(saved: dict[str, object], wanted: TrainConfig) -> list[str] | None:
    """Names of the settings that give another result; None where the saved ones are no configuration of this version."""
    try:
        found = TrainConfig.model_validate(saved)
    except ValidationError:
        return None
    theirs, mine = found.model_dump(), wanted.model_dump()
    return [name for name in mine if theirs[name] != mine[name] and name != "checkpoint_seconds"]
