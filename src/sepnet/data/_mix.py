"""Mixing of the images of a batch in pairs, and of their labels: mixup and CutMix, for all images at once.

Mixup (Zhang et al. 2018, arXiv:1710.09412) fades an image into another one; CutMix (Yun et al. 2019, arXiv:1905.04899) puts a
rectangle of the other one into it. Both are a weight for each pixel of the other image, and its mean is the share of the other
image's label. Each image has draws of its own, as in the papers' formulas (their code, and timm, draw once a batch).

An image's partner lies half a batch further on. A batch is in random order already, and so processes that share a batch have the
partners of their images themselves if half of it can be shared evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepnet.data._augment import AugmentConfig, rectangles

__all__ = ["MixParameters", "draw_mix", "mix", "mix_labels", "partners"]


@dataclass(frozen=True)
class MixParameters:
    """The draws for B images; an image that stays as it is has a rectangle without pixels.

    Attributes:
        box: int64 (B, 4), the rectangle of the other image: first row, row behind the last, first column, column behind the last.
        faded: float32 (B,), the weight of the other image everywhere, 0 where a rectangle is put in; None without mixup.
    """

    box: Tensor
    faded: Tensor | None = None

    def __getitem__(self, index: slice) -> MixParameters:
        """The draws of some of the images."""
        return MixParameters(self.box[index], None if self.faded is None else self.faded[index])

    @classmethod
    def cat(cls, parts: list[MixParameters]) -> MixParameters:
        """Those of several batches, of one configuration, as of one."""
        faded = [p.faded for p in parts if p.faded is not None]
        return cls(torch.cat([p.box for p in parts]), torch.cat(faded) if faded else None)

    def to(self, device: torch.device | str) -> MixParameters:
        """The draws on ``device``."""
        faded = None if self.faded is None else self.faded.to(device, non_blocking=True)
        return MixParameters(self.box.to(device, non_blocking=True), faded)

    def share(self, height: int, width: int) -> Tensor:
        """float32 (B,): how much of each label is the other image's."""
        top, bottom, left, right = self.box.unbind(1)
        pasted = (bottom - top) * (right - left) / (height * width)
        return pasted if self.faded is None else pasted + self.faded


def partners(batch_size: int) -> Tensor:
    """int64 (B,): the place in the batch of the image that each one is mixed with."""
    return (torch.arange(batch_size) + batch_size // 2) % batch_size


def draw_mix(config: AugmentConfig, batch_size: int, height: int, width: int, generator: np.random.Generator) -> MixParameters:
    """Decide for a batch: which images are mixed, which of the two ways where both are set (even chances), and how much.

    The share of the other image is drawn from Beta(alpha, alpha), alpha being ``config.mixup`` or ``config.cutmix``; CutMix's
    rectangle has the image's proportions and a centre anywhere in it, and what lies outside of the image is cut off.
    """
    mixed = generator.random(batch_size) < config.mix_prob
    fading = generator.random(batch_size) < (0.5 if config.mixup and config.cutmix else bool(config.mixup))
    side = np.where(mixed & ~fading, np.sqrt(_shares(config.cutmix, batch_size, generator)), 0.0)
    box = [edge for extent in (height, width) for edge in _interval(extent, side, generator.random(batch_size))]
    faded = np.where(mixed & fading, _shares(config.mixup, batch_size, generator), 0.0)
    return MixParameters(torch.from_numpy(np.stack(box, 1)), torch.from_numpy(faded).float() if config.mixup else None)


def _shares(alpha: float, count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return generator.beta(alpha, alpha, count) if alpha else np.zeros(count)


def _interval(extent: int, side: NDArray[np.float64], centre: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and behind the last of the ``side * extent`` pixels about ``centre``, within the image."""
    length = np.rint(side * extent).astype(np.int64)
    first = (centre * extent).astype(np.int64) - length // 2
    return np.clip(first, 0, extent), np.clip(first + length, 0, extent)


def mix(images: Tensor, others: Tensor, drawn: MixParameters) -> Tensor:
    """Put or fade ``others`` into ``images``.

    Shape: (B, C, H, W) twice, both uint8 or float32 on the scale 0..255, channels innermost in memory -> the same; float32 where
        images may be faded.
    """
    _, channels, height, width = images.shape
    weight = rectangles(drawn.box, height, width, channels, images.dtype if drawn.faded is None else torch.float32)
    if drawn.faded is not None:
        weight += drawn.faded[:, None, None]
    x, other = (t.permute(0, 2, 3, 1).reshape(len(t), height, -1) for t in (images, others))
    mixed = (x * (1 - weight)).add_(weight.mul_(other))
    return mixed.view(len(x), height, width, channels).permute(0, 3, 1, 2)


def mix_labels(labels: Tensor, others: Tensor, share: Tensor, classes: int) -> Tensor:
    """Probabilities of the classes: ``share`` (B,) of the other label. Shape: int64 (B,) twice -> float32 (B, classes)."""
    found = torch.zeros(len(labels), classes, device=labels.device)
    found.scatter_(1, labels[:, None], (1 - share)[:, None])
    return found.scatter_add_(1, others[:, None], share[:, None])
