"""What a paper's text claims, answered in words from measured figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch

from sepnet.models import create_model
from sepnet.report import MeanSd

__all__ = ["NOT_MEASURED", "Claim", "Findings", "best_of", "faster", "higher", "parameters"]

NOT_MEASURED = "not measured yet"


class Findings(Protocol):
    """The figures measured so far. Accuracies are top-1 in percent over the seeds, None where nothing is recorded."""

    def accuracy(
        self, data: str, row: str, recipe: str, split: Literal["test", "val", "train"] = "test", epoch: int | None = None
    ) -> MeanSd | None:
        """Of the final weights; "train" and any ``epoch``: of the curve, there or at its last point."""
        ...

    def ms_per_image(self, data: str, row: str) -> Mapping[str, float]:
        """Milliseconds an image by the device that they were measured on; empty where nothing is."""
        ...


@dataclass(frozen=True)
class Claim:
    """A claim and how it is checked.

    Attributes:
        text: what the paper says, in one sentence.
        check: (findings, recipe) -> the answer in words.
        tables, figures: the report of any of these answers it.
        trained: whether the answer depends on the recipe; else it is asked once.
    """

    text: str
    check: Callable[[Findings, str], str]
    tables: tuple[int, ...] = ()
    figures: tuple[int, ...] = ()
    trained: bool = True


def higher(first: MeanSd | None, second: MeanSd | None, names: tuple[str, str]) -> str:
    """Whether the first accuracy is above the second, with both figures, and whether the spread of the runs allows saying so."""
    if first is None or second is None:
        return NOT_MEASURED
    difference = first.mean - second.mean
    figures = f"{names[0]} {_figure(first)} against {names[1]} {_figure(second)}, {difference:+.2f} points"
    if difference == 0:
        return f"not decided, the two are equal: {figures}"
    if first.sd is None or second.sd is None:
        return f"{'yes' if difference > 0 else 'no'} (single runs, their spread is not known): {figures}"
    error = math.sqrt(first.sd**2 / first.n + second.sd**2 / second.n)
    if abs(difference) <= 2 * error:
        return f"not decided, the difference lies within two standard errors ({2 * error:.2f}): {figures}"
    return f"{'yes' if difference > 0 else 'no'}: {figures}"


def best_of(measured: Mapping[str, MeanSd | None], claimed: str) -> str:
    """Whether ``claimed`` has the highest accuracy of all; the nearest rival decides how sure that is."""
    known = {name: value for name, value in measured.items() if value is not None}
    if len(known) < len(measured):
        missing = ", ".join(name for name in measured if name not in known)
        return f"{NOT_MEASURED} ({missing} missing)"
    rival = max((name for name in known if name != claimed), key=lambda name: known[name].mean)
    return higher(known[claimed], known[rival], (claimed, f"the best other, {rival},"))


def faster(ours: Mapping[str, float], theirs: Mapping[str, float], names: tuple[str, str], claimed: float) -> str:
    """How many times faster the first network is than the second on each device, beside the factor that the paper claims."""
    both = [device for device in ours if device in theirs]
    if not both:
        return NOT_MEASURED
    return "; ".join(
        f"{'yes' if theirs[d] >= claimed * ours[d] else 'no'}, {theirs[d] / ours[d]:.2f} times (claimed: {claimed:g}) on {d}: "
        f"{names[0]} {ours[d]:.3f} ms, {names[1]} {theirs[d]:.3f} ms an image"
        for d in both
    )


@cache
def parameters(model: str, classes: int, size: int = 32) -> int:
    """Trainable parameters of a network as it is built for colour images of that side."""
    with torch.device("meta"):  # shapes only: nothing is allocated
        network = create_model(model, num_classes=classes, input_size=size)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _figure(value: MeanSd) -> str:
    return f"{value} % ({value.n} seed{'s' if value.n != 1 else ''})"
