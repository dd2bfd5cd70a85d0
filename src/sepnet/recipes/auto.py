"""The recipe for data that nobody tuned for: ``sepnet train DATA`` without flags.

Chooses the network's depth from the image size, the batch and the length from the number of images. Reads no labels and
no test data. Expected: digits 98 to 99 % in about 10 s on 2 cores.
"""

from __future__ import annotations

import math

from sepnet.recipes._config import TrainConfig
from sepnet.recipes._registry import DataFacts, register_recipe

__all__ = ["auto"]

WIDTHS = (32, 64, 128, 256, 256, 256)


def _units(size: int) -> tuple[int, ...]:
    """Widths of as many units as leave a map of about 4x4, at least two and at most six."""
    count = max(2, min(len(WIDTHS), size.bit_length() - 3))
    return WIDTHS[:count]


def _epochs(images: int, batch_size: int) -> int:
    """80 for up to 625 images, falling with the square root of their number, 10 for 40,000 and more; at least 300 steps."""
    steps = max(1, images // batch_size)
    return max(10, min(80, round(math.sqrt(4_000_000 / max(1, images)))), -(-300 // steps))


@register_recipe("auto")
def auto(facts: DataFacts) -> TrainConfig:
    """Multi-scale network, Muon with a triangular schedule, flips and shifts; the best weights on validation are kept."""
    batch_size = 128 if facts.train_images >= 10_000 else 64 if facts.train_images >= 1_000 else 32
    return TrainConfig(
        data=facts.name,
        recipe="auto",
        model="multiscale_concat",
        model_options={"units": list(_units(facts.size))},
        epochs=_epochs(facts.train_images, batch_size),
        batch_size=batch_size,
        opt="muon",
        lr=0.05,
        smoothing=0.1,
        ema=0.99,
        hflip=facts.hflip,
        shift=max(1, facts.size // 16),
        keep="best",
        tta=facts.hflip != "off",
    )
