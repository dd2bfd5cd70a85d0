"""A network, batches and a device small enough to train hundreds of times in a test; no data set, no registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepnet.engine import FitConfig, FitResult, fit, make_fabric

CLASSES = 3
FABRIC = make_fabric("cpu", "off")


class TinyNet(nn.Module):
    """3x3 convolution, BN, ReLU, mean over the map, dropout, linear. (B, 2, 6, 6) -> (B, 3)."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.0, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.fc(self.dropout(y))


def tiny_net(seed: int = 0, **options: Any) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(**options)


class Synthetic:
    """Images whose class shows in their mean; ``batch(i)`` depends on i alone, as the engine asks. Iterable for evaluation."""

    def __init__(self, *, batch_size: int = 16, batches: int = 5, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.batches_per_epoch = batches
        self._batch_size, self._seed, self._share = batch_size, seed, slice(rank, None, world_size)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self._seed + iteration)
        y = torch.randint(CLASSES, (self._batch_size,), generator=generator)
        x = torch.randn(self._batch_size, 2, 6, 6, generator=generator) + 0.7 * y[:, None, None, None]
        return x[self._share], y[self._share]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch(i) for i in range(self.batches_per_epoch))


class CrashError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


class Crashing(Synthetic):
    """Raises ``CrashError`` when batch ``at`` is asked for."""

    def __init__(self, at: int, **options: Any) -> None:
        super().__init__(**options)
        self._at = at

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        if iteration == self._at:
            raise CrashError
        return super().batch(iteration)


def config(**settings: Any) -> FitConfig:
    """Twelve iterations of plain settings, with ``settings`` over them."""
    return FitConfig.model_validate({"iterations": 12, "lr": 0.05, "warmup": 0.0, "weight_decay": 0.0, "amp": "off", **settings})


def run(settings: FitConfig, *, model: nn.Module | None = None, loader: Any = None, **options: Any) -> FitResult:
    """``fit`` on the synthetic images, unless ``model`` or ``loader`` is given."""
    options = {"fabric": FABRIC, "num_classes": CLASSES, **options}
    return fit(model if model is not None else tiny_net(), loader if loader is not None else Synthetic(), settings, **options)


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal to the last bit, and by the same names."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def parts_in(folder: Path) -> list[str]:
    """Names of temporary files left in ``folder``."""
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".part"))
