"""The residual bottleneck of He et al. 2016, Xie et al. 2017 (grouped) and Luo et al. (depthwise, dilated)."""

from __future__ import annotations

from torch import Tensor, nn

from sepnet.nn.conv import check_positive, pointwise
from sepnet.nn.joined import pointwise_before, separable_before
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.pending import settle

__all__ = ["Bottleneck"]


class Bottleneck(nn.Module):
    """1x1 to the width of ``spatial``, BN, ReLU, ``spatial``, BN, ReLU, 1x1, BN, plus the shortcut, ReLU (He et al. 2016, Fig. 5).

    The shortcut is the identity, or a strided 1x1 convolution with BN where the shape changes. The stride belongs to
    the 3x3 convolution (in the paper to the first 1x1, which then reads a quarter of the map). State-dict names are
    those of torchvision.

    Args:
        spatial: the 3x3 convolution, standard, grouped or depthwise; it sets the width and the stride.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: a channel count is less than 1; the message shows the value.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial: nn.Conv2d) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels)
        self.conv1 = pointwise(in_channels, spatial.in_channels)
        self.bn1 = BatchNormReLU(spatial.in_channels)
        self.conv2 = spatial
        self.bn2 = BatchNormReLU(spatial.out_channels)
        self.conv3 = pointwise(spatial.out_channels, out_channels)
        self.bn3 = BatchNormReLU(out_channels, relu=False)
        self.downsample: nn.Module | None = None
        if in_channels != out_channels or spatial.stride != (1, 1):
            projection = pointwise(in_channels, out_channels, stride=spatial.stride[0])
            self.downsample = nn.Sequential(projection, BatchNormReLU(out_channels, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = pointwise_before(x, self.conv1, self.bn1)
        return settle(separable_before(y, self.conv2, self.bn2, self.conv3, self.bn3), shortcut)
