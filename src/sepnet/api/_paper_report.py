"""A paper's tables, figures and claims from the records that a plan has so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sepnet.api._claims import answers, in_words
from sepnet.api._plan import Plan, records
from sepnet.api._speed import speed_records
from sepnet.engine import atomic_write
from sepnet.errors import DataNotFoundError
from sepnet.measure import Counts, count
from sepnet.models import create_model, model_card
from sepnet.recipes import Figure, PaperTable, Published, Speed, TrainConfig, parameters
from sepnet.report import (
    ACCURACY,
    Architecture,
    Bar,
    CountRow,
    Layer,
    PaperRow,
    RunRecord,
    counts_table_json,
    counts_table_markdown,
    curve_of,
    layers_table_json,
    layers_table_markdown,
    paper_figure,
    paper_table_json,
    paper_table_markdown,
    parameters_figure,
    provenance,
)

__all__ = ["write_report"]

COUNTED_WIDTH = 32  # Table 2 of Wang et al. gives its example for N = 32


def write_report(plan: Plan) -> list[Path]:
    """Write table-N.md and .json, figure-N.png for what ``plan`` covers, and return their paths.

    What the paper claims of a table stands in it, answered; what it claims of a figure, in figure-N.md and .json beside it.
    Every record of the budget counts, whatever else was asked for in this call. Files of another budget than 1 carry it in their
    names. Runs that are missing yet show as such. Raises OutputError.
    """
    plan = plan.of_all_records()
    found = records(plan)
    written: list[Path] = []
    for number in plan.tables:
        written += _write_table(plan, number, found)
    for number in plan.figures:
        written += _write_figure(plan, number, found)
    return written


# --- tables -----------------------------------------------------------------------------------------------------------


def _write_table(plan: Plan, number: int, found: Mapping[str, RunRecord]) -> list[Path]:
    table = plan.paper.tables[number]
    title = f"{plan.paper.reference}. Table {number}: {table.caption}"
    if table.data is not None:
        markdown, values = _scores(plan, table, f"{title}{_mark(plan)}", found)
    else:
        markdown, values = _layers(plan, title, table) if table.layers else _counts(title, table)
    values["paper"] = plan.paper.reference
    suffix = plan.suffix if table.data is not None else ""
    paths = [plan.output / f"table-{number}{suffix}.md", plan.output / f"table-{number}{suffix}.json"]
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


def _layers(plan: Plan, title: str, table: PaperTable) -> tuple[str, dict[str, Any]]:
    networks = []
    for model, published in table.rows.items():
        card = model_card(model)
        costs = _counted(model, card.native_size, num_classes=card.num_classes)
        layers = [Layer(c.name, c.kind, c.output_shape, c.params, c.macs) for c in costs.layers]
        totals = costs.params_trainable, costs.params_total, costs.macs
        networks.append(Architecture(published.label, model, published.params, *totals, layers, card.readings))
    notes = [*table.notes, *in_words(answers(plan, "table", table.number, {}))]
    return layers_table_markdown(title, networks, notes=notes), layers_table_json(title, networks, notes=notes)


def _scores(plan: Plan, table: PaperTable, title: str, found: Mapping[str, RunRecord]) -> tuple[str, dict[str, Any]]:
    assert table.data is not None
    rows = []
    for name, published in table.rows.items():
        config = plan.paper.configure(table.data, name, plan.recipes[0], 0)
        costs = _costs(config, _shape(plan, table, config))
        tests = [test for test in plan.speed if (test.table, test.row) == (table.number, name)]
        rows.append(
            PaperRow(
                label=published.label,
                model=config.model,
                published=_printed(published),
                published_params=published.params,
                params_trainable=costs.params_trainable,
                params_total=costs.params_total,
                macs=costs.macs,
                runs={r: _runs(plan, table.data, name, r, found) for r in plan.recipes},
                published_ms=published.ms_per_image,
                speed=[record for test in tests for record in speed_records(test, plan.output)],
                classes=table.classes,
            )
        )
    recipes = {r: plan.paper.recipes[r] for r in plan.recipes}
    settings: dict[str, Any] = {
        "data_title": table.caption,
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "wanted": plan.seeds,
        "metrics": table.metrics,
        "budget": plan.budget,
        "speed_batch": table.speed.batch_size if table.speed else None,
        "notes": [
            *table.notes,
            *(f"{row.label}: {row.note}" for row in table.rows.values() if row.note),
            *in_words(answers(plan, "table", table.number, found)),
        ],
    }
    return paper_table_markdown(title, rows, recipes, **settings), paper_table_json(title, rows, recipes, **settings)


def _printed(published: Published) -> dict[str, float]:
    """The printed figures in percent by the key of their metric."""
    accuracy = {} if published.accuracy is None else {ACCURACY.key: published.accuracy}
    return accuracy | dict(published.figures)


def _shape(plan: Plan, table: PaperTable, config: TrainConfig) -> Speed:
    """Images and classes that a table's networks are built for: those of the data, or as the table says where it needs none."""
    try:
        facts = plan.facts.of(config.data, config.size)
    except DataNotFoundError:
        if table.speed is None:
            raise
        return table.speed
    return Speed((facts.channels, facts.side, facts.side), facts.classes, config.batch_size)


def _costs(config: TrainConfig, shape: Speed) -> Counts:
    channels, side, _ = shape.input_shape
    options = {"num_classes": shape.classes, "in_channels": channels, "input_size": side, **config.model_options}
    return _counted(config.model, shape.input_shape, **options)


def _counted(model: str, image: tuple[int, int, int], **options: Any) -> Counts:
    return _counted_once(model, image, json.dumps(options))  # a report is drawn anew after every run


@lru_cache(maxsize=64)
def _counted_once(model: str, image: tuple[int, int, int], options: str) -> Counts:
    """The counts of a network that is never filled with weights: VGG-16 alone would take seconds."""
    with torch.device("meta"):
        return count(create_model(model, **json.loads(options)), image)


def _runs(plan: Plan, data: str, row: str, recipe: str, found: Mapping[str, RunRecord]) -> list[RunRecord]:
    wanted = [e.key for e in plan.experiments if (e.config.data, e.row, e.recipe) == (data, row, recipe)]
    return [found[key] for key in wanted if key in found]


# --- figures ----------------------------------------------------------------------------------------------------------


def _write_figure(plan: Plan, number: int, found: Mapping[str, RunRecord]) -> list[Path]:
    figure = plan.paper.figures[number]
    counted = figure.show == "parameters"
    content = _parameters(plan, figure) if counted else _curves(plan, figure, found)
    if content is None:
        return []
    path = plan.output / f"figure-{number}{'' if counted else plan.suffix}.png"
    _write(path, content)
    return [path, *_write_claims(plan, figure, path, found)]


def _parameters(plan: Plan, figure: Figure) -> bytes:
    assert figure.counted is not None
    classes, side = figure.counted.classes, figure.counted.input_shape[1]
    bars = [Bar(row.label, parameters(model, classes, side), row.params) for model, row in figure.rows.items()]
    return parameters_figure(
        f"Figure {figure.number}. {figure.caption}", bars, subtitle="; ".join([plan.paper.name, *figure.notes])
    )


def _curves(plan: Plan, figure: Figure, found: Mapping[str, RunRecord]) -> bytes | None:
    """The figure's PNG; None without any run."""
    data, rows = plan.paper.runs_of(figure)
    assert data is not None
    training = figure.show == "training"
    panels = {}
    drawn: list[RunRecord] = []
    counts: set[int] = set()
    for recipe in plan.recipes:
        curves = []
        for name, published in rows.items():
            runs = _runs(plan, data, name, recipe, found)
            drawn += runs
            if runs:
                counts.add(len(runs))
                column = "train_accuracy" if training else "eval_accuracy"
                curves.append(curve_of(published.label, runs, column=column, epochs=figure.epochs))
        panels[f"{recipe}{_mark(plan)}"] = curves
    if not drawn:
        return None
    shown = {curve.label for curves in panels.values() for curve in curves}
    ends = {p.label: p.accuracy for p in rows.values() if p.accuracy is not None and p.label in shown}
    titles = ", ".join(sorted({run.data_title for run in drawn}))
    caption = figure.caption
    caption = f"{titles}: {caption}" if figure.table is None else caption.replace(plan.paper.tables[figure.table].caption, titles)
    lines = f"{plan.paper.name}; lines: {_lines(counts, plan.seeds)}"
    split = "training" if training else {"val": "validation"}.get(drawn[0].evaluated_on or "", "test")
    return paper_figure(
        f"Figure {figure.number}{_mark(plan)}. {caption}",
        panels,
        ends,
        subtitle=f"{lines}; markers: the paper's end" if ends else lines + _about_training(training),
        x_label="epochs" if figure.epochs else "iterations",
        y_label=f"{split} accuracy (%)",
    )


def _about_training(training: bool) -> str:
    return "; training accuracy is the mean over the steps since the point before, augmentation included" if training else ""


def _lines(counts: set[int], wanted: int) -> str:
    """What a line is, and, if of several runs, the band about it."""
    seeds = _seeds(counts, wanted)
    return seeds if max(counts) == 1 else f"mean of {seeds}, bands: their range"


def _seeds(counts: set[int], wanted: int) -> str:
    """ "3 seeds", or how many there are so far."""
    if counts == {wanted}:
        return f"{wanted} seed{'s' if wanted != 1 else ''}"
    return f"{'-'.join(map(str, sorted({min(counts), max(counts)})))} of {wanted} seeds"


def _write_claims(plan: Plan, figure: Figure, drawing: Path, found: Mapping[str, RunRecord]) -> list[Path]:
    """What the paper claims of a figure, beside its PNG; nothing where it claims nothing."""
    rows = answers(plan, "figure", figure.number, found)
    if not rows:
        return []
    runs = _runs_of(plan, figure, found)
    mark, budget = ("", 1.0) if figure.show == "parameters" else (_mark(plan), plan.budget)
    title = f"{plan.paper.reference}. Figure {figure.number}: {figure.caption}{mark}"
    facts = [*_data(runs, plan.budget), *provenance(runs)]
    picture = f"![{figure.caption}]({drawing.name})"
    lines = [f"# {title}", "", *facts, *([""] if facts else []), picture, "", *(f"- {text}" for text in in_words(rows)), ""]
    values = {"title": title, "paper": plan.paper.reference, "budget": budget, "seeds_wanted": plan.seeds, "claims": rows}
    paths = [drawing.with_suffix(".md"), drawing.with_suffix(".json")]
    _write(paths[0], "\n".join(lines).encode())
    _write(paths[1], (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    return paths


def _runs_of(plan: Plan, figure: Figure, found: Mapping[str, RunRecord]) -> list[RunRecord]:
    """The runs whose curves a figure shows; none where it shows no curves."""
    if figure.show == "parameters":
        return []
    data, rows = plan.paper.runs_of(figure)
    assert data is not None
    return [run for row in rows for recipe in plan.recipes for run in _runs(plan, data, row, recipe, found)]


def _data(runs: Sequence[RunRecord], budget: float) -> list[str]:
    """Lines of a Markdown list: what the runs saw, and for how long."""
    if not runs:
        return []
    data = sorted({f"{run.data_title}, {run.train_images:,} training images" for run in runs})
    length = sorted({run.iterations for run in runs})
    share = f" (**budget {budget:g} of the whole, the schedule scaled**)" if budget != 1 else ""
    return [
        f"- **Data:** {'; '.join(data)} (fingerprint {runs[0].data_fingerprint[:12]})",
        f"- **Length:** {', '.join(f'{n:,}' for n in length)} iterations × {runs[0].config['batch_size']} images{share}",
    ]


def _mark(plan: Plan) -> str:
    return "" if plan.budget == 1 else f" (budget {plan.budget:g})"


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
