"""``sepnet data``: the data sets there are, and what is wrong with a folder of images."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._output import Output
from sepnet.cli._progress import counting
from sepnet.cli._registry import Command, HelpGroup, commands

__all__ = ["check", "list_data"]

app = typer.Typer(name="data", cls=HelpGroup, add_completion=False, help="List the data sets by name, or check a folder of images.")
commands.register("data")(Command(app, order=7))


@app.callback()
def _group() -> None:
    # a callback makes a group of it, whatever the number of its commands
    pass


@app.command("list", epilog="Example: sepnet data list")
def list_data(json: flag.Json = False) -> None:
    """List the data sets that sepnet train knows by name."""
    from sepnet.data import datasets

    found = [(name, _summary(datasets.get(name).read)) for name in datasets]
    out = Output(json)
    if json:
        out.json([{"name": name, "summary": summary} for name, summary in found])
        return
    out.table(["data set", "what"], [[name, summary] for name, summary in found])
    out.line()
    out.line("any folder of images is one too: DIR/CLASS/* or DIR/{train,val,test}/CLASS/*", style="dim")


@app.command("check", epilog="Example: sepnet data check path/to/images --strict")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A folder of images, as for sepnet train.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there is something to mend.")] = False,
    json: flag.Json = False,
) -> None:
    """Read every image of a folder; report sizes, classes, unreadable files, duplicates and leaks between splits."""
    from sepnet.data import check_folder

    out = Output(json)
    with counting("checking images") as progress:
        report = check_folder(folder, progress)
    if json:
        out.json(report.to_dict())
    else:
        for line in report.lines():
            out.line(line)
        out.line(_verdict(report.ok, strict), style="green" if report.ok else "yellow")
    if strict and not report.ok:
        raise typer.Exit(1)


def _verdict(ok: bool, strict: bool) -> str:
    """The last line of a check; it tells of the exit code where that says less than the line."""
    if ok:
        return "nothing to mend"
    return "there is something to mend" + ("" if strict else " (exit code 1 with --strict)")


def _summary(reader: object) -> str:
    """What the file of a data set says of it first."""
    module = inspect.getmodule(reader)
    return " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split()).rstrip(".")
