"""Tables without training: the paper's counts beside ours, and networks layer by layer; as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sepnet.report._markdown import MISSING, bullet, escape, markdown_table, signed

__all__ = [
    "Architecture",
    "CountRow",
    "Layer",
    "counts_table_json",
    "counts_table_markdown",
    "layers_table_json",
    "layers_table_markdown",
]


@dataclass(frozen=True)
class CountRow:
    """One line of a table of counts: parameters as printed in the paper and as ``measure`` counts them here."""

    label: str
    model: str
    published: int | None
    counted: int


@dataclass(frozen=True)
class Layer:
    """One layer of a network: output shape (C, H, W) or (C,), trainable parameters, MACs of one image."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Architecture:
    """A network layer by layer.

    Attributes:
        published: parameters as the paper counts them, running statistics included; None where it gives none.
        readings: where the paper is silent or contradicts itself, and what was chosen.
    """

    label: str
    model: str
    published: int | None
    params_trainable: int
    params_total: int
    macs: int
    layers: Sequence[Layer]
    readings: Sequence[str] = ()


def counts_table_markdown(title: str, rows: Sequence[CountRow], *, notes: Sequence[str] = ()) -> str:
    """A table of counts alone: the paper's beside ours, and the difference; ends in a newline."""
    body = [[r.label, r.model, _count(r.published), _count(r.counted), _difference(r.counted, r.published)] for r in rows]
    table = markdown_table(["network", "model", "paper", "counted", "difference"], body)
    lines = [bullet("Note", escape(note)) for note in notes]
    return "\n".join([f"# {escape(title)}", "", *lines, *([""] if lines else []), table, ""])


def counts_table_json(title: str, rows: Sequence[CountRow], *, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What ``counts_table_markdown`` shows as plain JSON values."""
    keys = ("label", "model", "published", "counted")
    return {"title": title, "notes": list(notes), "rows": [{key: getattr(row, key) for key in keys} for row in rows]}


def layers_table_markdown(title: str, networks: Sequence[Architecture], *, notes: Sequence[str] = ()) -> str:
    """Each network with its layers, its totals and the paper's count; ends in a newline."""
    lines = [f"# {escape(title)}", "", *(bullet("Note", escape(note)) for note in notes)]
    for network in networks:
        printed = "the paper gives none" if network.published is None else f"{network.published:,}"
        lines += [
            *([""] if lines[-1] else []),
            f"## {escape(network.label)} ({escape(network.model)})",
            "",
            bullet("Parameters in the paper", escape(printed)),
            bullet("Parameters counted", escape(_counted(network))),
            bullet("MACs", escape(f"{network.macs:,} for one image")),
            *(bullet("Reading", escape(reading)) for reading in network.readings),
            "",
            markdown_table(["layer", "type", "output", "parameters", "MACs"], [_layer_row(layer) for layer in network.layers]),
        ]
    return "\n".join([*lines, ""])


def layers_table_json(title: str, networks: Sequence[Architecture], *, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What ``layers_table_markdown`` shows as plain JSON values."""
    return {"title": title, "notes": list(notes), "networks": [_plain(asdict(network)) for network in networks]}


def _counted(network: Architecture) -> str:
    difference = _difference(network.params_total, network.published)
    compared = "" if network.published is None else f"; in all minus the paper's: {difference}"
    return f"{network.params_total:,} in all, {network.params_trainable:,} trainable{compared}"


def _layer_row(layer: Layer) -> list[str]:
    return [layer.name, layer.kind, "×".join(map(str, layer.output_shape)), _count(layer.params), _count(layer.macs)]


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON reads them back."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _difference(counted: int, published: int | None) -> str:
    return MISSING if published is None else signed(counted - published, 0)
