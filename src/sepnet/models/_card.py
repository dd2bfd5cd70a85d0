"""The model card: what was published of a network, and what it really has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ModelCard"]


@dataclass(frozen=True)
class ModelCard:
    """Facts that stand beside a network; the tests recompute every count.

    Attributes:
        paper: author and year.
        where: table or figure of the paper that describes the network.
        summary: one line for a list.
        params_trainable: weights, biases, scale and shift of the normalisation, of the network as built by default.
        params_total: those and the running statistics.
        macs: multiply-accumulates of one image at ``native_size``, default options.
        native_size: (channels, height, width) of the default network.
        min_size: least height and width that the network can be built for.
        readings: where the paper is silent or contradicts itself, and what we chose.
        published_params: the paper's own count by units; None where the paper has none.
    """

    paper: str
    where: str
    summary: str
    params_trainable: int
    params_total: int
    macs: int
    native_size: tuple[int, int, int] = (3, 32, 32)
    min_size: int = 8
    readings: tuple[str, ...] = ()
    published_params: Callable[[tuple[int, ...]], int] | None = None
    published_note: str = ""
