"""How long a network takes to answer: wall time of one forward pass on a device, with its spread.

The clock starts after a warm-up, and on a GPU it stops when the device has finished, not when the work has been queued.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["Latency", "measure_latency"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass of ``batch_size`` images, over ``n`` passes; ``std_ms`` has n - 1 in the denominator."""

    median_ms: float
    mean_ms: float
    std_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    batch_size: int


@torch.no_grad()
def measure_latency(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    batch_size: int = 1,
    device: torch.device | str,
    warmup: int = 5,
    repeats: int = 30,
    amp: bool = False,
) -> Latency:
    """Time forward passes of ``model`` in evaluation mode; the modes of its modules are put back afterwards.

    Args:
        model: (B, C, H, W) -> anything; it is moved to ``device`` and stays there, in the memory layout that it has.
        input_shape: C, H, W of an image. The images are standard normal noise, laid out channels last.
        batch_size: images a pass.
        device: where to measure.
        warmup: passes before the clock starts.
        repeats: passes that are timed, each by itself.
        amp: in bf16 (autocast) instead of the network's own precision.

    Raises:
        ValueError: no image in a batch, no timed pass, or a negative warm-up.
        RuntimeError: the network does not take such an image.
    """
    if batch_size < 1 or repeats < 1 or warmup < 0:
        raise ValueError(
            f"batch_size and repeats must be at least 1 and warmup at least 0, got {batch_size}, {repeats} and {warmup}"
        )
    target = torch.device(device)
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
    images = torch.randn(batch_size, *input_shape, generator=generator).to(target).contiguous(memory_format=torch.channels_last)
    modes = [(module, module.training) for module in model.modules()]
    times = []
    try:
        model.to(target).eval()
        with torch.autocast(target.type, torch.bfloat16, enabled=amp):
            for i in range(warmup + repeats):
                _wait(target)
                start = time.perf_counter()
                model(images)
                _wait(target)
                if i >= warmup:
                    times.append(1000 * (time.perf_counter() - start))
    finally:
        for module, training in modes:
            module.training = training
    return _summary(times, batch_size)


def _wait(device: torch.device) -> None:
    """Until the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _summary(times: list[float], batch_size: int) -> Latency:
    p50, p90, p99 = (float(p) for p in np.percentile(times, (50, 90, 99)))
    deviation = float(np.std(times, ddof=1)) if len(times) > 1 else 0.0
    return Latency(p50, float(np.mean(times)), deviation, p50, p90, p99, len(times), batch_size)
