"""``sepnet models``: the networks there are."""

from __future__ import annotations

from typing import Annotated

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._output import Output, human_count, shape_text
from sepnet.cli._registry import command
from sepnet.errors import UnknownNameError, one_line

__all__ = ["models"]


@command("models", order=5, example="sepnet models 'multiscale*'")
def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", show_default=False, help="A part of a name, or a shell pattern.")
    ] = None,
    json: flag.Json = False,
) -> None:
    """List the networks with their size and cost at their own image size and number of classes."""
    from sepnet.models import list_models, model_card

    names = list_models(pattern)
    if not names:
        raise UnknownNameError(f"no model matches '{one_line(pattern)}'; there are: {', '.join(list_models())}")
    cards = [(name, model_card(name)) for name in names]
    out = Output(json)
    if json:
        keys = ("params_trainable", "params_total", "macs", "native_size", "num_classes", "paper", "where", "summary")
        out.json([{"name": name, **{key: getattr(card, key) for key in keys}} for name, card in cards])
        return
    for paper in dict.fromkeys(card.paper for _, card in cards):
        rows = [
            [
                name,
                f"{card.params_trainable:,}",
                human_count(card.macs),
                shape_text(card.native_size),
                f"{card.num_classes:,}",
                card.summary,
            ]
            for name, card in cards
            if card.paper == paper
        ]
        out.line(paper, style="bold")
        out.table(["model", "parameters", "MACs", "image", "classes", "what"], rows, right=(1, 2, 4), optional=(4, 3, 5, 2))
        out.line()
    out.line(f"more of one: sepnet info {names[0]}", style="dim")
