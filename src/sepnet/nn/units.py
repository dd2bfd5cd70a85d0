"""The units that Wang et al. 2018 compare with (Fig. 3): AlexNet, MobileNet and GoogLeNet, each ending in 2x2 max pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sepnet.nn.conv import ConvBNReLU, check_positive, depthwise, pointwise
from sepnet.nn.joined import normalised_pointwise
from sepnet.nn.norm import BatchNormReLU

__all__ = ["InceptionUnit", "SeparableUnit", "StandardUnit"]


class StandardUnit(nn.Module):
    """3x3 convolution, BN, ReLU, 2x2 max pooling: the paper's AlexNet unit (Fig. 3a), 9N parameters per input channel.

    Shape: (B, C, H, W) -> (B, N, H//2, W//2).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.conv = ConvBNReLU(in_channels, width, 3, pool=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, H//2, W//2)."""
        y: Tensor = self.conv(x)
        return y


class SeparableUnit(nn.Module):
    """Depthwise 3x3, pointwise, BN, ReLU, 2x2 max pooling: the MobileNet unit (Fig. 3b), N + 9 parameters per input channel.

    Our reading: one BN + ReLU after the pair, as in the multi-scale unit it is compared with (MobileNet itself has one after each).

    Shape: (B, C, H, W) -> (B, N, H//2, W//2).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, width=width)
        self.out_channels = width
        self.dw = depthwise(in_channels)
        self.pw = pointwise(in_channels, width)
        self.bn = BatchNormReLU(width, pool=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, H//2, W//2)."""
        return normalised_pointwise(self.dw(x), self.pw, self.bn)


class InceptionUnit(nn.Module):
    """1x1 | 1x1-3x3 | 1x1-5x5 | 3x3 max pooling-1x1, each N wide, concatenated, 2x2 max pooling: the GoogLeNet unit (Fig. 3c).

    Table 2 counts N + (N + 9N) + (N + 25N) + N = 38N parameters per input channel. Our reading: BN + ReLU after every
    convolution.

    Shape: (B, C, H, W) -> (B, 4N, H//2, W//2).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.branch1 = ConvBNReLU(in_channels, width, pool=True)
        self.branch3 = nn.Sequential(ConvBNReLU(in_channels, width), ConvBNReLU(width, width, 3, pool=True))
        self.branch5 = nn.Sequential(ConvBNReLU(in_channels, width), ConvBNReLU(width, width, 5, pool=True))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvBNReLU(in_channels, width, pool=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4N, H//2, W//2)."""
        # each branch is pooled before the concatenation, which gives the same and moves a quarter of the memory
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        y: Tensor = torch.cat([branch(x) for branch in branches], dim=1)
        return y
