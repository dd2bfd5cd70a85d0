"""What a paper's table has a column of: top-1 accuracy, or an error among the first k, of the test split, in percent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ACCURACY", "TOP1_ERROR", "TOP3_ERROR", "TOP5", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A figure in percent, computed from the scores of a run.

    Attributes:
        key: its name in JSON and in the paper's printed figures.
        title: its name for people ("top-1 error").
        score: the entry of ``RunRecord.result["test"]`` that it comes from.
        error: 100 % minus that entry.
    """

    key: str
    title: str
    score: str
    error: bool = False

    def of(self, scores: Mapping[str, Any]) -> float:
        """The figure. Raises KeyError where the scores do not hold it."""
        value = float(scores[self.score])
        return 100 - value if self.error else value


ACCURACY = Metric("accuracy", "top-1 accuracy", "accuracy")
TOP5 = Metric("top5", "top-5 accuracy", "top5")
TOP1_ERROR = Metric("top1_error", "top-1 error", "accuracy", error=True)
TOP3_ERROR = Metric("top3_error", "top-3 error", "top3", error=True)
