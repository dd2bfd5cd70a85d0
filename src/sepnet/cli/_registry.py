"""The table of commands; each file of this folder enters its command on first look-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import typer

from sepnet.registry import Registry

__all__ = ["Command", "HelpGroup", "command", "commands"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Command:
    """A command, or a group of sub-commands; the help page lists them by ``order``."""

    app: typer.Typer
    order: int


commands: Registry[Command] = Registry("command", "sepnet.cli")


def command(name: str, *, order: int, example: str, note: str = "") -> Callable[[F], F]:
    """Decorator that enters a function as ``sepnet NAME``; its docstring is the help text; ``note`` and ``example`` end it.

    Raises:
        DuplicateNameError: the name is taken.
    """

    def enter(function: F) -> F:
        app = typer.Typer(add_completion=False)
        app.command(name, epilog="\n\n".join(part for part in (note, f"Example: {example}") if part))(function)
        commands.register(name)(Command(app, order))
        return function

    return enter


class HelpGroup(typer.core.TyperGroup):
    """A group of commands that shows its help when called without any."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse ``args``, those of the group itself; none is ``--help``."""
        return super().parse_args(ctx, args if args or ctx.resilient_parsing else ["--help"])
