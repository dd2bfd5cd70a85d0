"""Classifier heads. Each holds its last linear layer as ``classifier``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.kernels import global_average
from sepnet.nn.conv import check_positive

__all__ = ["FlattenMLPHead", "PoolHead", "check_dropout"]


def check_dropout(dropout: float) -> None:
    """Raise ValueError, naming the value, unless ``dropout`` is a number from 0 up to, but not with, 1."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number from 0 to below 1, got {dropout!r}")


class FlattenMLPHead(nn.Module):
    """Flatten, fully connected layers (``fc1``, ``fc2``, ...) each with ReLU, dropout, classifier.

    The defaults are the head of Wang et al. 2018 (Table 1, Fc1 and Fc2).

    Args:
        hidden: widths of the fully connected layers before the classifier.
        dropout: part of the last hidden layer's values that training sets to zero.

    Shape: (B, C, H, W) with C*H*W = in_features -> (B, num_classes); (B, hidden[-1]) with ``pre_logits``.

    Raises:
        ValueError: a size less than 1, a dropout outside [0, 1), or an input with another number of features (the message
            shows both shapes).
    """

    def __init__(self, in_features: int, num_classes: int, hidden: Sequence[int] = (384, 192), *, dropout: float = 0.0) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes)
        check_dropout(dropout)
        self.in_features = in_features
        self.depth = len(hidden)
        width = in_features
        for i, out_features in enumerate(hidden, start=1):
            self.add_module(f"fc{i}", nn.Linear(width, out_features))
            width = out_features
        self.dropout = dropout
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        hidden = x.flatten(1)
        if hidden.shape[1] != self.in_features:
            raise ValueError(
                f"features of shape {tuple(x.shape)} hold {hidden.shape[1]} values an image, the head expects {self.in_features}: "
                "build the network with the input_size of its images"
            )
        for i in range(1, self.depth + 1):
            hidden = F.relu(self.get_submodule(f"fc{i}")(hidden))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return hidden if pre_logits else self.classifier(hidden)


class PoolHead(nn.Module):
    """Global average pooling, classifier: of any map, so of images of any size.

    Shape: (B, in_channels, H, W) -> (B, num_classes); (B, in_channels) with ``pre_logits``.

    Raises:
        ValueError: a size less than 1; the message shows the value.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_classes=num_classes)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, in_channels, H, W) -> (B, num_classes)."""
        hidden = global_average(x)
        return hidden if pre_logits else self.classifier(hidden)
