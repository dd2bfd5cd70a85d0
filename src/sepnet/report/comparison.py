"""Several networks under one recipe: accuracy against what it costs, as Markdown and as JSON (the figure is in ``tradeoff``).

A network is on the Pareto front of a cost when no other is at least as cheap and at least as accurate, and better in one of the
two. Accuracy there is the mean on the validation split: choosing a network by its test accuracy would spoil that figure. Test
accuracy stands apart, for the network that was chosen.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sepnet.report._markdown import MISSING, bullet, escape, human_count, markdown_table
from sepnet.report._pareto import pareto_front
from sepnet.report._provenance import distinct, provenance, test_use
from sepnet.report.record import Environment, RunRecord
from sepnet.report.tables import MeanSd, mean_sd

__all__ = ["COSTS", "ComparedNetwork", "Speed", "comparison_cells", "comparison_json", "comparison_markdown", "fronts"]

COSTS: Final = {"params_trainable": "parameters", "macs": "MACs", "latency_ms": "latency"}  # attribute -> its name for people
FRONT_NOTE = (
    "a network is on the front of a cost unless another one costs no more, is no less accurate (mean on validation), and is better "
    "in one of the two; a difference within the deviation of the seeds may be chance"
)


@dataclass(frozen=True)
class Speed:
    """Time of a forward pass of ``batch_size`` images: median and 90th percentile of ``n`` passes, in milliseconds."""

    batch_size: int
    median_ms: float
    p90_ms: float
    mean_ms: float
    std_ms: float
    n: int

    @property
    def images_per_s(self) -> float:
        """Images a second at the median."""
        return 1000 * self.batch_size / self.median_ms


@dataclass(frozen=True)
class ComparedNetwork:
    """One network of a comparison.

    Attributes:
        label: how it is called in table and figure; no two networks have the same.
        runs: its records, one a seed, each with a validation accuracy.
        single, batch: its speed one image at a time, and in batches.
        folders: where the runs lie, in the order of ``runs``.

    Raises:
        ValueError: no run, or one without validation accuracy.
    """

    label: str
    runs: Sequence[RunRecord]
    single: Speed
    batch: Speed
    folders: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.runs or any("accuracy" not in run.result.get("val", {}) for run in self.runs):
            raise ValueError(f"{self.label}: a comparison needs runs, each with a validation accuracy")

    @property
    def params_trainable(self) -> int:
        """Trainable parameters."""
        return self.runs[0].params_trainable

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.runs[0].macs

    @property
    def latency_ms(self) -> float:
        """Median time of one image by itself."""
        return self.single.median_ms

    @property
    def validation(self) -> MeanSd:
        """Top-1 in percent on the validation split, over the seeds."""
        return mean_sd(self.accuracies("val"))

    @property
    def test(self) -> MeanSd | None:
        """Top-1 in percent on the test split, over the seeds; None where a run has none."""
        found = self.accuracies("test")
        return mean_sd(found) if len(found) == len(self.runs) else None

    def accuracies(self, split: str) -> list[float]:
        """Top-1 in percent of each run on that split ("val" or "test")."""
        return [float(run.result[split]["accuracy"]) for run in self.runs if "accuracy" in run.result.get(split, {})]


def fronts(networks: Sequence[ComparedNetwork]) -> dict[str, tuple[bool, ...]]:
    """For each of ``COSTS``, which networks are on its front."""
    values = [network.validation.mean for network in networks]
    return {cost: pareto_front([float(getattr(network, cost)) for network in networks], values) for cost in COSTS}


def comparison_cells(networks: Sequence[ComparedNetwork]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, cheapest network first; cells are plain text.

    Raises:
        ValueError: no networks.
    """
    if not networks:
        raise ValueError("there are no networks to compare")
    single, batch = networks[0].single.batch_size, networks[0].batch.batch_size
    header = ["network", "parameters", "MACs", "validation %", "test %"]
    header += [f"ms (p90), batch {single}", f"images/s, batch {batch}", "on the front of"]
    chosen = fronts(networks)
    order = sorted(range(len(networks)), key=lambda i: (networks[i].params_trainable, networks[i].label))
    return header, [_row(networks[i], [name for cost, name in COSTS.items() if chosen[cost][i]]) for i in order]


def _row(network: ComparedNetwork, front_of: Sequence[str]) -> list[str]:
    single = network.single
    return [
        network.label,
        f"{network.params_trainable:,}",
        human_count(network.macs),
        _score(network.validation),
        _score(network.test),
        f"{_milliseconds(single.median_ms)} ({_milliseconds(single.p90_ms)})",
        f"{network.batch.images_per_s:,.0f}",
        ", ".join(front_of) or MISSING,
    ]


def _score(accuracy: MeanSd | None) -> str:
    return MISSING if accuracy is None else f"{accuracy} ({accuracy.n})"


def _milliseconds(value: float) -> str:
    """Three digits: 0.412, 3.71, 25.3, 1,204."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def comparison_markdown(
    networks: Sequence[ComparedNetwork], measured_on: Environment, *, command: str, plan: str, notes: Sequence[str] = ()
) -> str:
    """The table, with all that a reader needs to judge it above it; ends in a newline.

    Args:
        measured_on: where and how latency was measured.
        command: what makes the report.
        plan: the common recipe and its length in a few words.
        notes: further lines, plain text.

    Raises:
        ValueError: no networks.
    """
    header, rows = comparison_cells(networks)
    runs = [run for network in networks for run in network.runs]
    first = runs[0]
    images = "; ".join(f"{n:,} {name} images" for name, n in _images(first).items())
    lines = [
        f"# Comparison on {escape(first.data_title)}",
        "",
        bullet("Data", escape(f"{first.data_title}: {images} (fingerprint {first.data_fingerprint[:12]})")),
        bullet("Plan", escape(plan)),
        *provenance(runs, command),
        bullet("Latency", escape(_latency_note(networks[0], measured_on))),
        *(bullet("Test data", sentence) for sentence in test_use(runs)),
        *(bullet("Note", escape(note)) for note in _notes(runs, notes)),
        bullet("Columns", "top-1 accuracy in %, mean ± sample standard deviation (number of seeds); " + FRONT_NOTE),
    ]
    figure = "![Accuracy against parameters, MACs and latency](compare.png)"
    return "\n".join([*lines, "", markdown_table(header, rows), "", figure, ""])


def _images(run: RunRecord) -> dict[str, int]:
    counted = {name: run.result.get(split, {}).get("images") for split, name in (("val", "validation"), ("test", "test"))}
    return {"training": run.train_images, **{name: int(n) for name, n in counted.items() if n}}


def _latency_note(network: ComparedNetwork, measured_on: Environment) -> str:
    threads = f", {measured_on.threads} thread{'s' if measured_on.threads > 1 else ''}" if measured_on.device == "cpu" else ""
    return (
        f"forward pass on {measured_on.processor if measured_on.device == 'cpu' else measured_on.device}{threads}, "
        f"{measured_on.precision}; median of {network.single.n} passes of {network.single.batch_size} image after a warm-up, "
        f"90th percentile in brackets; images/s at the median of passes of {network.batch.batch_size}"
    )


def _notes(runs: Sequence[RunRecord], notes: Sequence[str]) -> list[str]:
    best = ["Validation chose among the weights of each run (keep=best): its accuracies are on the high side, the test's are not."]
    return distinct([*(best if any(run.kept_best for run in runs) else []), *notes, *(n for run in runs for n in run.notes)])


def comparison_json(
    networks: Sequence[ComparedNetwork],
    measured_on: Environment,
    *,
    command: str,
    plan: str,
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``comparison_markdown`` shows, unrounded, as plain JSON values; ``settings`` is the common configuration."""
    runs = [run for network in networks for run in network.runs]
    environments = {run.environment.model_dump_json(): run.environment.model_dump(mode="json") for run in runs}
    chosen = fronts(networks)
    return {
        "data": runs[0].data_title,
        "data_fingerprint": runs[0].data_fingerprint,
        "images": _images(runs[0]),
        "classes": runs[0].classes,
        "input_shape": list(runs[0].input_shape),
        "plan": plan,
        "settings": dict(settings),
        "command": command,
        "finished": [min(run.finished for run in runs), max(run.finished for run in runs)],
        "measured_on": measured_on.model_dump(mode="json"),
        "environments": list(environments.values()),
        "front": FRONT_NOTE,
        "test_use": test_use(runs),
        "notes": _notes(runs, notes),
        "networks": [_json_row(n, {cost: chosen[cost][i] for cost in COSTS}) for i, n in enumerate(networks)],
    }


def _json_row(network: ComparedNetwork, front: Mapping[str, bool]) -> dict[str, Any]:
    first = network.runs[0]
    return {
        "label": network.label,
        "model": first.model,
        "model_options": first.config.get("model_options", {}),
        "params_trainable": first.params_trainable,
        "params_total": first.params_total,
        "macs": first.macs,
        "validation": _json_score(network.validation, network.accuracies("val")),
        "test": _json_score(network.test, network.accuracies("test")),
        "latency": _json_speed(network.single),
        "throughput": _json_speed(network.batch),
        "front": dict(front),
        "seeds": [run.config.get("seed") for run in network.runs],
        "iterations": first.iterations,
        "minutes": statistics.fmean(run.seconds for run in network.runs) / 60,
        "runs": list(network.folders),
    }


def _json_score(accuracy: MeanSd | None, values: Sequence[float]) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    return {"mean": accuracy.mean, "sd": accuracy.sd, "n": accuracy.n, "accuracies": list(values)}


def _json_speed(speed: Speed) -> dict[str, float | int]:
    keys = ("batch_size", "median_ms", "p90_ms", "mean_ms", "std_ms", "n")
    return {**{key: getattr(speed, key) for key in keys}, "images_per_s": speed.images_per_s}
