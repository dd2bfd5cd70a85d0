"""``sepnet reproduce``: a paper's tables and figures, its numbers beside the measured ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._errors import Stopped
from sepnet.cli._machine import use_machine
from sepnet.cli._output import Output, console, counted, duration, percent
from sepnet.cli._parse import listed, numbers
from sepnet.cli._progress import training_reporter
from sepnet.cli._registry import command
from sepnet.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rich.console import Console

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
ReportOnly = Annotated[
    bool, typer.Option("--report-only", rich_help_panel=flag.RUN, help="Run nothing: draw tables and figures from the records.")
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        metavar="N",
        rich_help_panel=flag.MACHINE,
        help="Runs at a time, in processes that share the threads or the GPU.",
        show_default=True,
    ),
]


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
    report_only: ReportOnly = False,
    json: flag.Json = False,
    device: flag.Device = "auto",
    workers: flag.Workers = None,
    jobs: Jobs = 1,
) -> None:
    """Run a paper's experiments and write its tables and figures, the paper's number beside the measured one.

    Says first how long it will take here. Runs that are recorded already are not repeated: the same command goes on after Ctrl-C.
    """
    from sepnet import api

    out = Output(json)
    use_machine(device, workers)
    api.check_jobs(jobs)
    agreed = api.plan(
        paper,
        tables=numbers(table or (), "--table"),
        figures=numbers(figure or (), "--figure"),
        seeds=seeds,
        recipes=listed(recipes or (), "--recipes"),
        models=listed(models or (), "--models"),
        budget=budget,
        data_dir=data_dir,
        output=output,
        device=device,
        report_only=report_only,
    )
    agreed = _prepared(agreed, device, dry_run, report_only)
    _show_plan(out, agreed, jobs)
    _show_files(out, agreed, jobs, _files(agreed, device, jobs, dry_run, report_only))


def _prepared(agreed: Plan, device: str, dry_run: bool, report_only: bool) -> Plan:
    """With the expected times, and with what would stop it later found now.

    Raises:
        ConfigError: there is nothing to report.
        OutputError: the results cannot be written.
    """
    from sepnet import api
    from sepnet.engine import check_writable

    if report_only:
        if (agreed.experiments or agreed.speed) and not api.has_records(agreed):
            of = "" if agreed.budget == 1 else f" of --budget {agreed.budget:g}"
            raise ConfigError(f"--report-only: no run{of} is recorded in {one_line(agreed.output)}; without it they are run")
        return agreed
    if not dry_run:
        for folder in agreed.folders:
            check_writable(folder)
    return api.timed(agreed, device, _tell_timing)


def _tell_timing(name: str) -> None:
    console(stderr=True).print(f"timing a few steps: {name}", style="dim", soft_wrap=True)


def _files(agreed: Plan, device: str, jobs: int, dry_run: bool, report_only: bool) -> list[Path]:
    """What is written: nothing, the report of what is recorded, or that after all runs."""
    from sepnet import api

    if dry_run:
        return []
    return api.write_report(agreed) if report_only else _run(agreed, device, jobs)


def _run(agreed: Plan, device: str, jobs: int) -> list[Path]:
    """Carry the plan out; the files written."""
    from sepnet import api

    try:
        listener = _Follower(agreed) if jobs == 1 else _SideBySideFollower()
        return api.reproduce(agreed, device=device, jobs=jobs, listener=listener)
    except KeyboardInterrupt as stop:
        kept = "what is finished is kept, and what was begun as far as it was saved: the same command goes on from here"
        raise Stopped(f"interrupted; {kept}") from stop


def _show_files(out: Output, agreed: Plan, jobs: int, files: list[Path]) -> None:
    if out.as_json:
        out.json(_as_json(agreed, jobs, files))
    elif files:
        out.line()
        out.facts([("written", one_line(file)) for file in files])


def _show_plan(out: Output, agreed: Plan, jobs: int) -> None:
    """What will be made, from how many runs, in what time."""
    todo = agreed.todo
    made = [_numbered("table", agreed.tables), _numbered("figure", agreed.figures)]
    begun = f", {len(agreed.begun):,} of them from a checkpoint in {one_line(agreed.work)}" if agreed.begun else ""
    runs = f"{counted(len(agreed.experiments), 'run')}, {len(agreed.done):,} done already, {len(todo):,} to go{begun}"
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
        facts.append(("time", f"about {duration(agreed.expected_seconds)} on this machine{_at_a_time(todo, jobs)}"))
    facts += [("left out", one_line(reason, 1000)) for reason in agreed.blocked]
    facts += [("not counted", one_line(reason, 1000)) for reason in agreed.not_counted]
    out.facts([*facts, ("into", one_line(agreed.output))])
    if todo and agreed.seconds:
        out.line()
        each = "each about" if jobs == 1 else "each alone about"
        out.table(["data", "model", "recipe", "runs to go", each], _time_rows(agreed, todo), right=(3, 4))
        out.line()


def _at_a_time(todo: Sequence[Experiment], jobs: int) -> str:
    """What several jobs make of the expected time: how well the machine shares itself out is not measured."""
    if jobs == 1 or not todo:
        return ""
    return f" if the runs followed one another; {min(jobs, len(todo))} go on at a time"


def _numbered(name: str, which: Sequence[int]) -> str:
    """ "tables 3, 4"; empty for none."""
    return f"{name}{'s' if len(which) > 1 else ''} {', '.join(map(str, sorted(which)))}" if which else ""


def _time_rows(agreed: Plan, todo: Iterable[Experiment]) -> list[list[str]]:
    kinds: dict[tuple[str, str, str], list[float]] = {}
    for experiment in todo:
        kind = (experiment.config.data, experiment.row, experiment.recipe)
        kinds.setdefault(kind, []).append(agreed.seconds.get(experiment.key, 0.0))
    return [[*kind, str(len(seconds)), duration(max(seconds))] for kind, seconds in kinds.items()]


class _Follower:
    """Follows the runs on stderr."""

    def __init__(self, agreed: Plan) -> None:
        self.seconds = dict(agreed.seconds)
        self.screen = console(stderr=True)

    def begin(self, experiment: Experiment, number: int, total: int) -> Reporter:
        """Announce a run."""
        left = sum(self.seconds.values())
        self.screen.print(
            f"[{number}/{total}] {_named(experiment)} ({duration(left)} left in all)",
            style="bold",
            soft_wrap=True,
        )
        return training_reporter("test", int(os.environ.get("WORLD_SIZE", "1")))

    def finished(self, experiment: Experiment, record: RunRecord) -> None:
        """Tell its result."""
        self.seconds.pop(experiment.key, None)
        accuracy = record.result.get("test", {}).get("accuracy")
        self.screen.print(f"    test accuracy {percent(accuracy)} in {duration(record.seconds)}", soft_wrap=True)

    def failed(self, experiment: Experiment, reason: str) -> None:
        """Nothing to do: a run on its own raises its error."""

    def timed(self, test: SpeedTest, record: SpeedRecord) -> None:
        """Tell a measured speed."""
        _tell_speed(self.screen, test, record)


class _SideBySideFollower:
    """Follows several runs at a time on stderr: a line at the beginning and the end of each."""

    def __init__(self) -> None:
        self.screen = console(stderr=True)
        self.places: dict[str, str] = {}

    def begin(self, experiment: Experiment, number: int, total: int) -> None:
        """Announce a run."""
        self.places[experiment.key] = f"[{number}/{total}]"
        self._tell(experiment, "begins")

    def finished(self, experiment: Experiment, record: RunRecord) -> None:
        """Tell its result."""
        accuracy = record.result.get("test", {}).get("accuracy")
        self._tell(experiment, f"test accuracy {percent(accuracy)} in {duration(record.seconds)}")

    def failed(self, experiment: Experiment, reason: str) -> None:
        """Tell why it has none."""
        self._tell(experiment, f"failed: {reason}")

    def timed(self, test: SpeedTest, record: SpeedRecord) -> None:
        """Tell a measured speed."""
        _tell_speed(self.screen, test, record)

    def _tell(self, experiment: Experiment, what: str) -> None:
        self.screen.print(f"{self.places[experiment.key]} {_named(experiment)}: {what}", soft_wrap=True, markup=False)


def _named(experiment: Experiment) -> str:
    return f"{experiment.config.data}, {experiment.row}, {experiment.recipe}, seed {experiment.seed}"


def _tell_speed(screen: Console, test: SpeedTest, record: SpeedRecord) -> None:
    figures = f"{record.ms_per_image:.3f} ± {record.sd_per_image:.3f} ms an image ({record.n} passes of {record.batch_size})"
    screen.print(f"    {test.data}, {test.row}: {figures}", soft_wrap=True)


def _as_json(agreed: Plan, jobs: int, files: list[Path]) -> dict[str, object]:
    return {
        "paper": agreed.paper.name,
        "tables": agreed.tables,
        "figures": agreed.figures,
        "recipes": agreed.recipes,
        "models": agreed.models,
        "seeds": agreed.seeds,
        "budget": agreed.budget,
        "jobs": jobs,
        "output": os.fspath(agreed.output),
        "blocked": agreed.blocked,
        "not_counted": agreed.not_counted,
        "runs": [
            {"key": e.key, "table": e.table, "done": e.key in agreed.done, "expected_seconds": agreed.seconds.get(e.key)}
            for e in agreed.experiments
        ],
        "speed": [{"data": t.data, "model": t.row, "done": t not in agreed.speed_todo} for t in agreed.speed],
        "expected_seconds": agreed.expected_seconds,
        "files": [os.fspath(file) for file in files],
    }
