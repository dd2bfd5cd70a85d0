"""Depthwise-separable blocks: MobileNet's (Howard et al. 2017), and the dilated one of Sun et al. 2020."""

from __future__ import annotations

from torch import Tensor

from sepnet.nn.conv import check_positive, depthwise, pointwise
from sepnet.nn.joined import depthwise_between, pointwise_before, separable_before
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.pending import EndsInNorm, Pending

__all__ = ["DilatedSeparableBlock", "SeparableBlock"]


class SeparableBlock(EndsInNorm):
    """Depthwise 3x3, BN, ReLU, pointwise 1x1, BN, ReLU: Howard et al. 2017, Fig. 3 (right); Tseng and Kao 2020, section 3.1.

    Args:
        stride: of the depthwise convolution.
        bias: of both convolutions; the normalisation undoes it, so it is off unless a published count holds it.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: a channel count or the stride is less than 1; the message shows the value.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.dw = depthwise(in_channels, stride=stride, bias=bias)
        self.bn1 = BatchNormReLU(in_channels)
        self.pw = pointwise(in_channels, out_channels, bias=bias)
        self.bn2 = BatchNormReLU(out_channels)

    def pending(self, x: Tensor | Pending) -> Pending:
        """(B, in_channels, H, W) -> (B, out_channels, H', W'), to be normalised."""
        return separable_before(x, self.dw, self.bn1, self.pw, self.bn2)


class DilatedSeparableBlock(EndsInNorm):
    """Dilated depthwise 3x3, pointwise 1x1, BN, ReLU: the joint module and the basic structure of Sun et al. 2020 (Fig. 1, 4).

    Our reading of Eq. 1: the paper's rate d makes a filter of size 3 cover 4d + 3 pixels (3, 7, 11, 15 for d = 0, 1, 2, 3);
    in the usual convention, where a kernel of 3 with dilation D covers 2D + 1, that is D = 2d + 1.

    Args:
        rate: the paper's dilated rate d, from 0 (an ordinary kernel).
        stride: of the depthwise convolution.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: a channel count or the stride is less than 1, or the rate less than 0; the message shows the value.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rate: int, stride: int = 1) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, stride=stride)
        if not isinstance(rate, int) or isinstance(rate, bool) or rate < 0:
            raise ValueError(f"rate must be an integer of at least 0, got {rate!r}")
        self.dw = depthwise(in_channels, stride=stride, dilation=2 * rate + 1)
        self.pw = pointwise(in_channels, out_channels)
        self.bn = BatchNormReLU(out_channels)

    def pending(self, x: Tensor | Pending) -> Pending:
        """(B, in_channels, H, W) -> (B, out_channels, H', W'), to be normalised."""
        return pointwise_before(depthwise_between(x, self.dw), self.pw, self.bn)
