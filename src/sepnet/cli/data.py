"""``sepnet data``: the data sets there are, fetching one of them, and what is wrong with a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._errors import Stopped
from sepnet.cli._output import Output, megabytes, shell_word
from sepnet.cli._progress import counting, transferring
from sepnet.cli._registry import Command, commands
from sepnet.errors import DataNotFoundError, one_line

if TYPE_CHECKING:
    from sepnet.data import Entry, Source

__all__ = ["check", "get", "list_data"]

app = typer.Typer(
    name="data",
    add_completion=False,
    invoke_without_command=True,
    help="List the data sets that are known by name, fetch one, or check a folder of images. Without a command: list.",
)
commands.register("data")(Command(app, order=7))


@app.callback()
def _group(ctx: typer.Context, data_dir: flag.DataDir = Path("data"), json: flag.Json = False) -> None:
    if ctx.invoked_subcommand is None:
        list_data(data_dir, json)


@app.command("list", epilog="Example: sepnet data list")
def list_data(data_dir: flag.DataDir = Path("data"), json: flag.Json = False) -> None:
    """List the data sets that sepnet train knows by name: what they are, whether they are there, whence and on what terms."""
    from sepnet.data import datasets

    rows = [_facts(name, datasets.get(name), data_dir) for name in datasets]
    out = Output(json)
    if json:
        out.json(rows)
        return
    there = {True: "yes", False: "no", None: "built in"}
    out.table(
        ["data set", "download", "there", "what", "licence", "from"],
        [
            [
                row["name"],
                megabytes(row["download_bytes"]) if row["download_bytes"] else "–",
                there[row["present"]],
                row["summary"],
                row["licence"] or "",
                row["homepage"] or "",
            ]
            for row in rows
        ],
        right=(1,),
        optional=(5, 4),
    )
    out.line()
    out.line(
        f"there: in {one_line(data_dir)} (--data-dir); fetch one with: sepnet data get NAME; what to cite: --json", style="dim"
    )
    out.line(
        "any folder of images is one too (DIR/CLASS/* or DIR/{train,val,test}/CLASS/*), and hf:owner/name of the hub", style="dim"
    )


def _facts(name: str, entry: Entry, data_dir: Path) -> dict[str, Any]:
    """What is told of a data set; what comes with the requirements has no source."""
    source = entry.source
    return {
        "name": name,
        "summary": entry.summary,
        "present": None if source is None else _is_there(source, data_dir),
        "download_bytes": None if source is None else source.size,
        "licence": None if source is None else source.licence,
        "citation": None if source is None else source.citation,
        "homepage": None if source is None else source.homepage,
    }


def _is_there(source: Source, data_dir: Path) -> bool:
    try:
        return bool(source.find(data_dir))
    except DataNotFoundError:
        return False


@app.command("get", epilog="Example: sepnet data get cifar10 --data-dir data")
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A data set of sepnet data list.")],
    data_dir: flag.DataDir = Path("data"),
    mirror: Annotated[
        list[str] | None,
        typer.Option("--mirror", metavar="URL", help="A folder on a server to fetch it from instead; repeatable, asked in order."),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Give a server up that is silent so long.")] = 30.0,
    json: flag.Json = False,
) -> None:
    """Fetch a data set, check it and unpack it; what an interrupted run has fetched is gone on from."""
    from sepnet.data import Patience, download_dataset

    out = Output(json)
    again = f"sepnet data get {one_line(name)} --data-dir {shell_word(data_dir)}"
    try:
        with transferring() as progress:
            found = download_dataset(
                name,
                data_dir,
                mirrors=mirror or (),
                patience=Patience(timeout),
                progress=progress,
                waiting=lambda file: out.line(f"another process is fetching {file}; waiting for it", style="dim"),
            )
    except KeyboardInterrupt as stop:
        raise Stopped(f"interrupted; go on from what has arrived with: {again}") from stop
    source = found.source
    if json:
        files = [str(path) for path in found.files]
        out.json({"name": name, "title": source.title, "files": files, "fetched": found.fetched, "citation": source.citation})
        return
    out.facts(
        [
            ("data", source.title + ("" if found.fetched else ", which was there already")),
            ("lies in", one_line(found.files[0].parent)),
            ("licence", source.licence),
            ("cite", source.citation),
            ("next", f"sepnet train {one_line(name)} --data-dir {shell_word(data_dir)}"),
        ]
    )


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
