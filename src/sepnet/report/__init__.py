"""From run records (JSON) to tables, plots and the report of a run."""

from sepnet.report import _matplotlib as _matplotlib  # first: it imports matplotlib without its noise
from sepnet.report.bars import Bar, parameters_figure
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

__all__ = [
    "ACCURACY",
    "MAX_CLASSES",
    "TOP1_ERROR",
    "TOP3_ERROR",
    "TOP5",
    "Architecture",
    "Bar",
    "CountRow",
    "Curve",
    "Environment",
    "Layer",
    "MeanSd",
    "Metric",
    "PaperRow",
    "RunRecord",
    "SpeedRecord",
    "confusion_matrix",
    "counts_table_json",
    "counts_table_markdown",
    "curve_of",
    "environment",
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
    "run_confusion",
    "run_curves",
    "run_summary",
    "save_record",
    "save_speed",
    "training_curves",
    "wilson_interval",
]
