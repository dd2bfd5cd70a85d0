"""``sepnet info``: what was published of a network, what it really has, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._kernels import show_kernels
from sepnet.cli._output import Output, human_count, shape_text
from sepnet.cli._parse import input_shape, key_values
from sepnet.cli._registry import command
from sepnet.errors import ConfigError, one_line

if TYPE_CHECKING:
    from sepnet.measure import Counts
    from sepnet.models import ModelCard, PublishedCount

__all__ = ["info"]

Shape = tuple[int, int, int]
SHAPE = ("in_channels", "num_classes", "input_size")  # options that --input and --classes set


@command("info", order=6, example="sepnet info multiscale_concat --input 1x28x28 --model-kwargs units=[32,64]")
def info(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help="A network; see sepnet models.")] = None,
    input_text: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", rich_help_panel=flag.NETWORK, help="Image, e.g. 3x32x32; else the network's own."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", metavar="N", rich_help_panel=flag.NETWORK, help="Outputs; else the network's own.")
    ] = None,
    model_options: flag.ModelOptions = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Show instead who computes each operation here, and why.")] = False,
    json: flag.Json = False,
) -> None:
    """Show a network's card, its parameters and multiply-accumulates (MACs), in all and layer by layer."""
    if kernels:
        if model is not None:
            raise ConfigError(f"--kernels shows the operations that all networks are made of: leave {one_line(model)} away")
        show_kernels(Output(json))
        return
    if model is None:
        raise ConfigError("name a network (sepnet models lists them), or ask for --kernels")
    from sepnet.models import models

    entry = models.get(model)
    classes = entry.card.num_classes if classes is None else classes
    if classes < 1:
        raise ConfigError(f"--classes must be at least 1, got {classes}")
    shape = input_shape(input_text, "--input") if input_text is not None else entry.card.native_size
    options = key_values(model_options or (), "--model-kwargs")
    for key in SHAPE:
        if key in options:
            raise ConfigError(f"--model-kwargs {key}: it is set by --{'classes' if key == 'num_classes' else 'input'}")
    costs = _count(model, shape, classes, options)
    published = _published(entry.card, options.get("units", entry.options.get("units")))
    as_published = not options and (shape, classes) == (entry.card.native_size, entry.card.num_classes)
    printed = entry.card.published if as_published else ()
    out = Output(json)
    if json:
        keys = ("paper", "where", "summary", "readings", "published_note")
        card = {key: getattr(entry.card, key) for key in keys}
        counts = {"published_params": published, "published": [asdict(p) for p in printed], **costs.to_dict()}
        out.json({"model": model, "classes": classes, "options": options, **card, **counts})
        return
    facts = _facts(model, entry.card, costs, published, printed, classes)
    choices = [f"{key}={value}" for key, value in entry.options.items() if key not in SHAPE]
    out.facts(facts + ([("options", ", ".join(choices))] if choices else []))
    out.line()
    rows = [[row.name, row.kind, shape_text(row.output_shape), f"{row.params:,}", f"{row.macs:,}"] for row in costs.layers]
    out.table(["layer", "type", "output", "parameters", "MACs"], rows, right=(3, 4), optional=(2, 1))


def _count(model: str, shape: Shape, classes: int, options: dict[str, Any]) -> Counts:
    """Build the network for ``shape`` and count it. Raises ConfigError when the network does not take such an image."""
    import torch

    from sepnet.measure import count
    from sepnet.models import create_model, models

    channels, height, width = shape
    options = dict(options)
    if "input_size" in models.get(model).options:
        if height != width:
            raise ConfigError(f"--input {shape_text(shape)}: {model} takes square images")
        options.setdefault("input_size", height)
    try:
        with torch.device("meta"):  # shapes without values: the largest network is counted at once, in no memory
            network = create_model(model, num_classes=classes, in_channels=channels, **options)
            return count(network, shape)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--input {shape_text(shape)}: {model} does not take such an image ({one_line(error, 100)})") from error


def _published(card: ModelCard, units: object) -> int | None:
    """The paper's count of the units, for those that were asked for; None where the paper has none."""
    if card.published_params is None or not isinstance(units, list | tuple):
        return None
    return card.published_params(tuple(units))


def _facts(
    model: str, card: ModelCard, costs: Counts, published: int | None, printed: Sequence[PublishedCount], classes: int
) -> list[tuple[str, str]]:
    facts = [
        ("model", f"{model}: {card.summary}"),
        ("paper", f"{card.paper}, {card.where}"),
        ("image", f"{shape_text(costs.input_shape)}, {classes:,} classes"),
        ("parameters", f"{costs.params_trainable:,} trainable, {costs.params_total:,} with the statistics of normalisation"),
        ("MACs", f"{costs.macs:,} ({human_count(costs.macs)}) an image"),
    ]
    if published is not None:
        facts.append(("published", f"{published:,} parameters as the paper counts them ({card.published_note})"))
    facts += [("published", _published_text(p, costs)) for p in printed]
    return facts + [("reading", reading) for reading in card.readings]


def _published_text(published: PublishedCount, costs: Counts) -> str:
    """ "138,000,000 trainable parameters (Table 2); here +0.3 %", and why, where the card says."""
    what = {"params_trainable": "trainable parameters", "params_total": "parameters in all", "macs": "MACs"}[published.quantity]
    percent = 100 * (getattr(costs, published.quantity) / published.value - 1)
    off = f"{percent:+.1f} %" if abs(percent) >= 0.05 else "the same"
    reason = f": {published.difference}" if published.difference else ""
    return f"{published.value:,.0f} {what} ({published.source}); here {off}{reason}"
