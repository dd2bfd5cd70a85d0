"""The inception module of GoogLeNet and its auxiliary classifier (Szegedy et al. 2015, Fig. 2b, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.nn.conv import ConvBNReLU

__all__ = ["AuxiliaryHead", "Inception"]

EPS = 1e-3
"""Of the normalisation, as in the weights that torchvision took over from TensorFlow."""


class Inception(nn.Module):
    """1x1 | 1x1-3x3 | 1x1-5x5 | 3x3 max pooling-1x1, concatenated; BN and ReLU after every convolution.

    The columns of Table 1 are the arguments, "reduce" for the 1x1 before a larger kernel. State-dict names are those of
    torchvision.

    Args:
        large_kernel: of the third branch: 5 in the paper, 3 in torchvision's weights.

    Shape: (B, in_channels, H, W) -> (B, one + three + five + pool, H, W).

    Raises:
        ValueError: a width is less than 1; the message shows the value.
    """

    def __init__(
        self,
        in_channels: int,
        one: int,
        three_reduce: int,
        three: int,
        five_reduce: int,
        five: int,
        pool: int,
        *,
        large_kernel: int = 5,
    ) -> None:
        super().__init__()
        self.branch1 = ConvBNReLU(in_channels, one, eps=EPS)
        self.branch2 = nn.Sequential(ConvBNReLU(in_channels, three_reduce, eps=EPS), ConvBNReLU(three_reduce, three, 3, eps=EPS))
        self.branch3 = nn.Sequential(
            ConvBNReLU(in_channels, five_reduce, eps=EPS), ConvBNReLU(five_reduce, five, large_kernel, eps=EPS)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvBNReLU(in_channels, pool, eps=EPS))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, one + three + five + pool, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxiliaryHead(nn.Module):
    """Average pooling to 4x4, 1x1 convolution to 128, FC 1024, ReLU, dropout 0.7, classifier.

    The paper pools 5x5 windows by 3, which leaves 4x4 of its 14x14 maps; here a map of any size is averaged to 4x4.

    Shape: (B, in_channels, H, W) -> (B, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, 128, eps=EPS)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, num_classes)."""
        hidden = F.relu(self.fc1(self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)))
        y: Tensor = self.fc2(F.dropout(hidden, 0.7, self.training))
        return y
