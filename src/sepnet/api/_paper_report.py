"""A paper's tables and figures from the records that a plan has so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepnet.api._plan import Plan, dataset_of, records
from sepnet.engine import atomic_write
from sepnet.measure import Counts, count
from sepnet.models import create_model, model_card
from sepnet.recipes import PaperTable, TrainConfig
from sepnet.report import (
    CountRow,
    PaperRow,
    RunRecord,
    counts_table_json,
    counts_table_markdown,
    curve_of,
    paper_figure,
    paper_table_json,
    paper_table_markdown,
)

__all__ = ["write_report"]

COUNTED_WIDTH = 32  # Table 2 of Wang et al. gives its example for N = 32


def write_report(plan: Plan) -> list[Path]:
    """Write table-N.md, table-N.json and figure-N.png for what ``plan`` covers; returns their paths.

    Runs that are missing yet show as such. Raises OutputError.
    """
    found = records(plan)
    written: list[Path] = []
    for number in plan.tables:
        written += _write_table(plan, number, found)
    for number in plan.figures:
        written += _write_figure(plan, number, found)
    return written


def _write_table(plan: Plan, number: int, found: Mapping[str, RunRecord]) -> list[Path]:
    table = plan.paper.tables[number]
    title = f"{plan.paper.reference}. Table {number}: {table.caption}"
    markdown, values = _counts(title, table) if table.data is None else _accuracies(plan, number, title, found)
    values["paper"] = plan.paper.reference
    paths = [plan.output / f"table-{number}.md", plan.output / f"table-{number}.json"]
    contents = [markdown, json.dumps(values, indent=1, ensure_ascii=False) + "\n"]
    for path, text in zip(paths, contents, strict=True):
        _write(path, text.encode())
    return paths


def _counts(title: str, table: PaperTable) -> tuple[str, dict[str, Any]]:
    rows, notes = [], []
    for model, published in table.rows.items():
        card = model_card(model)
        if card.published_params is not None:
            rows.append(CountRow(published.label, model, published.params, card.published_params((COUNTED_WIDTH,))))
            notes.append(f"{published.label}: {card.published_note}")
    return counts_table_markdown(title, rows, notes=notes), counts_table_json(title, rows, notes=notes)


def _accuracies(plan: Plan, number: int, title: str, found: Mapping[str, RunRecord]) -> tuple[str, dict[str, Any]]:
    table = plan.paper.tables[number]
    assert table.data is not None
    rows = []
    for model, published in table.rows.items():
        config = plan.paper.configure(table.data, model, plan.recipes[0], 0)
        costs = _costs(plan, config)
        runs = {r: _runs(plan, number, model, r, found) for r in plan.recipes}
        rows.append(
            PaperRow(
                published.label,
                model,
                published.accuracy,
                published.params,
                costs.params_trainable,
                costs.params_total,
                costs.macs,
                runs,
            )
        )
    recipes = {r: plan.paper.recipes[r] for r in plan.recipes}
    settings: dict[str, Any] = {
        "data_title": table.caption,
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "wanted": plan.seeds,
        "notes": [f"{row.label}: {row.note}" for row in table.rows.values() if row.note],
    }
    return paper_table_markdown(title, rows, recipes, **settings), paper_table_json(title, rows, recipes, **settings)


def _costs(plan: Plan, config: TrainConfig) -> Counts:
    dataset = dataset_of(config.data, config.size, plan.data_dir)
    channels, (height, width) = dataset.preprocessing.channels, dataset.preprocessing.size
    model = create_model(
        config.model, num_classes=len(dataset.classes), in_channels=channels, input_size=height, **config.model_options
    )
    return count(model, (channels, height, width))


def _runs(plan: Plan, table: int, model: str, recipe: str, found: Mapping[str, RunRecord]) -> list[RunRecord]:
    wanted = [e.key for e in plan.experiments if (e.table, e.model, e.recipe) == (table, model, recipe)]
    return [found[key] for key in wanted if key in found]


def _write_figure(plan: Plan, number: int, found: Mapping[str, RunRecord]) -> list[Path]:
    figure = plan.paper.figures[number]
    table = plan.paper.tables[figure.table]
    panels = {}
    titles: set[str] = set()
    counts: set[int] = set()
    for recipe in plan.recipes:
        curves = []
        for model, published in table.rows.items():
            runs = _runs(plan, figure.table, model, recipe, found)
            titles.update(run.data_title for run in runs)
            if runs:
                counts.add(len(runs))
                curves.append(curve_of(published.label, runs))
        panels[recipe] = curves
    if not any(panels.values()):
        return []
    ends = {p.label: p.accuracy for p in table.rows.values() if p.accuracy is not None}
    caption = figure.caption.replace(table.caption, ", ".join(sorted(titles)))
    subtitle = f"{plan.paper.name}; lines: mean of {_seeds(counts, plan.seeds)}, bands: their range; markers: the paper's end"
    path = plan.output / f"figure-{number}.png"
    _write(path, paper_figure(f"Figure {number}. {caption}", panels, ends, subtitle=subtitle))
    return [path]


def _seeds(counts: set[int], wanted: int) -> str:
    """ "3 seeds", or how many there are so far."""
    if counts == {wanted}:
        return f"{wanted} seeds"
    return f"{'-'.join(map(str, sorted({min(counts), max(counts)})))} of {wanted} seeds"


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
