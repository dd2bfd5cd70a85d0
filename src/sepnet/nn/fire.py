"""The Fire module of SqueezeNet (Iandola et al. 2016, Fig. 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.nn.conv import check_positive

__all__ = ["Fire"]


class Fire(nn.Module):
    """1x1 to ``squeeze`` channels, ReLU; then 1x1 and 3x3 to ``expand`` channels each, ReLU, concatenated.

    State-dict names are those of torchvision.

    Shape: (B, in_channels, H, W) -> (B, 2 * expand, H, W).

    Raises:
        ValueError: a channel count is less than 1; the message shows the value.
    """

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, squeeze=squeeze, expand=expand)
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 2 * expand, H, W)."""
        squeezed = F.relu(self.squeeze(x), inplace=True)
        return F.relu(torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1), inplace=True)
