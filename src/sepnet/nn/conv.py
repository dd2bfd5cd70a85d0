"""Depthwise convolution, and convolution with batch normalisation and ReLU, as every network here uses them."""

from __future__ import annotations

from torch import Tensor, nn

from sepnet.kernels import (
    Geometry,
    depthwise_by_geometry,
    depthwise_conv2d,
    fits,
    is_written_down,
    pointwise_conv2d,
)
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.pending import EndsInNorm, Pending, settle

__all__ = ["ConvBNReLU", "DepthwiseConv2d", "PointwiseConv2d", "check_positive", "depthwise", "pointwise"]


def check_positive(**values: int) -> None:
    """Raise ValueError, naming the value, unless every argument is an integer of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


class DepthwiseConv2d(nn.Conv2d):
    """One filter a channel (Howard et al. 2017, MobileNets, Eq. 3): ``nn.Conv2d`` with as many groups as channels.

    Computed by ``sepnet.kernels`` where they serve. The state dict is that of ``nn.Conv2d``.

    Shape: (B, C, H, W) -> (B, C, H', W').
    """

    @property
    def geometry(self) -> Geometry | None:
        """What the kernels need to know of a layer with channel multiplier 1; None if the padding is not zeros, by numbers."""
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return None
        stride, kernel, padding, dilation = map(tuple, (self.stride, self.kernel_size, self.padding, self.dilation))
        return Geometry(stride, (kernel,), (padding,), (dilation,), False)  # type: ignore[arg-type]  # pairs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        geometry = self.geometry
        if x.dim() != 4 or geometry is None or is_written_down() or x.shape[1] != self.groups:
            return super().forward(x)
        weight, bias = self.weight, self.bias  # once: a parametrized one is computed whenever it is looked at
        if fits(geometry, x.shape[1], weight, bias):  # on small maps the way through Python shows: the shortest
            return depthwise_by_geometry(x, weight, bias, geometry)
        stride, padding, dilation = geometry.stride, geometry.paddings[0], geometry.dilations[0]
        return depthwise_conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)


def depthwise(
    channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    bias: bool = False,
) -> DepthwiseConv2d:
    """One filter a channel (Howard et al. 2017, MobileNets, Eq. 3).

    Args:
        padding: zeros on each side; the default keeps the size at stride 1 for an odd kernel.

    Shape: (B, C, H, W) -> (B, C, H', W'); H' = ceil(H / stride) for the default padding and an odd kernel.
    """
    pad = dilation * (kernel_size - 1) // 2 if padding is None else padding
    return DepthwiseConv2d(
        channels, channels, kernel_size, stride=stride, padding=pad, dilation=dilation, groups=channels, bias=bias
    )


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution: ``nn.Conv2d``, computed by the kernels or as a matrix product where that is faster (``pointwise_conv2d``).

    Shape: (B, C, H, W) -> (B, N, ceil(H / stride), ceil(W / stride)).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, H', W')."""
        return pointwise_conv2d(x, self.weight, self.bias, stride=self.stride[0])


def pointwise(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False) -> PointwiseConv2d:
    """1x1 convolution (Howard et al. 2017, MobileNets, section 3.1)."""
    return PointwiseConv2d(in_channels, out_channels, 1, stride=stride, bias=bias)


class ConvBNReLU(EndsInNorm):
    """k x k convolution ('same' padding), batch normalisation, ReLU.

    Args:
        pool: 2x2 max pooling as well (see ``BatchNormReLU``).
        bias: of the convolution; the normalisation undoes it, so it is off unless a published count holds it.
        eps: added to the variance.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) for an odd kernel; half with pool.

    Raises:
        ValueError: a channel count, the kernel size or the stride is less than 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        pool: bool = False,
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)
        self.bn = BatchNormReLU(out_channels, eps=eps, pool=pool)

    def pending(self, x: Tensor | Pending) -> Pending:
        """(B, in_channels, H, W) -> (B, out_channels, H', W'), to be pooled and normalised."""
        return Pending(self.conv(settle(x)), self.bn)
