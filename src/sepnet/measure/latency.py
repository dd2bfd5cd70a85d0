"""How long a network takes for a batch: timed forward passes in evaluation mode, after a warm-up, with their spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Latency", "measure_latency"]


@dataclass(frozen=True)
class Latency:
    """Times of one forward pass of a batch, in milliseconds.

    Attributes:
        input_shape: (C, H, W) of one image.
        bf16: whether under autocast to bfloat16; else float32.
        n: timed passes; ``warm_up`` passes went before them and are not in the figures.
        median_ms, mean_ms, sd_ms: of the n passes; sd with n - 1 in the denominator.
        p10_ms, p90_ms: a tenth of the passes were faster (slower).
    """

    input_shape: tuple[int, int, int]
    batch_size: int
    bf16: bool
    warm_up: int
    n: int
    median_ms: float
    mean_ms: float
    sd_ms: float
    p10_ms: float
    p90_ms: float

    @property
    def ms_per_image(self) -> float:
        """The median pass over the images in it."""
        return self.median_ms / self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"input_shape": list(self.input_shape)}


def measure_latency(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    warm_up: int = 3,
    least: int = 10,
    most: int = 200,
    seconds: float = 5.0,
) -> Latency:
    """Time forward passes of random images (B, C, H, W), channels last, without gradients.

    Timed are passes until ``seconds`` are over, at least ``least`` and at most ``most``. An accelerator is waited for after each
    pass, so a pass is what a caller waits for, transfer of the images left out.

    Args:
        model: moved to ``device`` and to channels last; its modules' modes are restored.

    Raises:
        ValueError: a count below 1 (``least``: below 2, for a deviation), or ``most`` below ``least``.
        RuntimeError: the network does not take such images, or the batch does not fit into memory.
    """
    if batch_size < 1 or warm_up < 1 or not 2 <= least <= most:
        raise ValueError(
            f"needs batch_size and warm_up of at least 1 and 2 <= least <= most, got {batch_size}, {warm_up}, {least}, {most}"
        )
    target = torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    model.to(target).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, *input_shape, generator=generator).to(target, memory_format=torch.channels_last)
    try:
        with torch.no_grad(), torch.autocast(target.type, torch.bfloat16, enabled=bf16):
            times = _times(lambda: model(x), target, warm_up, least, most, seconds)
    finally:
        for module, training in modes:
            module.training = training
    return Latency(
        input_shape=input_shape,
        batch_size=batch_size,
        bf16=bf16,
        warm_up=warm_up,
        n=len(times),
        median_ms=statistics.median(times),
        mean_ms=statistics.fmean(times),
        sd_ms=statistics.stdev(times),
        p10_ms=_quantile(times, 0.1),
        p90_ms=_quantile(times, 0.9),
    )


def _times(action: Callable[[], object], device: torch.device, warm_up: int, least: int, most: int, seconds: float) -> list[float]:
    """Milliseconds of each timed call."""
    for _ in range(warm_up):
        action()
    _wait(device)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        action()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _quantile(values: list[float], share: float) -> float:
    """Linear between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
