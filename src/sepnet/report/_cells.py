"""The runs of a paper's table, row by row and recipe by recipe, and what may be averaged.

Runs that cannot be averaged (other data, another budget, the same seed twice) are refused rather than mixed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sepnet.errors import ConfigError, one_line
from sepnet.report._provenance import distinct
from sepnet.report.metrics import ACCURACY, Metric
from sepnet.report.record import RunRecord
from sepnet.report.speed import SpeedRecord

__all__ = ["Cell", "MeanSd", "PaperRow", "all_runs", "mean_sd", "table_cells"]


@dataclass(frozen=True)
class PaperRow:
    """One network of a paper's table.

    Attributes:
        label: the network's name in the paper.
        model: its registered name here.
        published: figures in percent as printed, by the key of their metric; what the paper does not give is absent.
        published_params: parameters as the paper counts them (units only, no batch normalisation, ...).
        params_trainable, params_total, macs: of the network as it is built for this table.
        runs: the records of each recipe, one a seed; a recipe may be absent.
        published_ms: milliseconds an image as printed.
        speed: measurements of speed, one a device.
        classes: of the paper's data; runs on a part of them are marked, and no difference is taken. None: any number will do.
    """

    label: str
    model: str
    published: Mapping[str, float]
    published_params: int | None
    params_trainable: int
    params_total: int
    macs: int
    runs: Mapping[str, Sequence[RunRecord]] = field(default_factory=dict)
    published_ms: float | None = None
    speed: Sequence[SpeedRecord] = ()
    classes: int | None = None


@dataclass(frozen=True)
class MeanSd:
    """Mean and sample standard deviation of n values; ``sd`` is None for a single one."""

    mean: float
    sd: float | None
    n: int

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread}"


def mean_sd(values: Sequence[float]) -> MeanSd:
    """Mean and standard deviation with n - 1 in the denominator.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    return MeanSd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Cell:
    """The runs of one network with one recipe.

    Attributes:
        values: of each metric that the table has, one a run, in percent; and always of the top-1 accuracy.
        published: as in the row.
        minutes: median time of a run, by the device that the runs were made on.
        note: where the runs' budget departs from the paper's.
    """

    runs: tuple[RunRecord, ...]
    values: Mapping[Metric, tuple[float, ...]]
    published: Mapping[str, float]
    minutes: Mapping[str, float]
    note: str | None

    def figure(self, metric: Metric) -> MeanSd | None:
        """Mean and deviation over the seeds; None without runs."""
        return mean_sd(self.values[metric]) if self.runs else None

    def difference(self, metric: Metric) -> float | None:
        """The mean minus the printed figure, in points; None where either is missing."""
        found, printed = self.figure(metric), self.published.get(metric.key)
        return None if found is None or printed is None else found.mean - printed


def table_cells(
    rows: Sequence[PaperRow], recipes: Iterable[str], metrics: Sequence[Metric], iterations: int, batch_size: int
) -> list[dict[str, Cell]]:
    """The cells of each row by recipe. Raises ConfigError for runs that must not stand in one table."""
    names = list(recipes)
    cells = [{name: _cell(row, name, metrics, iterations, batch_size) for name in names} for row in rows]
    for what in ("data_title", "data_fingerprint"):
        found = distinct(str(getattr(run, what)) for run in all_runs(cells))
        if len(found) > 1:
            raise ConfigError(f"runs on different data in one table: {what} {_listed(found)}; make a table of each")
    return cells


def all_runs(cells: Iterable[Mapping[str, Cell]]) -> list[RunRecord]:
    """Every run of a table."""
    return [run for row in cells for cell in row.values() for run in cell.runs]


def _cell(row: PaperRow, recipe: str, metrics: Sequence[Metric], iterations: int, batch_size: int) -> Cell:
    runs = tuple(row.runs.get(recipe, ()))
    where = f"{one_line(row.label)}, recipe {one_line(recipe)}"
    seeds = [run.config.get("seed") for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: two runs have the same seed ({_listed(seeds)}); they are not independent, give one of them")
    wanted = dict.fromkeys([*metrics, ACCURACY])
    for run in runs:
        if run.model != row.model:
            raise ConfigError(f"{where}: a run of {one_line(run.model)} stands in the row of {one_line(row.model)}")
        for metric in wanted:
            if metric.score not in run.result.get("test", {}):
                raise ConfigError(f"{where}: the run with seed {run.config.get('seed')} has no test {metric.score}; run it again")
    budgets = distinct(f"{run.iterations} x {run.config.get('batch_size')}" for run in runs)
    if len(budgets) > 1:
        raise ConfigError(f"{where}: runs of different length ({_listed(budgets)}) have no common mean; give those of one length")
    part = row.classes is not None and any(run.classes != row.classes for run in runs)
    notes = [f"{runs[0].classes} of {row.classes} classes, not to be set beside the paper"] if part else []
    if runs and (budget := _budget_note(runs[0], iterations, batch_size)):
        notes.append(budget)
    return Cell(
        runs=runs,
        values={metric: tuple(metric.of(run.result["test"]) for run in runs) for metric in wanted},
        published={} if part else row.published,
        minutes=_minutes(runs),
        note=", ".join(notes) or None,
    )


def _minutes(runs: Sequence[RunRecord]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for run in runs:
        seconds.setdefault(run.environment.device, []).append(run.seconds)
    return {device: statistics.median(values) / 60 for device, values in seconds.items()}


def _budget_note(run: RunRecord, iterations: int, batch_size: int) -> str | None:
    parts = []
    if run.iterations != iterations:
        kind = "reduced" if run.iterations < iterations else "enlarged"
        parts.append(f"{kind} budget: {run.iterations:,} of {iterations:,} iterations")
    batch = run.config.get("batch_size", batch_size)
    if batch != batch_size:
        parts.append(f"batch {batch:,} instead of {batch_size:,}")
    return ", ".join(parts) or None


def _listed(values: Iterable[object]) -> str:
    return ", ".join(one_line(value, 40) for value in values)
