"""A paper's claims, answered in words from the records that a plan has so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sepnet.api._plan import Plan
from sepnet.api._speed import speed_records
from sepnet.recipes import Claim
from sepnet.report import MeanSd, RunRecord, hardware, mean_sd

__all__ = ["Measured", "answers", "in_words"]


@dataclass(frozen=True)
class Measured:
    """The figures behind a plan; what ``sepnet.recipes.Findings`` describes."""

    plan: Plan
    found: Mapping[str, RunRecord]

    def accuracy(
        self, data: str, row: str, recipe: str, split: Literal["test", "val", "train"] = "test", epoch: int | None = None
    ) -> MeanSd | None:
        """Top-1 in percent over the seeds; None without a run, or without that epoch."""
        values = [_accuracy(run, split, epoch) for run in self._runs(data, row, recipe)]
        known = [value for value in values if value is not None]
        return mean_sd(known) if known else None

    def ms_per_image(self, data: str, row: str) -> dict[str, float]:
        """Milliseconds an image by device."""
        tests = [test for test in self.plan.speed if (test.data, test.row) == (data, row)]
        return {hardware(r.environment): r.ms_per_image for test in tests for r in speed_records(test, self.plan.output)}

    def _runs(self, data: str, row: str, recipe: str) -> list[RunRecord]:
        return [
            self.found[e.key]
            for e in self.plan.experiments
            if (e.config.data, e.row, e.recipe) == (data, row, recipe) and e.key in self.found
        ]


def _accuracy(run: RunRecord, split: str, epoch: int | None) -> float | None:
    if split != "train" and epoch is None:
        value = run.result.get(split, {}).get("accuracy")
        return None if value is None else float(value)
    column = "train_accuracy" if split == "train" else "eval_accuracy"
    rows = [row for row in run.history if row.get(column) is not None and (epoch is None or row["epoch"] == epoch)]
    return float(rows[-1][column] or 0) if rows else None


def answers(plan: Plan, kind: Literal["table", "figure"], number: int, found: Mapping[str, RunRecord]) -> list[dict[str, str]]:
    """The claims that speak of a table or figure: text, whose answer it is (a recipe, its budget, or "counted"), answer."""
    measured = Measured(plan, found)
    rows = []
    for claim in plan.paper.claims:
        if number in (claim.tables if kind == "table" else claim.figures):
            for who, answer in _answers(claim, plan, measured).items():
                rows.append({"claim": claim.text, "by": who, "answer": answer})
    return rows


def in_words(rows: list[dict[str, str]]) -> list[str]:
    """Claims and answers as sentences."""
    return [f"{row['claim']} {row['by']}: {row['answer']}" for row in rows]


def _answers(claim: Claim, plan: Plan, measured: Measured) -> dict[str, str]:
    if not claim.trained:
        return {"Measured": claim.check(measured, plan.recipes[0])}
    mark = "" if plan.budget == 1 else f" (budget {plan.budget:g})"
    return {f"Recipe {recipe}{mark}": claim.check(measured, recipe) for recipe in plan.recipes}
