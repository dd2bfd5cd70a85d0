"""A paper to reproduce: its tables and figures, its numbers, and the configuration of every run behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sepnet.recipes._config import TrainConfig
from sepnet.registry import Registry

__all__ = ["Figure", "Paper", "PaperTable", "Published", "papers"]


@dataclass(frozen=True)
class Published:
    """One row of a table as printed: name in the paper, top-1 in percent, and parameter count as the paper counts it.

    ``note`` is what the reader of the row must know, e.g. that a printed number contradicts the paper's own formula.
    """

    label: str
    accuracy: float | None
    params: int | None
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table: number, caption, the data set that its figures are measured on (None: counts only), rows by network name.

    ``blocked`` says in one line why it cannot be run yet; None when it can.
    """

    number: int
    caption: str
    data: str | None
    rows: dict[str, Published]
    blocked: str | None = None


@dataclass(frozen=True)
class Figure:
    """A figure: number, caption, and the table whose runs it draws."""

    number: int
    caption: str
    table: int


@dataclass(frozen=True)
class Paper:
    """What ``sepnet reproduce`` runs.

    Attributes:
        configure: (data, network, recipe, seed) -> the frozen configuration of that run.
        recipes: names of the recipes compared, in the order of the columns, each with one line of explanation.
    """

    name: str
    title: str
    reference: str
    tables: dict[int, PaperTable]
    figures: dict[int, Figure]
    recipes: dict[str, str]
    configure: Callable[[str, str, str, int], TrainConfig]


papers: Registry[Paper] = Registry("paper", "sepnet.recipes")
