"""``sepnet val``: the scores of a finished run, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._machine import use_machine
from sepnet.cli._output import Output, counted, percent
from sepnet.cli._progress import counting
from sepnet.cli._registry import command
from sepnet.errors import one_line

if TYPE_CHECKING:
    from sepnet.api import Evaluation

__all__ = ["val"]

MOST_CLASSES = 30
WEAKEST = 15
CONFUSIONS = 5


@command("val", order=2, example="sepnet val runs/digits --split test")
def val(
    run: flag.RunFolder,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", show_default=False, help="Other data of the same classes; else what the run was trained on."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", rich_help_panel=flag.DATA, help="test, val or train.", show_default=True)
    ] = "test",
    data_dir: flag.DataDirOfRun = None,
    tta: Annotated[
        bool, typer.Option("--tta", rich_help_panel=flag.RUN, help="Also with mirrored images, reported apart.")
    ] = False,
    json: flag.Json = False,
    device: flag.Device = "auto",
) -> None:
    """Score a finished run on a split of its data, or of other data with the same classes."""
    from sepnet.api import evaluate

    out = Output(json)
    use_machine(device)
    with counting("reading images") as progress:
        result = evaluate(run, data, split=split, data_dir=data_dir, device=device, tta=tta, progress=progress)  # type: ignore[arg-type]
    if json:
        out.json(
            {"run": str(run), "model": result.release.model_name, "data": result.data_title, "split": result.split, **result.scores}
        )
        return
    out.facts(_facts(run, result))
    out.line()
    _show_classes(out, result.scores["per_class"])
    _show_confusions(out, result.scores)


def _part(result: Evaluation) -> str:
    return "all images" if result.split == "whole" else f"{result.split} split"


def _facts(run: Path, result: Evaluation) -> list[tuple[str, str]]:
    scores = result.scores
    first_five = f", among the first five {percent(scores['top5'])}" if len(scores["per_class"]) > 5 else ""
    facts = [
        ("run", f"{one_line(run)}: {result.release.model_name}"),
        ("data", f"{one_line(result.data_title)}, {_part(result)}, {counted(scores['images'], 'image')}"),
        ("accuracy", percent(scores["accuracy"]) + first_five),
    ]
    if "accuracy_tta" in scores:
        facts.append(("with TTA", f"{percent(scores['accuracy_tta'])} (mean of each image and its mirror image)"))
    return [*facts, ("loss", f"{scores['loss']:.4f}")]


def _show_classes(out: Output, rows: Sequence[dict[str, Any]]) -> None:
    """A row a class; of many classes those with the least F1."""
    shown = list(rows)
    if len(rows) > MOST_CLASSES:
        shown = sorted(rows, key=lambda row: -1.0 if row["f1"] is None else row["f1"])[:WEAKEST]
        out.line(f"the {WEAKEST} weakest of {len(rows)} classes (--json has all)", style="dim")
    cells = [
        [row["class"], *(percent(row[key], 1) for key in ("precision", "recall", "f1")), f"{int(row['support']):,}"]
        for row in shown
    ]
    out.table(["class", "precision", "recall", "F1", "images"], cells, right=(1, 2, 3, 4), optional=(4, 1, 2))


def _show_confusions(out: Output, scores: dict[str, Any]) -> None:
    """The most frequent mistakes."""
    names = [row["class"] for row in scores["per_class"]]
    matrix = scores.get("confusion", [])
    wrong = [(n, true, given) for true, row in enumerate(matrix) for given, n in enumerate(row) if n and true != given]
    if not wrong:
        return
    wrong.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    rows = [[names[true], names[given], f"{n:,} of {sum(matrix[true]):,}"] for n, true, given in wrong[:CONFUSIONS]]
    out.line()
    out.table(["true class", "mistaken for", "images"], rows, right=(2,))
