"""``sepnet compare``: several networks under one recipe, their accuracy against parameters, MACs and latency."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._errors import Stopped
from sepnet.cli._machine import use_machine
from sepnet.cli._output import Output, console, counted, duration, human_count, percent, shape_text
from sepnet.cli._parse import key_values
from sepnet.cli._progress import counting, training_reporter
from sepnet.cli._registry import command
from sepnet.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from sepnet.api import ComparePlan, Comparison, NamedNetwork, Trial
    from sepnet.engine import Reporter
    from sepnet.report import RunRecord

__all__ = ["compare"]

# between two options of a network: a comma before KEY=, so that lists keep theirs
BETWEEN = re.compile(r",(?=[A-Za-z_]\w*=)")


@command(
    "compare",
    order=3,
    example="sepnet compare multiscale_concat dilated_separable:rate=1 runs/first --data digits --iterations 500 --seeds 3",
    note="A network may have options, NAME:key=value,key=value. The folder of a finished run stands for its network, as it is. "
    "Settings without a flag go into the --config file. The front is drawn on validation accuracy; test accuracy stands apart.",
)
def compare(
    ctx: typer.Context,
    networks: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", show_default=False, help="Networks (see sepnet models), or folders of finished runs."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", rich_help_panel=flag.DATA, help="A data set, hf:owner/name, or a folder of images."),
    ] = None,
    size: flag.Size = None,
    val_fraction: flag.ValFraction = None,
    data_dir: flag.DataDir = Path("data"),
    epochs: flag.Epochs = None,
    iterations: flag.Iterations = None,
    batch_size: flag.BatchSize = None,
    eval_every: flag.EvalEvery = None,
    patience: flag.Patience = None,
    opt: flag.Opt = None,
    lr: flag.LearningRate = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", rich_help_panel=flag.RUN, help="Runs of each network.", show_default=True)
    ] = 1,
    recipe: flag.Recipe = None,
    config: flag.Config = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", rich_help_panel=flag.RUN, help="Folder of runs and report; else runs/compare-DATA."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=flag.RUN, help="Only say what would run, and how long.")
    ] = False,
    device: flag.Device = "auto",
    workers: flag.Workers = None,
    amp: flag.Amp = None,
    json: flag.Json = False,
) -> None:
    """Train networks under one recipe, or take finished runs, and draw accuracy against parameters, MACs and latency here.

    Says first how long it will take. Finished runs are not repeated: the same command goes on after Ctrl-C.
    """
    from sepnet import api
    from sepnet.engine import check_within_reach

    entrants = [_entrant(text) for text in networks or ()]
    use_machine(device, workers)
    if output is not None:
        check_within_reach(output)
    request = api.Request(data, recipe, config, _settings(ctx.params), data_dir=data_dir)
    out = Output(json)
    with counting("reading images") as progress:
        agreed = api.plan_comparison(entrants, request, seeds=seeds, output=output, device=device, progress=progress)
    _show_plan(out, agreed)
    if not dry_run:
        _show_result(out, _run(agreed))
    elif json:
        out.json(_plan_as_json(agreed))


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the flags that were given, by their names in the configuration."""
    names = ("size", "val_fraction", "epochs", "iterations", "batch_size", "eval_every", "patience", "opt", "lr")
    settings = {name: given[name] for name in names if given[name] is not None}
    return settings if given["amp"] is None else {**settings, "amp": "bf16" if given["amp"] else "off"}


def _entrant(text: str) -> NamedNetwork | Path:
    """A network with its options, or the folder of a run; a registered name goes before a folder of that name.

    Raises:
        CheckpointError: a path where nothing is.
        ConfigError: options that are not KEY=VALUE.
        UnknownNameError: neither a network nor a folder.
    """
    from sepnet.api import NamedNetwork
    from sepnet.models import models

    if text not in models:
        path = Path(text)
        if path.is_dir():
            return path
        if os.sep in text.partition(":")[0]:
            raise CheckpointError(f"{one_line(text)} is neither a network nor the folder of a run")
    name, colon, options = text.partition(":")
    models.get(name)
    return NamedNetwork(name, key_values(BETWEEN.split(options), f"{name}:") if colon else {})


def _run(agreed: ComparePlan) -> Comparison:
    """Carry the plan out."""
    from sepnet import api

    try:
        return api.compare(agreed, listener=_Follower(agreed))
    except KeyboardInterrupt as stop:
        raise Stopped("interrupted; what is finished is kept: the same command goes on from here") from stop


def _show_plan(out: Output, agreed: ComparePlan) -> None:
    """What will be compared, from how many runs, in what time."""
    dataset = agreed.dataset
    assert dataset.val is not None  # the plan refuses data without it
    splits = [f"{len(dataset.train):,} training", f"{len(dataset.val):,} validation"]
    splits += [f"{len(dataset.test):,} test"] if dataset.test is not None else []
    shape = (dataset.preprocessing.channels, *dataset.preprocessing.size)
    classes = counted(len(dataset.classes), "class", "classes")
    todo = agreed.todo
    loaded = sum(len(contender.given) for contender in agreed.contenders)
    runs = f"{counted(len(agreed.trials), 'run')}, {len(agreed.done):,} done already, {len(todo):,} to go"
    facts = [
        ("data", f"{one_line(dataset.title)}: {classes}, {', '.join(splits)} images of {shape_text(shape)}"),
        *(("note", one_line(note, 400)) for note in (*dataset.notes, *agreed.notes)),
        ("plan", one_line(agreed.summary)),
        ("runs", runs + (f"; {loaded:,} taken from elsewhere" if loaded else "")),
    ]
    if todo:
        facts.append(("time", f"about {duration(agreed.expected_seconds)} on this machine, then the speed of each is measured"))
    out.facts([*facts, ("into", one_line(agreed.output))])
    out.line()
    out.table(["network", "parameters", "MACs", "runs to go", "each about"], _plan_rows(agreed), right=(1, 2, 3, 4))
    out.line()


def _plan_rows(agreed: ComparePlan) -> list[list[str]]:
    left = [trial.contender.label for trial in agreed.todo]
    return [
        [
            one_line(c.label),
            f"{c.costs.params_trainable:,}",
            human_count(c.costs.macs),
            str(left.count(c.label)),
            duration(agreed.seconds[c.label]) if c.label in agreed.seconds else "–",
        ]
        for c in agreed.contenders
    ]


def _show_result(out: Output, result: Comparison) -> None:
    from sepnet.report import comparison_cells

    if out.as_json:
        out.json({**result.content, "files": [os.fspath(file) for file in result.files]})
        return
    header, rows = comparison_cells(result.networks)
    shown = [[one_line(cell) for cell in row] for row in rows]
    out.line()
    out.table(header, shown, right=(1, 2, 3, 4, 5, 6), optional=(6, 2, 1))  # the plan above has the counts
    out.line()
    notes = [("note", one_line(note, 400)) for note in result.content["notes"]]
    out.facts(notes + [("written", one_line(file)) for file in result.files])


class _Follower:
    """Follows the runs on stderr."""

    def __init__(self, agreed: ComparePlan) -> None:
        self.seconds = dict(agreed.seconds)
        self.left = agreed.expected_seconds
        self.screen = console(stderr=True)

    def begin(self, trial: Trial, number: int, total: int) -> Reporter:
        """Announce a run."""
        label = one_line(trial.contender.label)
        self.screen.print(
            f"[{number}/{total}] {label}, seed {trial.seed} ({duration(self.left)} left in all)", style="bold", soft_wrap=True
        )
        return training_reporter("val")

    def finished(self, trial: Trial, record: RunRecord) -> None:
        """Tell its result."""
        self.left -= self.seconds.get(trial.contender.label, 0.0)
        accuracy = record.result.get("val", {}).get("accuracy")
        self.screen.print(f"    validation accuracy {percent(accuracy)} in {duration(record.seconds)}", soft_wrap=True)

    def measuring(self, label: str, number: int, total: int) -> None:
        """Tell what the machine should be left alone for."""
        self.screen.print(f"measuring the speed of {one_line(label)} ({number}/{total})", soft_wrap=True)


def _plan_as_json(agreed: ComparePlan) -> dict[str, object]:
    return {
        "data": agreed.dataset.title,
        "plan": agreed.summary,
        "output": os.fspath(agreed.output),
        "networks": [
            {
                "label": c.label,
                "params_trainable": c.costs.params_trainable,
                "macs": c.costs.macs,
                "runs": [os.fspath(folder) for folder in c.given],
            }
            for c in agreed.contenders
        ],
        "runs": [
            {
                "label": trial.contender.label,
                "seed": trial.seed,
                "folder": os.fspath(trial.folder),
                "done": trial.folder in agreed.done,
                "expected_seconds": agreed.seconds.get(trial.contender.label),
            }
            for trial in agreed.trials
        ],
        "expected_seconds": agreed.expected_seconds,
        "notes": list(agreed.notes),
    }
