"""A paper to reproduce: its tables and figures, its numbers, its claims, and the configuration of every run behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sepnet.recipes._claims import Claim
from sepnet.recipes._config import TrainConfig
from sepnet.registry import Registry
from sepnet.report import ACCURACY, Metric

__all__ = ["Figure", "Paper", "PaperTable", "Published", "Speed", "papers"]


@dataclass(frozen=True)
class Published:
    """One row of a table as printed: name in the paper, top-1 in percent, and parameter count as the paper counts it.

    Attributes:
        note: what the reader of the row must know, e.g. that a printed number contradicts the paper's own formula.
        figures: other printed figures by the key of their metric ("top3_error"), in percent.
        ms_per_image: printed time of one image, in milliseconds.
    """

    label: str
    accuracy: float | None
    params: int | None
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    ms_per_image: float | None = None

    def printed(self, metric: Metric) -> float | None:
        """The printed figure of a metric."""
        return self.accuracy if metric == ACCURACY else self.figures.get(metric.key)


@dataclass(frozen=True)
class Speed:
    """That a table has a column of milliseconds an image: for what images, classes and batch. Needs no data."""

    input_shape: tuple[int, int, int]
    classes: int
    batch_size: int


@dataclass(frozen=True)
class PaperTable:
    """A table: number, caption, the data set that its figures are measured on (None: nothing is trained), rows.

    Attributes:
        rows: by the name of the network, or of a variant of it that ``Paper.configure`` tells apart.
        blocked: says in one line why it cannot be run yet; None when it can.
        metrics: what it has columns of, per recipe.
        speed: also a column of time.
        layers: a table without data shows the layers of its networks, not the counts of units.
        notes: what its reader must know.
        classes: of the whole data set, where a part of it may be at hand.
    """

    number: int
    caption: str
    data: str | None
    rows: Mapping[str, Published]
    blocked: str | None = None
    metrics: tuple[Metric, ...] = (ACCURACY,)
    speed: Speed | None = None
    layers: bool = False
    notes: tuple[str, ...] = ()
    classes: int | None = None


@dataclass(frozen=True)
class Figure:
    """A figure: number, caption, and what it draws: the runs of a table, or runs of its own.

    Attributes:
        table: the table whose data and rows it draws; None: ``data`` and ``rows``.
        show: curves of "evaluation" or "training" accuracy, or a bar of "parameters" for each row.
        epochs: whether the curves stand against epochs; else iterations.
        counted: images and classes that the parameters are counted for.
    """

    number: int
    caption: str
    table: int | None = None
    data: str | None = None
    rows: Mapping[str, Published] = field(default_factory=dict)
    show: Literal["evaluation", "training", "parameters"] = "evaluation"
    epochs: bool = False
    counted: Speed | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """What ``sepnet reproduce`` runs.

    Attributes:
        configure: (data, row, recipe, seed) -> the frozen configuration of that run. A configuration that holds out validation
            images is watched on those, another one on the test split.
        recipes: names of the recipes compared, in the order of the columns, each with one line of explanation.
        claims: what the text says of its figures, to be answered from the measured ones.
    """

    name: str
    title: str
    reference: str
    tables: Mapping[int, PaperTable]
    figures: Mapping[int, Figure]
    recipes: Mapping[str, str]
    configure: Callable[[str, str, str, int], TrainConfig]
    claims: tuple[Claim, ...] = ()

    def runs_of(self, figure: Figure) -> tuple[str | None, Mapping[str, Published]]:
        """Data and rows of a figure."""
        if figure.table is None:
            return figure.data, figure.rows
        table = self.tables[figure.table]
        return table.data, table.rows


papers: Registry[Paper] = Registry("paper", "sepnet.recipes")
