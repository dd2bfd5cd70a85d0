"""Accuracy of a network on the whole of a data split, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.engine.devices import Fabric

__all__ = ["TOPK", "Batches", "EvalResult", "evaluate"]

TOPK = (3, 5)
"""How many of the highest outputs are looked at besides the first: what the papers' tables print."""


class Batches(Protocol):
    """Something that yields (images float32 (B, C, H, W), labels int64 (B,)); each process its own share."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the split."""
        ...


@dataclass(frozen=True)
class EvalResult:
    """Figures of one pass: mean cross-entropy, top-1 and top-k in percent, images counted, and the confusion matrix.

    ``topk[k]`` is the share of images whose class is among the k highest outputs. ``confusion[i][j]`` counts images of class i
    that were given class j. ``accuracy_tta`` is top-1 over the mean of the logits of the image and its mirror image, None
    unless asked for.
    """

    loss: float
    accuracy: float
    topk: Mapping[int, float]
    images: int
    confusion: tuple[tuple[int, ...], ...]
    accuracy_tta: float | None = None

    def per_class(self) -> list[dict[str, float | None]]:
        """Precision, recall and F1 of each class in percent (None where it is 0/0), and its number of images (support)."""
        matrix = torch.tensor(self.confusion, dtype=torch.float64)
        hits, support, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        rows: list[dict[str, float | None]] = []
        for hit, n, p in zip(hits.tolist(), support.tolist(), predicted.tolist(), strict=True):
            rows.append(
                {
                    "precision": 100 * hit / p if p else None,
                    "recall": 100 * hit / n if n else None,
                    "f1": 200 * hit / (n + p) if n + p else None,
                    "support": n,
                }
            )
        return rows


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    num_classes: int,
    fabric: Fabric,
    *,
    tta: bool = False,
    progress: Callable[[int], None] | None = None,
) -> EvalResult:
    """One pass of ``model`` in evaluation mode; its mode is restored afterwards.

    Args:
        model: (B, C, H, W) -> logits (B, num_classes); as Fabric set it up, or a plain module on the fabric's device.
        batches: this process's share of the split.
        tta: also score the mean of the logits of each image and its mirror image.
        progress: called after each batch with how many images of this process's share have been scored.

    Raises:
        ValueError: the split is empty.
    """
    was_training = model.training
    model.eval()
    sums = [torch.zeros(3 + len(TOPK), device=fabric.device)]  # of each batch: loss, TTA hits, images, hits of each k
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=fabric.device)
    done = 0
    for x, y in batches:
        with fabric.autocast():
            logits = model(x)
            mirrored = model(x.flip(3)) if tta else None
        logits = logits.float()
        confusion.view(-1).index_add_(0, y * num_classes + logits.argmax(1), torch.ones_like(y))
        among = logits.topk(min(max(TOPK), num_classes), dim=1).indices == y[:, None]
        loss_sum = F.cross_entropy(logits, y, reduction="sum")
        hits = [among[:, :k].any(1).sum() for k in TOPK]
        tta_hits = torch.zeros_like(hits[0]) if mirrored is None else ((logits + mirrored.float()).argmax(1) == y).sum()
        sums.append(torch.stack([loss_sum, tta_hits, torch.full_like(tta_hits, y.numel()), *hits]))
        done += y.numel()
        if progress is not None:
            progress(done)
    model.train(was_training)
    totals = torch.stack(sums).cpu().double().sum(0)  # not every device has double precision
    totals, confusion = _sum(fabric, totals), _sum(fabric, confusion)
    loss, tta_hits_all, images, *hits_all = totals.tolist()
    if not images:
        raise ValueError("cannot evaluate on an empty split")
    return EvalResult(
        loss=loss / images,
        accuracy=100 * confusion.diagonal().sum().item() / images,
        topk={k: 100 * found / images for k, found in zip(TOPK, hits_all, strict=True)},
        images=int(images),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        accuracy_tta=100 * tta_hits_all / images if tta else None,
    )


def _sum(fabric: Fabric, value: Tensor) -> Tensor:
    if fabric.world_size == 1:
        return value
    reduced: Any = fabric.all_reduce(value.to(fabric.device), reduce_op="sum")
    assert isinstance(reduced, Tensor)
    return reduced
