"""Convolution with batch normalisation and ReLU, and the depthwise convolution, as every network here uses them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvBNReLU", "check_positive", "depthwise"]


def check_positive(**values: int) -> None:
    """Raise ValueError, naming the value, unless every argument is an integer of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def depthwise(channels: int, kernel_size: int = 3, *, padding: int | None = None, dilation: int = 1) -> nn.Conv2d:
    """One filter a channel (Howard et al. 2017, MobileNets, Eq. 3), stride 1, no bias.

    Shape: (B, C, H, W) -> (B, C, H', W'); H' = H for the default padding and an odd kernel.
    """
    pad = dilation * (kernel_size - 1) // 2 if padding is None else padding
    return nn.Conv2d(channels, channels, kernel_size, padding=pad, dilation=dilation, groups=channels, bias=False)


class ConvBNReLU(nn.Module):
    """k x k convolution ('same' padding, stride 1, no bias: the normalisation has one), batch normalisation, ReLU.

    Args:
        relu: False leaves the ReLU out, for a caller that applies it after max pooling, where it costs a quarter: the two
            commute, values and gradients alike, because ReLU is monotone.

    Shape: (B, in_channels, H, W) -> (B, out_channels, H, W) for an odd kernel.

    Raises:
        ValueError: a channel count or the kernel size is less than 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        y: Tensor = self.bn(self.conv(x))
        return F.relu(y, inplace=True) if self.relu else y
