"""``sepnet reproduce``: a paper's tables and figures, its numbers beside the measured ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._errors import Stopped
from sepnet.cli._output import Output, console, counted, duration, percent
from sepnet.cli._parse import listed, numbers
from sepnet.cli._progress import training_reporter
from sepnet.cli._registry import command
from sepnet.errors import one_line

if TYPE_CHECKING:
    from sepnet.api import Experiment, Plan, SpeedTest
    from sepnet.engine import Reporter
    from sepnet.report import RunRecord, SpeedRecord

__all__ = ["reproduce"]

PAPER = "Paper"

Budget = Annotated[
    float,
    typer.Option(
        "--budget", metavar="F", rich_help_panel=PAPER, help="Share of the iterations, 0.1 is a tenth; marked in every result."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", rich_help_panel=flag.RUN, help="Only say what would run, and how long.")]


@command("reproduce", order=4, example="sepnet reproduce wang2018 --table 4 --seeds 3 --data-dir data")
def reproduce(
    paper: Annotated[str, typer.Argument(metavar="PAPER", show_default=False, help="A paper, e.g. wang2018.")],
    table: Annotated[
        list[str] | None,
        typer.Option("--table", metavar="N", rich_help_panel=PAPER, help="Only this table; repeatable, or 3,4. Else all."),
    ] = None,
    figure: Annotated[
        list[str] | None, typer.Option("--figure", metavar="N", rich_help_panel=PAPER, help="Only this figure; likewise.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", rich_help_panel=PAPER, help="Runs of each network.", show_default=True)
    ] = 3,
    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipes", metavar="NAMES", rich_help_panel=PAPER, help="Only these, e.g. plain,modern."),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", metavar="NAMES", rich_help_panel=PAPER, help="Only these networks, with commas.")
    ] = None,
    budget: Budget = 1.0,
    data_dir: flag.DataDir = Path("data"),
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", rich_help_panel=flag.RUN, help="Folder of tables and records; else runs/PAPER."),
    ] = None,
    dry_run: DryRun = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", rich_help_panel=flag.RUN, help="Run nothing: draw tables and figures from the records.")
    ] = False,
    json: flag.Json = False,
    device: flag.Device = "auto",
) -> None:
    """Run a paper's experiments and write its tables and figures, the paper's number beside the measured one.

    Says first how long it will take here. Runs that are recorded already are not repeated: the same command goes on after Ctrl-C.
    """
    from sepnet import api

    out = Output(json)
    agreed = api.plan(
        paper,
        tables=numbers(table or (), "--table"),
        figures=numbers(figure or (), "--figure"),
        seeds=seeds,
        recipes=listed(recipes or ()),
        models=listed(models or ()),
        budget=budget,
        data_dir=data_dir,
        output=output,
        device=device,
    )
    agreed = agreed if report_only else api.timed(agreed, device, _tell_timing)
    _show_plan(out, agreed)
    files = _files(agreed, device, dry_run, report_only)
    if json:
        out.json(_as_json(agreed, files))
    elif files:
        out.line()
        out.facts([("written", one_line(file)) for file in files])


def _tell_timing(name: str) -> None:
    console(stderr=True).print(f"timing a few steps: {name}", style="dim", soft_wrap=True)


def _files(agreed: Plan, device: str, dry_run: bool, report_only: bool) -> list[Path]:
    """What is written: nothing, the report of what is recorded, or that after all runs."""
    from sepnet import api

    if dry_run:
        return []
    return api.write_report(agreed) if report_only else _run(agreed, device)


def _run(agreed: Plan, device: str) -> list[Path]:
    """Carry the plan out; the files written."""
    from sepnet import api

    try:
        return api.reproduce(agreed, device=device, listener=_Follower(agreed))
    except KeyboardInterrupt as stop:
        raise Stopped("interrupted; what is finished is kept: the same command goes on from here") from stop


def _show_plan(out: Output, agreed: Plan) -> None:
    """What will be made, from how many runs, in what time."""
    todo = agreed.todo
    made = [_numbered("table", agreed.tables), _numbered("figure", agreed.figures)]
    runs = f"{counted(len(agreed.experiments), 'run')}, {len(agreed.done):,} done already, {len(todo):,} to go"
    facts = [
        ("paper", agreed.paper.title),
        ("", agreed.paper.reference),
        ("makes", ", ".join(part for part in made if part)),
        ("runs", runs if agreed.experiments else "none, times only" if agreed.speed else "none needed, counts only"),
    ]
    if agreed.budget != 1:
        facts.append(("budget", f"{agreed.budget:g} of the iterations, the schedule scaled; every result is marked"))
    if agreed.speed:
        facts.append(("speed", f"{counted(len(agreed.speed), 'network')} to time, {len(agreed.speed_todo)} not yet on this device"))
    if agreed.expected_seconds:
        facts.append(("time", f"about {duration(agreed.expected_seconds)} on this machine"))
    facts += [("left out", one_line(reason, 1000)) for reason in agreed.blocked]
    out.facts([*facts, ("into", one_line(agreed.output))])
    if todo and agreed.seconds:
        out.line()
        out.table(["data", "model", "recipe", "runs to go", "each about"], _time_rows(agreed, todo), right=(3, 4))
        out.line()


def _numbered(name: str, which: Sequence[int]) -> str:
    """ "tables 3, 4"; empty for none."""
    return f"{name}{'s' if len(which) > 1 else ''} {', '.join(map(str, sorted(which)))}" if which else ""


def _time_rows(agreed: Plan, todo: Iterable[Experiment]) -> list[list[str]]:
    kinds: dict[tuple[str, str, str], list[float]] = {}
    for experiment in todo:
        kind = (experiment.config.data, experiment.row, experiment.recipe)
        kinds.setdefault(kind, []).append(agreed.seconds.get(experiment.key, 0.0))
    return [[*kind, str(len(seconds)), duration(seconds[0])] for kind, seconds in kinds.items()]


class _Follower:
    """Follows the runs on stderr."""

    def __init__(self, agreed: Plan) -> None:
        self.seconds = dict(agreed.seconds)
        self.screen = console(stderr=True)

    def begin(self, experiment: Experiment, number: int, total: int) -> Reporter:
        """Announce a run."""
        left = sum(self.seconds.values())
        self.screen.print(
            f"[{number}/{total}] {experiment.config.data}, {experiment.row}, {experiment.recipe}, seed {experiment.seed} "
            f"({duration(left)} left in all)",
            style="bold",
            soft_wrap=True,
        )
        return training_reporter("test", int(os.environ.get("WORLD_SIZE", "1")))

    def finished(self, experiment: Experiment, record: RunRecord) -> None:
        """Tell its result."""
        self.seconds.pop(experiment.key, None)
        accuracy = record.result.get("test", {}).get("accuracy")
        self.screen.print(f"    test accuracy {percent(accuracy)} in {duration(record.seconds)}", soft_wrap=True)

    def timed(self, test: SpeedTest, record: SpeedRecord) -> None:
        """Tell a measured speed."""
        figures = f"{record.ms_per_image:.3f} ± {record.sd_per_image:.3f} ms an image ({record.n} passes of {record.batch_size})"
        self.screen.print(f"    {test.data}, {test.row}: {figures}", soft_wrap=True)


def _as_json(agreed: Plan, files: list[Path]) -> dict[str, object]:
    return {
        "paper": agreed.paper.name,
        "tables": agreed.tables,
        "figures": agreed.figures,
        "recipes": agreed.recipes,
        "models": agreed.models,
        "seeds": agreed.seeds,
        "budget": agreed.budget,
        "output": os.fspath(agreed.output),
        "blocked": agreed.blocked,
        "runs": [
            {"key": e.key, "table": e.table, "done": e.key in agreed.done, "expected_seconds": agreed.seconds.get(e.key)}
            for e in agreed.experiments
        ],
        "speed": [{"data": t.data, "model": t.row, "done": t not in agreed.speed_todo} for t in agreed.speed],
        "expected_seconds": agreed.expected_seconds,
        "files": [os.fspath(file) for file in files],
    }
