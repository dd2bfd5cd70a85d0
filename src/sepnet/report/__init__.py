"""From run records (JSON) to tables, plots and the report of a run."""

from sepnet.report import _matplotlib as _matplotlib  # first: it imports matplotlib without its noise
from sepnet.report._pareto import pareto_front
from sepnet.report._provenance import Measured, provenance
from sepnet.report.comparison import (
    COSTS,
    ComparedNetwork,
    Speed,
    comparison_cells,
    comparison_json,
    comparison_markdown,
    fronts,
)
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
from sepnet.report.summary import kept_weights, run_summary, wilson_interval
from sepnet.report.tables import (
    CountRow,
    MeanSd,
    PaperRow,
    counts_table_json,
    counts_table_markdown,
    markdown_table,
    mean_sd,
    paper_table_json,
    paper_table_markdown,
)
from sepnet.report.tradeoff import tradeoff_figure

__all__ = [
    "COSTS",
    "MAX_CLASSES",
    "ComparedNetwork",
    "CountRow",
    "Curve",
    "Environment",
    "MeanSd",
    "Measured",
    "PaperRow",
    "RunRecord",
    "Speed",
    "comparison_cells",
    "comparison_json",
    "comparison_markdown",
    "confusion_matrix",
    "counts_table_json",
    "counts_table_markdown",
    "curve_of",
    "environment",
    "fronts",
    "kept_weights",
    "load_record",
    "markdown_table",
    "mean_sd",
    "paper_figure",
    "paper_table_json",
    "paper_table_markdown",
    "pareto_front",
    "provenance",
    "run_confusion",
    "run_curves",
    "run_summary",
    "save_record",
    "tradeoff_figure",
    "training_curves",
    "wilson_interval",
]
