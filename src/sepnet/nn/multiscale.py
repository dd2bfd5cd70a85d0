"""The multi-scale depthwise-separable unit of Wang et al. 2018 (Fig. 2, Eq. 2 and 3, Tables 1 and 2)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.kernels import is_plain, multiscale_branches, native_for
from sepnet.nn.conv import check_positive, depthwise, pointwise
from sepnet.nn.joined import normalised_pointwise
from sepnet.nn.norm import BatchNormReLU

__all__ = ["Border", "Merge", "MultiScaleUnit"]

Merge = Literal["concat", "add"]
Border = Literal["once", "layer"]


class MultiScaleUnit(nn.Module):
    """Two depthwise scales (3x3, and two stacked 3x3) with identity, merged, then pointwise 1x1, BN, ReLU, 2x2 max pooling.

    Paper: Wang et al. 2018, Fig. 2, Eq. 2 (concat) and 3 (add); parameters per input channel 27 + 2N (Table 2).
    Our reading: the identity joins each branch before the pointwise convolution (the figure is not described in
    words); no nonlinearity stands between the depthwise convolutions. With m input channels, a = dw3(x) and
    b = dw3(dw3(x)):

        concat: pw([x + a, x + b])   2m -> N channels
        add:    pw(x + a + b)         m -> 2N channels

    Args:
        in_channels: m, channels of the input.
        width: N of Table 1.
        merge: "concat" (method 1) or "add" (method 2).
        residual: whether the identity joins the branches.
        border: where the stacked branch is zero-padded: "once" by 2 before its first layer (the branch is then exactly
            one 5x5 depthwise convolution), or "layer", by 1 before each. The paper does not say.

    Shape: (B, C, H, W) -> (B, N, H//2, W//2) for concat, (B, 2N, H//2, W//2) for add.

    Raises:
        ValueError: width or in_channels < 1, an unknown merge or border, or a residual that is no bool; the message
            shows the value.
    """

    def __init__(self, in_channels: int, width: int, merge: Merge, *, residual: bool = True, border: Border = "once") -> None:
        super().__init__()
        check_positive(in_channels=in_channels, width=width)
        if merge not in get_args(Merge):
            raise ValueError(f"merge must be 'concat' or 'add', got {merge!r}")
        if border not in get_args(Border):
            raise ValueError(f"border must be 'once' or 'layer', got {border!r}")
        if not isinstance(residual, bool):
            raise ValueError(f"residual must be True or False, got {residual!r}")
        self.merge = merge
        self.residual = residual
        # The layers' own sum, where it is computed: padding by 2 is 1 here and 1 in the layer, because PyTorch's CPU backward of a
        # 3x3 layer with padding 2 is 5 times slower.
        self.pad = 1 if border == "once" else 0
        self.out_channels = width if merge == "concat" else 2 * width
        self.dw_small = depthwise(in_channels)
        self.dw_large1 = depthwise(in_channels, padding=1)
        self.dw_large2 = depthwise(in_channels, padding=1 - self.pad)
        merged = 2 * in_channels if merge == "concat" else in_channels
        self.pw = pointwise(merged, self.out_channels)
        self.bn = BatchNormReLU(self.out_channels, pool=True)

    def stacked(self, x: Tensor) -> Tensor:
        """The branch of two depthwise layers, (B, C, H, W) -> (B, C, H, W); with border="once" it is one 5x5 convolution."""
        padded = F.pad(x, (self.pad,) * 4) if self.pad else x
        y: Tensor = self.dw_large2(self.dw_large1(padded))
        return y

    def merged(self, x: Tensor) -> Tensor:
        """Branches and identity, merged: (B, m, H, W) -> (B, 2m, H, W) for concat, (B, m, H, W) for add."""
        layers = (self.dw_small, self.dw_large1, self.dw_large2) if self.pad and native_for(x) else ()
        filters = [layer.weight for layer in layers]  # once: they may be parametrized
        if filters and is_plain(*filters):  # nothing nonlinear stands between the layers
            return multiscale_branches(x, *filters, add=self.merge == "add", residual=self.residual)
        small = self.dw_small(x)
        large = self.stacked(x)
        if self.merge == "concat":
            return torch.cat([x + small, x + large] if self.residual else [small, large], dim=1)
        both: Tensor = x + small + large if self.residual else small + large
        return both

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H//2, W//2)."""
        return normalised_pointwise(self.merged(x), self.pw, self.bn)
