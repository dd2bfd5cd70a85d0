"""A paper's claims, answered in words from the records that a plan has so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sepnet.api._plan import Plan
from sepnet.api._speed import speed_records
from sepnet.recipes import Claim
from sepnet.report import MeanSd, RunRecord, hardware, mean_sd

__all__ = ["Measured", "answers", "claims_json", "claims_markdown"]


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


def answers(plan: Plan, found: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """Each claim that the plan's tables or figures speak of: its text, and the answer of each recipe, or the one answer."""
    measured = Measured(plan, found)
    return [
        {"claim": c.text, "about": _about(c), "answers": _answers(c, plan, measured)} for c in plan.paper.claims if _asked(c, plan)
    ]


def claims_markdown(plan: Plan, found: Mapping[str, RunRecord]) -> str:
    """The claims and their answers as a page; ends in a newline."""
    lines = [f"# {plan.paper.reference}. What the paper claims{_mark(plan)}", "", "Computed from the records beside this page.", ""]
    for claim in answers(plan, found):
        lines += [f"## {claim['claim']}", "", f"({claim['about']})", ""]
        lines += [f"- **{name}{_mark(plan) if name in plan.recipes else ''}:** {text}" for name, text in claim["answers"].items()]
        lines.append("")
    return "\n".join(lines)


def claims_json(plan: Plan, found: Mapping[str, RunRecord]) -> dict[str, Any]:
    """What ``claims_markdown`` shows, as JSON values."""
    return {"paper": plan.paper.reference, "budget": plan.budget, "seeds_wanted": plan.seeds, "claims": answers(plan, found)}


def _answers(claim: Claim, plan: Plan, measured: Measured) -> dict[str, str]:
    if not claim.trained:
        return {"measured": claim.check(measured, plan.recipes[0])}
    return {recipe: claim.check(measured, recipe) for recipe in plan.recipes}


def _asked(claim: Claim, plan: Plan) -> bool:
    return bool({*claim.tables} & {*plan.tables} or {*claim.figures} & {*plan.figures})


def _about(claim: Claim) -> str:
    return ", ".join([*(f"table {n}" for n in claim.tables), *(f"figure {n}" for n in claim.figures)])


def _mark(plan: Plan) -> str:
    return "" if plan.budget == 1 else f" (budget {plan.budget:g})"
