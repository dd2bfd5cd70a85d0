"""From run records (JSON) to tables, plots and the report of a run."""

from sepnet.report import _matplotlib as _matplotlib  # first: it imports matplotlib without its noise
from sepnet.report._pareto import pareto_front
from sepnet.report._provenance import Measured, provenance
from sepnet.report.bars import Bar, parameters_figure
from sepnet.report.comparison import (
    COSTS,
    ComparedNetwork,
    Speed,
    comparison_cells,
    comparison_json,
    comparison_markdown,
    fronts,
)
from sepnet.report.count_tables import (
    Architecture,
    CountRow,
    Layer,
    counts_table_json,
    counts_table_markdown,
    layers_table_json,
    layers_table_markdown,
)
from sepnet.report.metrics import ACCURACY, TOP1_ERROR, TOP3_ERROR, TOP5, Metric
from sepnet.report.plots import (
    MAX_CLASSES,
    Curve,
    confusion_matrix,
    curve_of,
    paper_figure,
    run_confusion,
    run_curves,
    training_curves,
)
from sepnet.report.record import Environment, RunRecord, environment, load_record, save_record
from sepnet.report.speed import SpeedRecord, hardware, load_speed, save_speed
from sepnet.report.summary import kept_weights, run_summary, wilson_interval
from sepnet.report.tables import (
    MeanSd,
    PaperRow,
    markdown_table,
    mean_sd,
    paper_table_json,
    paper_table_markdown,
)
from sepnet.report.tradeoff import tradeoff_figure

__all__ = [
    "ACCURACY",
    "COSTS",
    "MAX_CLASSES",
    "TOP1_ERROR",
    "TOP3_ERROR",
    "TOP5",
    "Architecture",
    "Bar",
    "ComparedNetwork",
    "CountRow",
    "Curve",
    "Environment",
    "Layer",
    "MeanSd",
    "Measured",
    "Metric",
    "PaperRow",
    "RunRecord",
    "Speed",
    "SpeedRecord",
    "comparison_cells",
    "comparison_json",
    "comparison_markdown",
    "confusion_matrix",
    "counts_table_json",
    "counts_table_markdown",
    "curve_of",
    "environment",
    "fronts",
    "hardware",
    "kept_weights",
    "layers_table_json",
    "layers_table_markdown",
    "load_record",
    "load_speed",
    "markdown_table",
    "mean_sd",
    "paper_figure",
    "paper_table_json",
    "paper_table_markdown",
    "parameters_figure",
    "pareto_front",
    "provenance",
    "run_confusion",
    "run_curves",
    "run_summary",
    "save_record",
    "save_speed",
    "tradeoff_figure",
    "training_curves",
    "wilson_interval",
]
