"""What ``sepnet reproduce`` will do: which runs, which of them are recorded already, and how long the rest takes here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from sepnet.api._estimate import seconds_per_run
from sepnet.data import Dataset, load_dataset
from sepnet.errors import CheckpointError, ConfigError, DataNotFoundError, one_line
from sepnet.models import model_card
from sepnet.recipes import Paper, PaperTable, TrainConfig, papers
from sepnet.report import RunRecord, load_record

__all__ = ["Experiment", "Plan", "dataset_of", "plan", "record_path", "records", "same_settings"]


@dataclass(frozen=True)
class Experiment:
    """One run of a table."""

    table: int
    model: str
    recipe: str
    seed: int
    config: TrainConfig

    @property
    def key(self) -> str:
        """Name of its record and of its run folder."""
        return f"{self.config.data}-{self.model}-{self.recipe}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a call of ``reproduce`` will do.

    Attributes:
        tables, figures: numbers that will be written.
        experiments: every run behind them, in the order of execution.
        done: keys of the experiments whose record exists already.
        seconds: expected seconds of each experiment still to run, by key, measured on this machine.
        blocked: one line for each table or figure that cannot be made, and why.
        output: where records, tables and figures go.
        work: where the runs' own folders go.
    """

    paper: Paper
    tables: tuple[int, ...]
    figures: tuple[int, ...]
    recipes: tuple[str, ...]
    models: tuple[str, ...]
    seeds: int
    experiments: tuple[Experiment, ...]
    done: frozenset[str]
    seconds: dict[str, float]
    blocked: tuple[str, ...]
    output: Path
    work: Path
    data_dir: Path

    @property
    def todo(self) -> tuple[Experiment, ...]:
        """Experiments without a record."""
        return tuple(e for e in self.experiments if e.key not in self.done)

    @property
    def expected_seconds(self) -> float:
        """Expected time of all that is still to run."""
        return sum(self.seconds.values())


def plan(
    paper: str,
    *,
    tables: Sequence[int] = (),
    figures: Sequence[int] = (),
    seeds: int = 3,
    recipes: Sequence[str] = (),
    models: Sequence[str] = (),
    data_dir: Path | str = "data",
    output: Path | str | None = None,
    device: str = "auto",
    measure: bool = True,
) -> Plan:
    """Settle what is to be run, what is done already, and how long the rest takes on this machine.

    Args:
        tables, figures: numbers; none of either is all of both.
        seeds: runs of each network and recipe, seeds 0 .. seeds - 1.
        recipes, models: only these; none is all.
        measure: time a few steps of each network that is still to run; without it ``seconds`` is empty.

    Raises:
        ConfigError: a number, recipe or network the paper does not have, or nothing that can be run (with the reason).
        UnknownNameError: no such paper.
    """
    chosen = papers.get(paper)
    wanted_tables, wanted_figures = _numbers(chosen, tables, figures)
    kept_recipes = _subset("recipe", recipes, tuple(chosen.recipes))
    all_models = tuple(dict.fromkeys(m for t in chosen.tables.values() for m in t.rows))
    kept_models = _subset("network", models, all_models)
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    folder = Path(output) if output is not None else Path("runs") / chosen.name
    blocked = _blocked(chosen, {*wanted_tables, *(chosen.figures[f].table for f in wanted_figures)}, Path(data_dir))
    open_tables = tuple(t for t in wanted_tables if t not in blocked)
    open_figures = tuple(f for f in wanted_figures if chosen.figures[f].table not in blocked)
    if not open_tables and not open_figures:
        raise ConfigError("; ".join(dict.fromkeys(blocked.values())))
    needed = sorted({*open_tables, *(chosen.figures[f].table for f in open_figures)})
    experiments = _experiments(chosen, needed, kept_recipes, kept_models, seeds)
    done = frozenset(e.key for e in experiments if _record(e, folder, Path(data_dir)) is not None)
    seconds = _expected(experiments, done, Path(data_dir), device) if measure else {}
    return Plan(
        paper=chosen,
        tables=open_tables,
        figures=open_figures,
        recipes=kept_recipes,
        models=kept_models,
        seeds=seeds,
        experiments=experiments,
        done=done,
        seconds=seconds,
        blocked=tuple(dict.fromkeys(blocked.values())),
        output=folder,
        work=Path("runs") / chosen.name,
        data_dir=Path(data_dir),
    )


def _numbers(paper: Paper, tables: Sequence[int], figures: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for kind, asked, known in (("table", tables, paper.tables), ("figure", figures, paper.figures)):
        for number in asked:
            if number not in known:
                raise ConfigError(f"{paper.name} has no {kind} {number} to reproduce; there are {', '.join(map(str, known))}")
    if not tables and not figures:
        return tuple(paper.tables), tuple(paper.figures)
    return tuple(dict.fromkeys(tables)), tuple(dict.fromkeys(figures))


def _subset(kind: str, asked: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in asked:
        if name not in known:
            raise ConfigError(f"the paper has no {kind} '{one_line(name)}'; there are {', '.join(known)}")
    return tuple(k for k in known if k in asked) if asked else known


def _blocked(paper: Paper, numbers: set[int], data_dir: Path) -> dict[int, str]:
    """Table number -> why it cannot be run."""
    reasons: dict[int, str] = {}
    for number in sorted(numbers):
        table = paper.tables[number]
        if table.blocked:
            reasons[number] = f"table {number} ({table.caption}): {table.blocked}"
        elif table.data is not None:
            try:
                dataset_of(table.data, _size(paper, table), data_dir)
            except DataNotFoundError as error:
                reasons[number] = f"table {number} ({table.caption}): {error}"
    return reasons


def _size(paper: Paper, table: PaperTable) -> int | None:
    assert table.data is not None
    return paper.configure(table.data, next(iter(table.rows)), next(iter(paper.recipes)), 0).size


@lru_cache(maxsize=2)
def dataset_of(data: str, size: int | None, data_dir: Path) -> Dataset:
    """The whole training set and the test set, read once."""
    return load_dataset(data, data_dir=data_dir, size=size, val_fraction=0.0)


def _experiments(
    paper: Paper, numbers: Sequence[int], recipes: tuple[str, ...], models: tuple[str, ...], seeds: int
) -> tuple[Experiment, ...]:
    """Seed by seed and the cheapest network first, so that every table soon has a first line of figures."""
    found: dict[str, Experiment] = {}
    for number in numbers:
        data = paper.tables[number].data
        if data is None:
            continue
        for seed in range(seeds):
            for model in sorted((m for m in paper.tables[number].rows if m in models), key=lambda m: model_card(m).macs):
                for recipe in recipes:
                    experiment = Experiment(number, model, recipe, seed, paper.configure(data, model, recipe, seed))
                    found.setdefault(experiment.key, experiment)
    return tuple(found.values())


def _expected(experiments: Sequence[Experiment], done: frozenset[str], data_dir: Path, device: str) -> dict[str, float]:
    once: dict[tuple[str, str, str], float] = {}
    seconds: dict[str, float] = {}
    for e in experiments:
        if e.key in done:
            continue
        kind = (e.config.data, e.model, e.recipe)
        if kind not in once:
            once[kind] = seconds_per_run(e.config, dataset_of(e.config.data, e.config.size, data_dir), device)
        seconds[e.key] = once[kind]
    return seconds


def record_path(experiment: Experiment, output: Path) -> Path:
    """Where the record of an experiment lies."""
    return output / "records" / f"{experiment.key}.json"


def _record(experiment: Experiment, output: Path, data_dir: Path) -> RunRecord | None:
    """The record of a finished run, if it is of this configuration and these data."""
    path = record_path(experiment, output)
    if not path.exists():
        return None
    try:
        record = load_record(path)
    except CheckpointError:
        return None
    dataset = dataset_of(experiment.config.data, experiment.config.size, data_dir)
    return record if same_settings(record.config, experiment.config) and record.data_fingerprint == dataset.fingerprint else None


def same_settings(saved: dict[str, object], wanted: TrainConfig) -> bool:
    """Whether a saved configuration gives the same result; settings that it does not know have their defaults."""
    try:
        found = TrainConfig.model_validate(saved)
    except ValidationError:
        return False
    return found.model_copy(update={"checkpoint_seconds": wanted.checkpoint_seconds}) == wanted


def records(agreed: Plan) -> dict[str, RunRecord]:
    """The records that exist, by key of the experiment."""
    found = ((e.key, _record(e, agreed.output, agreed.data_dir)) for e in agreed.experiments)
    return {key: record for key, record in found if record is not None}
