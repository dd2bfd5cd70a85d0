"""The model card: what was published of a network, and what it really has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["TOLERANCE", "ModelCard", "PublishedCount"]

TOLERANCE = 0.015
"""Part by which a published count may be off without a word: most are printed with two digits."""


@dataclass(frozen=True)
class PublishedCount:
    """A count of the whole network as somebody printed it, for the card's ``num_classes`` and ``native_size``.

    Attributes:
        quantity: the count of the card that it speaks of.
        value: the printed figure.
        source: who printed it, and where.
        difference: why ours is another; must be filled in where they differ by more than ``TOLERANCE``.
    """

    quantity: Literal["params_trainable", "params_total", "macs"]
    value: float
    source: str
    difference: str = ""


@dataclass(frozen=True)
class ModelCard:
    """Facts that stand beside a network; the tests recompute every count.

    Attributes:
        paper: author and year.
        where: table or figure of the paper that describes the network.
        summary: one line for a list.
        params_trainable: weights, biases, scale and shift of the normalisation, for ``num_classes``, default options.
        params_total: those and the running statistics.
        macs: multiply-accumulates of one image at ``native_size``, default options.
        native_size: (channels, height, width) of the default network.
        num_classes: outputs that the counts hold for.
        min_size: least height and width that the network can be built for.
        readings: where the paper is silent or contradicts itself, and what we chose.
        published: counts of the whole network that were printed.
        published_params: the paper's own count by units; None where the paper has none.
    """

    paper: str
    where: str
    summary: str
    params_trainable: int
    params_total: int
    macs: int
    native_size: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    min_size: int = 8
    readings: tuple[str, ...] = ()
    published: tuple[PublishedCount, ...] = ()
    published_params: Callable[[tuple[int, ...]], int] | None = None
    published_note: str = ""
