"""How fast a trained network answers on the device at hand: one image at a time, and in batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sepnet.engine import make_fabric
from sepnet.engine.devices import keep_large_buffers
from sepnet.measure import Latency, measure_latency
from sepnet.recipes import TrainConfig
from sepnet.report import Environment, Speed, environment

__all__ = ["BATCH", "SINGLE", "SpeedMeter"]

SINGLE, BATCH = 1, 128
REPEATS, FEWEST_REPEATS = 30, 3
SECONDS = 5.0  # a large network on a small processor: fewer passes rather than minutes


class SpeedMeter:
    """Measures networks as a run with these settings uses them: on that device, in its precision and memory layout.

    Raises:
        ConfigError: no such device.
    """

    def __init__(self, config: TrainConfig, device: str) -> None:
        keep_large_buffers()
        fabric = make_fabric(device, config.amp)
        self.device = fabric.device
        self.bf16 = "bf16" in str(fabric._precision.precision)
        self.channels_last = config.channels_last
        self.environment: Environment = environment(self.device, "bf16" if self.bf16 else "fp32")

    def measure(self, model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Speed, Speed]:
        """Speed of single images of ``input_shape`` (C, H, W), and of batches of 128; the network moves to the device."""
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        on: dict[str, Any] = {"device": self.device, "bf16": self.bf16, "seconds": SECONDS}
        single = measure_latency(model, input_shape, batch_size=SINGLE, least=REPEATS, most=REPEATS, **on)
        batch = measure_latency(model, input_shape, batch_size=BATCH, warm_up=1, least=FEWEST_REPEATS, most=REPEATS, **on)
        return _speed(single), _speed(batch)


def _speed(latency: Latency) -> Speed:
    return Speed(
        batch_size=latency.batch_size,
        median_ms=latency.median_ms,
        p90_ms=latency.p90_ms,
        mean_ms=latency.mean_ms,
        std_ms=latency.sd_ms,
        n=latency.n,
    )
