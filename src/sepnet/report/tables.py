"""A paper's table beside the measured one, as Markdown and as JSON.

Figures are in percent, given as mean ± sample standard deviation (n - 1 in the denominator) over n seeds; what cannot be
averaged is refused, see ``_cells``. Times are medians of passes over whole batches, in milliseconds an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sepnet.report._cells import Cell, MeanSd, PaperRow, all_runs, mean_sd, table_cells
from sepnet.report._markdown import MISSING, bullet, escape, human_count, markdown_table, signed
from sepnet.report._provenance import distinct, provenance, test_use
from sepnet.report.metrics import ACCURACY, Metric
from sepnet.report.record import RunRecord
from sepnet.report.speed import SpeedRecord, hardware

__all__ = [
    "MeanSd",
    "PaperRow",
    "markdown_table",
    "mean_sd",
    "paper_table_json",
    "paper_table_markdown",
]


def paper_table_markdown(
    title: str,
    rows: Sequence[PaperRow],
    recipes: Mapping[str, str],
    *,
    data_title: str,
    iterations: int,
    batch_size: int,
    wanted: int,
    metrics: Sequence[Metric] = (ACCURACY,),
    budget: float = 1.0,
    speed_batch: int | None = None,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The table, with all that a reader needs to judge it above it; ends in a newline.

    Args:
        recipes: names, in the order of the columns, each with one line of explanation.
        title, data_title: heading ("Table 4: CIFAR-10"); the data, shown as long as no run names it ("CIFAR-10 (JPEG copy)").
        iterations, batch_size: the paper's budget; a run with another is labelled in its row and in the header.
        wanted: number of seeds a cell should have; a cell with fewer says so.
        metrics: the figures that the table has columns of.
        budget: share of the paper's iterations that was asked for; each column of another than 1 is marked with it.
        speed_batch: images a batch of the columns of time; None: there are none.
        command, notes: what makes the table (None: the commands of the runs); further lines for the header, plain text.

    Raises:
        ConfigError: runs that must not be averaged or compared; one line.
    """
    cells, devices = table_cells(rows, recipes, metrics, iterations, batch_size), _devices(rows)
    runs = all_runs(cells)
    lines = [
        f"# {escape(title)}",
        "",
        bullet("Data", _data(runs, data_title)),
        bullet("Budget", _budget(cells, iterations, batch_size, budget)),
        bullet("Runs", _progress(runs, len(rows) * len(recipes), wanted)),
        *provenance(runs, command),
        *(bullet(f"Recipe {escape(name)}", escape(why)) for name, why in recipes.items()),
        *(bullet("Test data", sentence) for sentence in test_use(runs)),
        *(bullet("Note", escape(note)) for note in distinct([*notes, *(n for run in runs for n in run.notes)])),
        bullet("Columns", _columns(metrics)),
        *([bullet("Time", escape(_timing(rows, speed_batch)))] if speed_batch is not None else []),
    ]
    mark = f" (budget {budget:g})" if budget != 1 else ""
    header = ["network", *(part for metric in metrics for part in _header(metric, metrics, recipes, rows, mark))]
    header += ["paper ms/image", *(f"ms/image, {name}" for name in devices or ["not measured yet"])] if speed_batch else []
    header += ["parameters, as the paper counts", "trainable parameters", "MACs", *(f"min/run, {name}{mark}" for name in recipes)]
    body = [
        [
            _label(row, found),
            *(text for metric in metrics for text in _scores(metric, row, rows, found, wanted)),
            *(_times(row, devices) if speed_batch else []),
            *_costs(row, found, len({run.environment.device for run in runs}) > 1),
        ]
        for row, found in zip(rows, cells, strict=True)
    ]
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
    metrics: Sequence[Metric] = (ACCURACY,),
    budget: float = 1.0,
    speed_batch: int | None = None,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``paper_table_markdown`` shows, unrounded, as plain JSON values; same arguments, same errors.

    A cell's mean, sd, accuracies and difference speak of the top-1 accuracy, whatever the table prints; what it prints stands
    under "metrics" where that is something else.
    """
    cells = table_cells(rows, recipes, metrics, iterations, batch_size)
    runs = all_runs(cells)
    environments = {run.environment.model_dump_json(): run.environment.model_dump(mode="json") for run in runs}
    further = tuple(metrics) != (ACCURACY,)
    return {
        "title": title,
        "data": distinct(run.data_title for run in runs) or [data_title],
        "data_fingerprint": runs[0].data_fingerprint if runs else None,
        "budget": {"iterations": iterations, "batch_size": batch_size} | ({"share": budget} if budget != 1 else {}),
        "seeds_wanted": wanted,
        "recipes": dict(recipes),
        "command": command,
        "commands": distinct(run.command for run in runs),
        "finished": [min(run.finished for run in runs), max(run.finished for run in runs)] if runs else None,
        "environments": list(environments.values()),
        "test_use": test_use(runs),
        "notes": distinct([*notes, *(n for run in runs for n in run.notes)]),
        "rows": [
            _json_row(row)
            | ({"published": dict(row.published)} if further else {})
            | ({"published_ms": row.published_ms, "speed": [_json_speed(s) for s in row.speed]} if speed_batch else {})
            | {"recipes": {name: _json_cell(cell, metrics if further else (), budget) for name, cell in found.items()}}
            for row, found in zip(rows, cells, strict=True)
        ],
    }


# --- the lines above the table ----------------------------------------------------------------------------------------


def _data(runs: Sequence[RunRecord], data_title: str) -> str:
    if not runs:
        return escape(data_title)
    first = runs[0]
    sizes = [f"{n:,} training images" for n in sorted({run.train_images for run in runs})]
    sizes += [f"{n:,} test images" for n in sorted({int(run.result["test"].get("images", 0)) for run in runs} - {0})]
    return escape(f"{first.data_title}: {', '.join(sizes)} (fingerprint {first.data_fingerprint[:12]})")


def _budget(cells: Sequence[Mapping[str, Cell]], iterations: int, batch_size: int, budget: float) -> str:
    line = f"{iterations:,} iterations × {batch_size:,} images"
    share = [f"budget {budget:g} of it, the schedule scaled"] if budget != 1 else []
    notes = distinct(cell.note for row in cells for cell in row.values() if cell.note)
    return line + "".join(f"; **{escape(note)}**" for note in [*share, *notes])


def _progress(runs: Sequence[RunRecord], cells: int, wanted: int) -> str:
    seeds = sorted({seed for run in runs if isinstance(seed := run.config.get("seed"), int)})
    named = f" (seeds used: {', '.join(map(str, seeds))})" if seeds else ""
    return f"{len(runs)} of {cells * wanted}, {wanted} wanted for each network and recipe{named}"


def _columns(metrics: Sequence[Metric]) -> str:
    titles = " and ".join(metric.title for metric in metrics)
    delta = "points above the paper" + ("; of an error, less is better" if any(metric.error for metric in metrics) else "")
    return f"{titles} in %, mean ± sample standard deviation (number of seeds); Δ: {delta}"


def _timing(rows: Sequence[PaperRow], batch: int) -> str:
    passes = sorted({s.n for row in rows for s in row.speed})
    how = f"median of {'-'.join(map(str, dict.fromkeys((passes[0], passes[-1]))))} passes after a warm-up" if passes else "median"
    return f"ms an image in batches of {batch}, {how} ± standard deviation; random images, evaluation mode, channels last"


# --- the columns of the table -----------------------------------------------------------------------------------------


def _header(
    metric: Metric, metrics: Sequence[Metric], recipes: Mapping[str, str], rows: Sequence[PaperRow], mark: str
) -> list[str]:
    name = "" if tuple(metrics) == (ACCURACY,) else f" {metric.title}"
    printed = _printed(metric, rows)
    parts = [f"paper{name} %"] if printed else []
    for recipe in recipes:
        parts += [f"{recipe}{name} %{mark}", *([f"Δ {recipe}{name}{mark}"] if printed else [])]
    return parts


def _printed(metric: Metric, rows: Sequence[PaperRow]) -> bool:
    """Whether the paper prints it at all; a table of accuracy always has the column."""
    return metric == ACCURACY or any(metric.key in row.published for row in rows)


def _scores(metric: Metric, row: PaperRow, rows: Sequence[PaperRow], cells: Mapping[str, Cell], wanted: int) -> list[str]:
    printed = _printed(metric, rows)
    value = row.published.get(metric.key)
    texts = [MISSING if value is None else f"{value:g}"] if printed else []
    for cell in cells.values():
        texts += [_score(cell.figure(metric), wanted), *([signed(cell.difference(metric))] if printed else [])]
    return texts


def _score(figure: MeanSd | None, wanted: int) -> str:
    if figure is None:
        return MISSING
    return f"{figure} ({figure.n})" if figure.n >= wanted else f"{figure} ({figure.n} of {wanted})"


def _devices(rows: Sequence[PaperRow]) -> list[str]:
    return distinct(hardware(speed.environment) for row in rows for speed in row.speed)


def _times(row: PaperRow, devices: Sequence[str]) -> list[str]:
    found = {hardware(speed.environment): speed for speed in row.speed}
    measured = [f"{found[d].ms_per_image:.3f} ± {found[d].sd_per_image:.3f}" if d in found else MISSING for d in devices]
    return [MISSING if row.published_ms is None else f"{row.published_ms:.3f}", *(measured or [MISSING])]


def _costs(row: PaperRow, cells: Mapping[str, Cell], mixed: bool) -> list[str]:
    minutes = [_minutes(cell.minutes, mixed) for cell in cells.values()]
    return [_count(row.published_params), _count(row.params_trainable), human_count(row.macs), *minutes]


def _minutes(by_device: Mapping[str, float], mixed: bool) -> str:
    """With the device's name where the table's runs were made on several."""
    told = [f"{value:.1f} on {escape(device)}" if mixed else f"{value:.1f}" for device, value in by_device.items()]
    return ", ".join(told) or MISSING


def _label(row: PaperRow, cells: Mapping[str, Cell]) -> str:
    notes = {name: cell.note for name, cell in cells.items() if cell.runs}
    if not any(notes.values()):
        return row.label
    if len(set(notes.values())) == 1:
        return f"{row.label} ({next(iter(notes.values()))})"
    return f"{row.label} ({'; '.join(f'{name}: {note}' for name, note in notes.items() if note)})"


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_row(row: PaperRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "model": row.model,
        "published_accuracy": row.published.get(ACCURACY.key),
        "published_params": row.published_params,
        "params_trainable": row.params_trainable,
        "params_total": row.params_total,
        "macs": row.macs,
    }


def _json_cell(cell: Cell, metrics: Sequence[Metric], budget: float) -> dict[str, Any]:
    accuracy = cell.figure(ACCURACY)
    content = {
        "n": len(cell.runs),
        "mean": accuracy.mean if accuracy else None,
        "sd": accuracy.sd if accuracy else None,
        "accuracies": list(cell.values[ACCURACY]),
        "seeds": [run.config.get("seed") for run in cell.runs],
        "difference": cell.difference(ACCURACY),
        "minutes": next(iter(cell.minutes.values())) if len(cell.minutes) == 1 else None,
        "minutes_by_device": dict(cell.minutes),
        "iterations": cell.runs[0].iterations if cell.runs else None,
        "batch_size": cell.runs[0].config.get("batch_size") if cell.runs else None,
        "budget_note": cell.note,
    }
    if metrics:
        content["metrics"] = {metric.key: _json_figure(cell, metric) for metric in metrics}
    return content | ({"budget": budget} if budget != 1 else {})


def _json_figure(cell: Cell, metric: Metric) -> dict[str, Any]:
    figure = cell.figure(metric)
    return {
        "mean": figure.mean if figure else None,
        "sd": figure.sd if figure else None,
        "values": list(cell.values[metric]),
        "difference": cell.difference(metric),
    }


def _json_speed(speed: SpeedRecord) -> dict[str, Any]:
    return {"ms_per_image": speed.ms_per_image, "hardware": hardware(speed.environment)} | speed.model_dump(mode="json")
