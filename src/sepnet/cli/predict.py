"""``sepnet predict``: the most probable classes of image files."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._machine import use_machine
from sepnet.cli._output import Output, console, percent
from sepnet.cli._registry import command
from sepnet.errors import ConfigError, one_line

if TYPE_CHECKING:
    from sepnet.api import Prediction

__all__ = ["predict"]


@command("predict", order=3, example="sepnet predict runs/digits photo.png scans/ 'more/*.jpg' --top 3")
def predict(
    run: flag.RunFolder,
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", show_default=False, help="Image files, folders or patterns.")
    ],
    top: Annotated[
        int, typer.Option("--top", metavar="N", rich_help_panel=flag.RUN, help="Classes to name.", show_default=True)
    ] = 5,
    as_csv: Annotated[
        bool, typer.Option("--csv", rich_help_panel=flag.RUN, help="Print CSV on stdout: path,class1,prob1,class2,prob2,...")
    ] = False,
    json: flag.Json = False,
    device: flag.Device = "auto",
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", "-b", metavar="N", rich_help_panel=flag.MACHINE, help="Images at a time.", show_default=True),
    ] = 128,
) -> None:
    """Name the most probable classes of image files, with their probabilities.

    A file that cannot be read is named on stderr, the others are classified all the same; the exit code is then 2.
    """
    if as_csv and json:
        raise ConfigError("--csv and --json both print on stdout; choose one")
    from sepnet import api

    use_machine(device)
    release = api.load_release(run)
    failures = _Failures()
    found = failures.passing(api.predict(release, sources, top=top, batch_size=batch_size, device=device))
    if json:
        _print_json(found, failures, str(run))
    elif as_csv:
        _print_csv(found, min(top, len(release.classes)))
    else:
        _print_lines(found)
    if failures.found:
        raise typer.Exit(2)


class _Failures:
    """Files that could not be read: each is told on stderr when its turn comes."""

    def __init__(self) -> None:
        self.found: list[Prediction] = []

    def passing(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """The predictions of the other files."""
        screen = console(stderr=True)
        for prediction in predictions:
            if prediction.error is None:
                yield prediction
            else:
                self.found.append(prediction)
                screen.print(f"error: {one_line(prediction.error, 1000)}", soft_wrap=True)


def _print_lines(predictions: Iterable[Prediction]) -> None:
    """A line a file, as soon as it is known."""
    out = Output()
    for prediction in predictions:
        classes = ", ".join(f"{one_line(name, 60)} ({percent(100 * probability, 1)})" for name, probability in prediction.top)
        out.line(f"{one_line(prediction.path, 1000)}: {classes}")


def _print_csv(predictions: Iterable[Prediction], top: int) -> None:
    """RFC 4180 with "\\n"; names are the bytes that the file system has, so another program finds the files again."""
    _csv_row(["path", *(f"{column}{i}" for i in range(1, top + 1) for column in ("class", "prob"))])
    for prediction in predictions:
        cells = [os.fspath(prediction.path)]
        for name, probability in prediction.top:
            cells += [name, f"{probability:.6f}"]
        _csv_row(cells)


def _csv_row(cells: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    sys.stdout.flush()
    sys.stdout.buffer.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _print_json(predictions: Iterable[Prediction], failures: _Failures, run: str) -> None:
    done = [
        {"path": os.fspath(p.path), "top": [{"class": name, "probability": probability} for name, probability in p.top]}
        for p in predictions
    ]
    failed = [{"path": os.fspath(p.path), "error": p.error} for p in failures.found]
    Output(as_json=True).json({"run": run, "predictions": done, "errors": failed})
