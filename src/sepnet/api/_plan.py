"""What ``sepnet reproduce`` will do: which runs, which of them are recorded already, and how long the rest takes here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from sepnet.api._estimate import seconds_per_run
from sepnet.api._experiment import (
    Experiment,
    FactsOfData,
    budget_suffix,
    dataset_of,
    find_record,
    iterations_done,
    recorded,
    scaled,
)
from sepnet.api._speed import SpeedTest, expected_seconds, speed_records, speed_tests, this_hardware
from sepnet.errors import ConfigError, DataNotFoundError, one_line
from sepnet.models import model_card
from sepnet.recipes import Paper, papers
from sepnet.report import RunRecord, hardware

__all__ = ["Plan", "has_records", "plan", "records", "timed"]


@dataclass(frozen=True)
class Plan:
    """What a call of ``reproduce`` will do.

    Attributes:
        tables, figures: numbers that will be written.
        models: rows of the tables: networks, or variants of them.
        budget: share of the iterations.
        experiments: every run behind them, in the order of execution.
        reported: these, and every other run of the tables and figures that has a record.
        done: keys of the experiments whose record exists already.
        speed: every measurement of speed behind them.
        speed_todo: those that have no record for the device at hand.
        seconds: expected seconds of each experiment still to run, by key, once they are measured (``timed``).
        speed_seconds: expected seconds of the measurements of speed, together; likewise.
        not_counted: one line for the records of each network and recipe that are there but not of these runs, and why.
        blocked: one line for each table or figure that cannot be made, or not in full, and why.
        output: where records, tables and figures go.
        work: where the runs' own folders go.
        facts: of the data sets.
    """

    paper: Paper
    tables: tuple[int, ...]
    figures: tuple[int, ...]
    recipes: tuple[str, ...]
    models: tuple[str, ...]
    seeds: int
    budget: float
    experiments: tuple[Experiment, ...]
    reported: tuple[Experiment, ...]
    done: frozenset[str]
    speed: tuple[SpeedTest, ...]
    speed_todo: tuple[SpeedTest, ...]
    not_counted: tuple[str, ...]
    blocked: tuple[str, ...]
    output: Path
    work: Path
    facts: FactsOfData
    seconds: Mapping[str, float] = field(default_factory=dict)
    speed_seconds: float = 0.0

    @property
    def data_dir(self) -> Path:
        """Where registered data sets lie."""
        return self.facts.data_dir

    @property
    def todo(self) -> tuple[Experiment, ...]:
        """Experiments without a record."""
        return tuple(e for e in self.experiments if e.key not in self.done)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where files will be written: the output, and where the runs lie if there are any to make."""
        return (self.output, self.work) if self.todo else (self.output,)

    @cached_property
    def begun(self) -> dict[str, float]:
        """Those of them that have a checkpoint to go on from, by key: which share of their iterations is done."""
        done = [(e, iterations_done(e, self.work / e.key)) for e in self.todo]
        return {e.key: n / (e.config.iterations or n) for e, n in done if n}

    @property
    def expected_seconds(self) -> float:
        """Expected time of all that is still to run."""
        return sum(self.seconds.values()) + self.speed_seconds

    def of_all_records(self) -> Plan:
        """The same with all that is reported as its experiments: a report of some runs must not forget the others."""
        seen = {e.recipe for e in self.reported}
        recipes = tuple(r for r in self.paper.recipes if r in self.recipes or r in seen)
        seeds = max([self.seeds, *(e.seed + 1 for e in self.reported)])
        return replace(self, experiments=self.reported, recipes=recipes, seeds=seeds)

    @property
    def suffix(self) -> str:
        """What the names of tables and figures carry behind their number: nothing, or the budget."""
        return budget_suffix(self.budget)


def plan(
    paper: str,
    *,
    tables: Sequence[int] = (),
    figures: Sequence[int] = (),
    seeds: int = 3,
    recipes: Sequence[str] = (),
    models: Sequence[str] = (),
    budget: float = 1.0,
    data_dir: Path | str = "data",
    output: Path | str | None = None,
    device: str = "auto",
    report_only: bool = False,
) -> Plan:
    """Settle what is to be run, what is done already, and how long the rest takes on this machine.

    Args:
        tables, figures, recipes, models: only these; none is all. A network's name stands for all rows of it.
        seeds: runs of each network and recipe, seeds 0 .. seeds - 1.
        budget: share of each run's iterations, above 0 and at most 1; the schedule is scaled, and the records are kept apart.
        report_only: plan nothing but the report of what is recorded. It needs no data: its records know them.

    Raises:
        ConfigError, UnknownNameError: no such paper, table, figure, recipe or network, or nothing that can be run (and why).
    """
    chosen = papers.get(paper)
    kept_recipes, kept_models = _subset("recipe", recipes, tuple(chosen.recipes)), _rows(chosen, models)
    _check_size(seeds, budget)
    folder = Path(output) if output is not None else Path("runs") / chosen.name
    facts = FactsOfData(Path(data_dir), folder if report_only else None)
    wanted = _items(*_numbers(chosen, tables, figures))
    lacking = {(kind, n): why for kind, n in wanted if (why := _lacks(chosen, kind, n, facts, folder))}
    items = [item for item in wanted if item not in lacking]
    open_tables, open_figures = _to_be_made(chosen, wanted, lacking, folder)
    every = _experiments(chosen, items, tuple(chosen.recipes), _rows(chosen, ()), _seeds_recorded(folder, seeds), budget)
    found = {e.key: find_record(e, folder, facts) for e in every}
    known = {e.key: e.recipe for e in every if isinstance(found[e.key], RunRecord)}
    kept_recipes = kept_recipes if recipes or not report_only else _those_run(kept_recipes, known.values())
    experiments = _experiments(chosen, items, kept_recipes, kept_models, seeds, budget)
    todo = _unmeasured(speed := speed_tests(chosen, open_tables, kept_models), folder, device)
    return Plan(
        paper=chosen,
        tables=open_tables,
        figures=open_figures,
        recipes=kept_recipes,
        models=kept_models,
        seeds=seeds,
        budget=budget,
        experiments=experiments,
        reported=tuple(e for e in every if e in experiments or e.key in known),
        done=frozenset(e.key for e in experiments if e.key in known),
        speed=speed,
        speed_todo=todo,
        not_counted=_not_counted(every, found, folder),
        blocked=tuple(dict.fromkeys(lacking.values())),
        output=folder,
        work=folder if output is None else folder / "runs",
        facts=facts,
    )


def timed(agreed: Plan, device: str = "auto", before: Callable[[str], None] | None = None) -> Plan:
    """The plan with the expected times, from a few timed steps of each network that is still to run.

    Args:
        before: called with the name of what is timed next.
    """
    kinds = {(e.config.data, e.row, e.recipe): e.config for e in agreed.todo}
    once: dict[tuple[str, str, str], float] = {}
    for number, (kind, config) in enumerate(kinds.items(), start=1):
        if before is not None:
            before(f"{', '.join(kind)} ({number} of {len(kinds)})")
        once[kind] = seconds_per_run(config, dataset_of(config, agreed.data_dir), device)
    return replace(
        agreed,
        seconds={e.key: once[e.config.data, e.row, e.recipe] * (1 - agreed.begun.get(e.key, 0)) for e in agreed.todo},
        speed_seconds=sum(expected_seconds(test, device) for test in agreed.speed_todo),
    )


def _check_size(seeds: int, budget: float) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if not 0 < budget <= 1:
        raise ConfigError(f"--budget must be above 0 and at most 1, got {budget:g}")


def records(agreed: Plan) -> dict[str, RunRecord]:
    """The records that exist, by key of the experiment."""
    found = ((e.key, recorded(e, agreed.output, agreed.facts)) for e in agreed.reported)
    return {key: record for key, record in found if record is not None}


def has_records(agreed: Plan) -> bool:
    """Whether a report would show anything measured: a run of any recipe and seed, or a speed on any device."""
    return bool(records(agreed)) or any(speed_records(test, agreed.output) for test in agreed.speed)


# --- what is asked for ------------------------------------------------------------------------------------------------


def _numbers(paper: Paper, tables: Sequence[int], figures: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for kind, asked, known in (("table", tables, paper.tables), ("figure", figures, paper.figures)):
        for number in asked:
            if number not in known:
                there = f"there are {', '.join(map(str, known))}" if known else "there are none"
                raise ConfigError(f"{paper.name} has no {kind} {number} to reproduce; {there}")
    if not tables and not figures:
        return tuple(paper.tables), tuple(paper.figures)
    return tuple(dict.fromkeys(tables)), tuple(dict.fromkeys(figures))


def _subset(kind: str, asked: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in asked:
        if name not in known:
            raise ConfigError(f"the paper has no {kind} '{one_line(name)}'; there are {', '.join(known)}")
    return tuple(k for k in known if k in asked) if asked else known


def _rows(paper: Paper, asked: Sequence[str]) -> tuple[str, ...]:
    """The rows asked for; "net" stands for "net-variant" as well."""
    tables = (row for table in paper.tables.values() for row in table.rows)
    figures = (row for figure in paper.figures.values() for row in figure.rows)
    known = tuple(dict.fromkeys([*tables, *figures]))
    meant = {name: [row for row in known if row == name or row.startswith(f"{name}-")] or [name] for name in asked}
    return _subset("network", [row for rows in meant.values() for row in rows], known)


def _items(tables: Iterable[int], figures: Iterable[int]) -> list[tuple[str, int]]:
    return [*(("table", n) for n in tables), *(("figure", n) for n in figures)]


def _to_be_made(
    paper: Paper, wanted: Sequence[tuple[str, int]], lacking: Mapping[tuple[str, int], str], output: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tables and figures that can be made, at least in part. Raises ConfigError, with the reasons: none can."""
    tables = tuple(n for kind, n in wanted if kind == "table" and ((kind, n) not in lacking or _partly(paper, n, output)))
    figures = tuple(n for kind, n in wanted if kind == "figure" and (kind, n) not in lacking)
    if not tables + figures:
        raise ConfigError("; ".join(dict.fromkeys(lacking.values())))
    return tables, figures


# --- what stands in the way -------------------------------------------------------------------------------------------


def _lacks(paper: Paper, kind: str, number: int, facts: FactsOfData, output: Path) -> str | None:
    """Why the runs behind a table or figure cannot be made; None when they can, or there are none."""
    figure = paper.figures[number] if kind == "figure" else None
    if figure is not None and figure.table is not None:
        return _lacks(paper, "table", figure.table, facts, output)
    shown = figure or paper.tables[number]
    where = f"{kind} {number} ({shown.caption})"
    if figure is None and (blocked := paper.tables[number].blocked):
        return f"{where}: {blocked}"
    if shown.data is None:
        return None
    try:
        size = paper.configure(shown.data, next(iter(shown.rows)), next(iter(paper.recipes)), 0).size
        facts.of(shown.data, size)
    except DataNotFoundError as error:
        if kind == "table" and _partly(paper, number, output):
            return f"{where}: only its times can be made: {error}"
        if _has_records(shown.data, output):
            return f"{where}: its records can only be told from others with the data at hand: {error}"
        return f"{where}: {error if facts.output is None else f'no run of it is recorded in {one_line(output)}'}"
    return None


def _partly(paper: Paper, table: int, output: Path) -> bool:
    """Whether a table has something that needs no data, and nothing recorded that it would be drawn anew without."""
    data = paper.tables[table].data
    return paper.tables[table].speed is not None and not (data and _has_records(data, output))


def _has_records(data: str, output: Path) -> bool:
    return next((output / "records").glob(f"{data}-*-seed*.json"), None) is not None


# --- what is run ------------------------------------------------------------------------------------------------------


def _experiments(
    paper: Paper,
    needed: Sequence[tuple[str, int]],
    recipes: tuple[str, ...],
    models: tuple[str, ...],
    seeds: int,
    budget: float,
) -> tuple[Experiment, ...]:
    """Seed by seed and the cheapest network first, so that every table soon has a first line of figures."""
    found: dict[str, Experiment] = {}
    for table, data, rows in _sources(paper, needed):
        for seed in range(seeds):
            kept = [row for row in rows if row in models]
            for row in sorted(kept, key=lambda row: model_card(paper.configure(data, row, recipes[0], 0).model).macs):
                for recipe in recipes:
                    config = scaled(paper.configure(data, row, recipe, seed), budget)
                    experiment = Experiment(table, row, recipe, seed, budget, config)
                    found.setdefault(experiment.key, experiment)
    return tuple(found.values())


def _sources(paper: Paper, needed: Sequence[tuple[str, int]]) -> list[tuple[int | None, str, list[str]]]:
    """Table (None: of a figure's own), data and rows of what is trained: tables in the order of their numbers, then figures."""
    tables = {n for kind, n in needed if kind == "table"}
    figures = [paper.figures[n] for kind, n in needed if kind == "figure"]
    tables |= {figure.table for figure in figures if figure.table is not None}
    found = [(n, paper.tables[n].data, list(paper.tables[n].rows)) for n in sorted(tables)]
    own = [(None, figure.data, list(figure.rows)) for figure in figures if figure.table is None]
    return [(table, data, rows) for table, data, rows in [*found, *own] if data is not None]


def _not_counted(every: Sequence[Experiment], found: Mapping[str, RunRecord | str | None], output: Path) -> tuple[str, ...]:
    """The records that are there and do not count, those with the same reason together."""
    reasons: dict[tuple[str, str, str, str], int] = {}
    for experiment in every:
        if isinstance(reason := found[experiment.key], str):
            kind = (experiment.config.data, experiment.row, experiment.recipe, reason)
            reasons[kind] = reasons.get(kind, 0) + 1
    where = one_line(output / "records")
    return tuple(
        f"{number} record{'s' if number > 1 else ''} in {where} of {data}, {row}, {recipe}: {reason}"
        for (data, row, recipe, reason), number in reasons.items()
    )


def _those_run(recipes: tuple[str, ...], seen: Collection[str]) -> tuple[str, ...]:
    """A report has no column of what nobody has run; without any run it keeps them all."""
    return tuple(r for r in recipes if r in seen) or recipes


def _seeds_recorded(output: Path, least: int) -> int:
    """One more than the largest seed of any record."""
    found = (re.search(r"-seed(\d{1,4})", path.stem) for path in (output / "records").glob("*.json"))
    return max([least, *(int(match[1]) + 1 for match in found if match)])


def _unmeasured(tests: Sequence[SpeedTest], output: Path, device: str) -> tuple[SpeedTest, ...]:
    """Those without a record for the device at hand."""
    if not tests:
        return ()
    here = hardware(this_hardware(device)[1])
    return tuple(t for t in tests if here not in [hardware(r.environment) for r in speed_records(t, output)])
