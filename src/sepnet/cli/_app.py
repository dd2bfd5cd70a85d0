"""``sepnet`` itself: finds the command, runs it, and turns every error into a line and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from sepnet._version import __version__
from sepnet.cli._errors import split_debug, status_of
from sepnet.cli._registry import HelpGroup, commands

__all__ = ["app", "main"]


class CommandGroup(HelpGroup):
    """The commands of the registry; importing this module reads none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help page."""
        return sorted(commands, key=lambda name: (commands.get(name).order, name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command called ``cmd_name``. Raises UnknownNameError, with the close matches."""
        if ctx.resilient_parsing and cmd_name not in commands:  # the shell completes a line that is wrong so far
            return None
        return get_command(commands.get(cmd_name).app)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and exit; the codes stand in ``_errors``. All arguments but the first serve shell completion."""
        if "_SEPNET_COMPLETE" in os.environ:
            super().main(args, prog_name, complete_var, standalone_mode, windows_expand_args, **extra)
        words, debug = split_debug(sys.argv[1:] if args is None else args)

        def run() -> None:
            with self.make_context("sepnet", words) as context:
                self.invoke(context)

        sys.exit(status_of(run, debug))


app = typer.Typer(
    cls=CommandGroup,
    help="Train, evaluate and use small, fast image classifiers of depthwise-separable convolutions; reproduce the papers.",
    epilog="Start with: sepnet train digits",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sepnet {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from. Goes anywhere on the line, or set SEPNET_DEBUG=1.")
    ] = False,
) -> None:
    # --debug is taken off the line before it is parsed, so that it may stand behind the command too; here it is documented
    pass


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    signal.signal(signal.SIGTERM, _stop)  # what has a line for Ctrl-C has it for whoever manages processes as well
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character gets its escape, not an error
            stream.reconfigure(errors="backslashreplace")
    get_command(app).main(prog_name="sepnet")
    raise AssertionError("CommandGroup.main exits")
