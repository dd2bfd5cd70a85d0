"""A paper's table beside the measured one, as Markdown and as JSON.

Accuracies are top-1 in percent, given as mean ± sample standard deviation (n - 1 in the denominator) over n seeds. Runs
that cannot be averaged (other data, another budget, the same seed twice) are refused rather than mixed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sepnet.errors import ConfigError, one_line
from sepnet.report._markdown import MISSING, bullet, escape, human_count, markdown_table, signed
from sepnet.report._provenance import distinct, provenance, test_use
from sepnet.report.record import RunRecord

__all__ = [
    "CountRow",
    "MeanSd",
    "PaperRow",
    "counts_table_json",
    "counts_table_markdown",
    "markdown_table",
    "mean_sd",
    "paper_table_json",
    "paper_table_markdown",
]


@dataclass(frozen=True)
class PaperRow:
    """One network of a paper's table.

    Attributes:
        label: the network's name in the paper.
        model: its registered name here.
        published_accuracy: top-1 in percent as printed; None where the paper gives none.
        published_params: parameters as the paper counts them (units only, no batch normalisation, ...).
        params_trainable, params_total, macs: of the network as it is built for this table.
        runs: the records of each recipe, one a seed; a recipe may be absent.
    """

    label: str
    model: str
    published_accuracy: float | None
    published_params: int | None
    params_trainable: int
    params_total: int
    macs: int
    runs: Mapping[str, Sequence[RunRecord]] = field(default_factory=dict)


@dataclass(frozen=True)
class CountRow:
    """One line of a table of counts: parameters as printed in the paper and as ``measure`` counts them here."""

    label: str
    model: str
    published: int | None
    counted: int


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
class _Cell:
    """The runs of one network with one recipe; ``note`` is where their budget departs from the paper's."""

    runs: tuple[RunRecord, ...]
    accuracies: tuple[float, ...]
    difference: float | None
    minutes: float | None
    note: str | None

    @property
    def accuracy(self) -> MeanSd | None:
        return mean_sd(self.accuracies) if self.accuracies else None


def paper_table_markdown(
    title: str,
    rows: Sequence[PaperRow],
    recipes: Mapping[str, str],
    *,
    data_title: str,
    iterations: int,
    batch_size: int,
    wanted: int,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The table, with all that a reader needs to judge it above it; ends in a newline.

    Args:
        title: heading ("Table 4: CIFAR-10").
        recipes: names, in the order of the columns, each with one line of explanation.
        data_title: the data, shown as long as no run names it; runs know it better ("CIFAR-10 (JPEG copy)").
        iterations, batch_size: the paper's budget; a run with another is labelled in its row and in the header.
        wanted: number of seeds a cell should have; a cell with fewer says so.
        command: what makes the table; None: the commands of the runs.
        notes: further lines for the header, plain text.

    Raises:
        ConfigError: runs that must not be averaged or compared; one line.
    """
    cells = _cells(rows, recipes, iterations, batch_size)
    runs = _all_runs(cells)
    lines = [f"# {escape(title)}", ""]
    lines += [
        bullet("Data", _data(runs, data_title)),
        bullet("Budget", _budget(cells, iterations, batch_size)),
        bullet("Runs", _progress(runs, len(rows) * len(recipes), wanted)),
        *provenance(runs, command),
        *(bullet(f"Recipe {escape(name)}", escape(why)) for name, why in recipes.items()),
        *(bullet("Test data", sentence) for sentence in test_use(runs)),
        *(bullet("Note", escape(note)) for note in distinct([*notes, *(n for run in runs for n in run.notes)])),
        bullet("Columns", "top-1 accuracy in %, mean ± sample standard deviation (number of seeds); Δ: points above the paper"),
    ]
    header = ["network", "paper %"]
    header += [part for name in recipes for part in (f"{name} %", f"Δ {name}")]
    header += ["parameters, as the paper counts", "trainable parameters", "MACs", *(f"min/run, {name}" for name in recipes)]
    body = [_markdown_row(row, cells[i], wanted) for i, row in enumerate(rows)]
    return "\n".join([*lines, "", markdown_table(header, body), ""])


def paper_table_json(
    title: str,
    rows: Sequence[PaperRow],
    recipes: Mapping[str, str],
    *,
    data_title: str,
    iterations: int,
    batch_size: int,
    wanted: int,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``paper_table_markdown`` shows, unrounded, as plain JSON values; same arguments, same errors."""
    cells = _cells(rows, recipes, iterations, batch_size)
    runs = _all_runs(cells)
    environments = {run.environment.model_dump_json(): run.environment.model_dump(mode="json") for run in runs}
    return {
        "title": title,
        "data": distinct(run.data_title for run in runs) or [data_title],
        "data_fingerprint": runs[0].data_fingerprint if runs else None,
        "budget": {"iterations": iterations, "batch_size": batch_size},
        "seeds_wanted": wanted,
        "recipes": dict(recipes),
        "command": command,
        "commands": distinct(run.command for run in runs),
        "finished": [min(run.finished for run in runs), max(run.finished for run in runs)] if runs else None,
        "environments": list(environments.values()),
        "test_use": test_use(runs),
        "notes": distinct([*notes, *(n for run in runs for n in run.notes)]),
        "rows": [_json_row(row, cells[i]) for i, row in enumerate(rows)],
    }


def counts_table_markdown(title: str, rows: Sequence[CountRow], *, notes: Sequence[str] = ()) -> str:
    """A table of counts alone: the paper's beside ours, and the difference; ends in a newline."""
    body = [[r.label, r.model, _count(r.published), _count(r.counted), _difference(r)] for r in rows]
    table = markdown_table(["network", "model", "paper", "counted", "difference"], body)
    lines = [bullet("Note", escape(note)) for note in notes]
    return "\n".join([f"# {escape(title)}", "", *lines, *([""] if lines else []), table, ""])


def counts_table_json(title: str, rows: Sequence[CountRow], *, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What ``counts_table_markdown`` shows as plain JSON values."""
    keys = ("label", "model", "published", "counted")
    return {"title": title, "notes": list(notes), "rows": [{key: getattr(row, key) for key in keys} for row in rows]}


# --- what may be averaged ---------------------------------------------------------------------------------------------


def _cells(rows: Sequence[PaperRow], recipes: Iterable[str], iterations: int, batch_size: int) -> list[dict[str, _Cell]]:
    """The cells of each row by recipe. Raises ConfigError for runs that must not stand in one table."""
    cells = [{name: _cell(row, name, iterations, batch_size) for name in recipes} for row in rows]
    for what in ("data_title", "data_fingerprint"):
        found = distinct(str(getattr(run, what)) for run in _all_runs(cells))
        if len(found) > 1:
            raise ConfigError(f"runs on different data in one table: {what} {_listed(found)}; make a table of each")
    return cells


def _cell(row: PaperRow, recipe: str, iterations: int, batch_size: int) -> _Cell:
    runs = tuple(row.runs.get(recipe, ()))
    where = f"{one_line(row.label)}, recipe {one_line(recipe)}"
    seeds = [run.config.get("seed") for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: two runs have the same seed ({_listed(seeds)}); they are not independent, give one of them")
    for run in runs:
        if run.model != row.model:
            raise ConfigError(f"{where}: a run of {one_line(run.model)} stands in the row of {one_line(row.model)}")
        if "accuracy" not in run.result.get("test", {}):
            raise ConfigError(f"{where}: the run with seed {run.config.get('seed')} has no test accuracy; run it again")
    budgets = distinct(f"{run.iterations} x {run.config.get('batch_size')}" for run in runs)
    if len(budgets) > 1:
        raise ConfigError(f"{where}: runs of different length ({_listed(budgets)}) have no common mean; give those of one length")
    accuracies = tuple(float(run.result["test"]["accuracy"]) for run in runs)
    published = row.published_accuracy
    return _Cell(
        runs=runs,
        accuracies=accuracies,
        difference=statistics.fmean(accuracies) - published if accuracies and published is not None else None,
        minutes=statistics.fmean(run.seconds for run in runs) / 60 if runs else None,
        note=_budget_note(runs[0], iterations, batch_size) if runs else None,
    )


def _budget_note(run: RunRecord, iterations: int, batch_size: int) -> str | None:
    parts = []
    if run.iterations != iterations:
        kind = "reduced" if run.iterations < iterations else "enlarged"
        parts.append(f"{kind} budget: {run.iterations:,} of {iterations:,} iterations")
    batch = run.config.get("batch_size", batch_size)
    if batch != batch_size:
        parts.append(f"batch {batch:,} instead of {batch_size:,}")
    return ", ".join(parts) or None


def _all_runs(cells: Iterable[Mapping[str, _Cell]]) -> list[RunRecord]:
    return [run for row in cells for cell in row.values() for run in cell.runs]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(one_line(value, 40) for value in values)


# --- lines and rows ---------------------------------------------------------------------------------------------------


def _data(runs: Sequence[RunRecord], data_title: str) -> str:
    if not runs:
        return escape(data_title)
    first = runs[0]
    sizes = [f"{n:,} training images" for n in sorted({run.train_images for run in runs})]
    sizes += [f"{n:,} test images" for n in sorted({int(run.result["test"].get("images", 0)) for run in runs} - {0})]
    return escape(f"{first.data_title}: {', '.join(sizes)} (fingerprint {first.data_fingerprint[:12]})")


def _budget(cells: Sequence[Mapping[str, _Cell]], iterations: int, batch_size: int) -> str:
    line = f"{iterations:,} iterations × {batch_size:,} images"
    notes = distinct(cell.note for row in cells for cell in row.values() if cell.note)
    return line + "".join(f"; **{escape(note)}**" for note in notes)


def _progress(runs: Sequence[RunRecord], cells: int, wanted: int) -> str:
    seeds = sorted({seed for run in runs if isinstance(seed := run.config.get("seed"), int)})
    named = f" (seeds used: {', '.join(map(str, seeds))})" if seeds else ""
    return f"{len(runs)} of {cells * wanted}, {wanted} wanted for each network and recipe{named}"


def _markdown_row(row: PaperRow, cells: Mapping[str, _Cell], wanted: int) -> list[str]:
    scores = [text for cell in cells.values() for text in (_score(cell, wanted), signed(cell.difference))]
    minutes = [MISSING if cell.minutes is None else f"{cell.minutes:.1f}" for cell in cells.values()]
    counts = [_count(row.published_params), _count(row.params_trainable), human_count(row.macs)]
    printed = MISSING if row.published_accuracy is None else f"{row.published_accuracy:g}"
    return [_label(row, cells), printed, *scores, *counts, *minutes]


def _label(row: PaperRow, cells: Mapping[str, _Cell]) -> str:
    notes = {name: cell.note for name, cell in cells.items() if cell.runs}
    if not any(notes.values()):
        return row.label
    if len(set(notes.values())) == 1:
        return f"{row.label} ({next(iter(notes.values()))})"
    return f"{row.label} ({'; '.join(f'{name}: {note}' for name, note in notes.items() if note)})"


def _score(cell: _Cell, wanted: int) -> str:
    if cell.accuracy is None:
        return MISSING
    n = cell.accuracy.n
    return f"{cell.accuracy} ({n})" if n >= wanted else f"{cell.accuracy} ({n} of {wanted})"


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _difference(row: CountRow) -> str:
    return MISSING if row.published is None else signed(row.counted - row.published, 0)


def _json_row(row: PaperRow, cells: Mapping[str, _Cell]) -> dict[str, Any]:
    return {
        "label": row.label,
        "model": row.model,
        "published_accuracy": row.published_accuracy,
        "published_params": row.published_params,
        "params_trainable": row.params_trainable,
        "params_total": row.params_total,
        "macs": row.macs,
        "recipes": {name: _json_cell(cell) for name, cell in cells.items()},
    }


def _json_cell(cell: _Cell) -> dict[str, Any]:
    accuracy = cell.accuracy
    return {
        "n": len(cell.runs),
        "mean": accuracy.mean if accuracy else None,
        "sd": accuracy.sd if accuracy else None,
        "accuracies": list(cell.accuracies),
        "seeds": [run.config.get("seed") for run in cell.runs],
        "difference": cell.difference,
        "minutes": cell.minutes,
        "iterations": cell.runs[0].iterations if cell.runs else None,
        "batch_size": cell.runs[0].config.get("batch_size") if cell.runs else None,
        "budget_note": cell.note,
    }
