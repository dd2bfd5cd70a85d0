"""The training loss: cross-entropy, and that of auxiliary classifiers where a network has them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["AUXILIARY_WEIGHT", "classification_loss"]

AUXILIARY_WEIGHT = 0.3
"""Of each auxiliary classifier's loss (Szegedy et al. 2015, section 5)."""


def classification_loss(output: Tensor | tuple[Tensor, ...], target: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The loss, a scalar in float32, and the logits that count as the network's answer.

    Args:
        output: logits (B, classes), or a tuple of them: the network's, then those of its auxiliary classifiers.
        target: class numbers (B,), int64, or probabilities of the classes (B, classes).
        smoothing: of the labels.
    """
    logits, *auxiliary = output if isinstance(output, tuple) else (output,)
    loss = F.cross_entropy(logits.float(), target, label_smoothing=smoothing)
    for other in auxiliary:
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(other.float(), target, label_smoothing=smoothing)
    return loss, logits
