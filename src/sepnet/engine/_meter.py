"""Loss and accuracy of the training steps: their means for the progress bar and for a row of the history."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sepnet.engine.devices import Fabric

__all__ = ["Meter"]

Step = tuple[Tensor, Tensor, int]


class Meter:
    """Collects each step's loss and hits as tensors; a device is synchronised only when they are read.

    The steps of a row are kept one by one: their sum is then the same to the last bit wherever a checkpoint cut the row.

    Args:
        row: steps of the unfinished row, from a checkpoint.
    """

    def __init__(self, row: Tensor | None = None) -> None:
        self.images = 0
        self._row = torch.zeros(0, 3, dtype=torch.float64) if row is None else row
        self._new: list[Step] = []  # steps of this process that are not in the row yet
        self._shown = 0

    def add(self, loss: Tensor, hits: Tensor, images: int) -> None:
        """One step: mean loss, number of correct images, number of images."""
        self.images += images
        self._new.append((loss, hits, images))

    def since_shown(self) -> tuple[float, float]:
        """Mean loss and top-1 percent of this process since the last call, for the progress bar; to be called after ``add``."""
        part, self._shown = self._new[self._shown :], len(self._new)
        return _means(_table(part))

    def row(self, fabric: Fabric) -> Tensor:
        """Steps of the unfinished row over all processes, float64 (n, 3) on the CPU: loss summed over images, hits, images.

        Every process must call it.
        """
        if self._new:
            new: Any = _table(self._new)
            if fabric.world_size > 1:
                new = fabric.all_reduce(new.to(fabric.device), reduce_op="sum")
            self._row = torch.cat([self._row, new.cpu()])
            self._new, self._shown = [], 0
        return self._row

    def end_row(self, fabric: Fabric) -> tuple[float, float]:
        """Mean loss and top-1 percent over all processes since the last call, for the history. Every process must call it."""
        row, self._row = self.row(fabric), self._row[:0]
        return _means(row)

    def images_per_s(self, seconds: float) -> float:
        """Images of this process a second since the start."""
        return self.images / max(seconds, 1e-9)


def _table(steps: list[Step]) -> Tensor:
    images = torch.tensor([n for *_, n in steps], dtype=torch.float64)
    loss = torch.stack([loss for loss, *_ in steps]).cpu().double()
    hits = torch.stack([hits for _, hits, _ in steps]).cpu().double()
    return torch.stack([loss * images, hits, images], dim=1)


def _means(table: Tensor) -> tuple[float, float]:
    loss, hits, images = table.sum(0).tolist()
    return loss / images, 100 * hits / images
