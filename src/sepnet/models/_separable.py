"""What MobileNet and its descendants share: a 3x3 convolution, then depthwise-separable blocks by a table of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sepnet.models._network import SequentialNetwork, StagedNetwork, pyramid
from sepnet.models._size import check_sizes
from sepnet.nn.conv import ConvBNReLU
from sepnet.nn.head import PoolHead
from sepnet.nn.separable import SeparableBlock

__all__ = ["Row", "separable_network"]


@dataclass(frozen=True)
class Row:
    """One row of the table: output channels and stride."""

    width: int
    stride: int


def separable_network(
    rows: Sequence[Row], *, in_channels: int, num_classes: int, input_size: int, bias: bool = False
) -> StagedNetwork:
    """The first row as a 3x3 convolution with BN and ReLU, the others as ``SeparableBlock``; global average pooling, classifier.

    Args:
        bias: of every convolution.

    Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Raises:
        ValueError: a size less than 1, or images smaller than the product of the strides; the message shows the value.
    """
    widths, strides = [row.width for row in rows], [row.stride for row in rows]
    levels = pyramid(widths, strides)
    check_sizes(in_channels, num_classes, input_size, least=levels[-1].reduction, what=f"a total stride of {levels[-1].reduction}")
    stages: list[nn.Module] = [ConvBNReLU(in_channels, widths[0], 3, stride=strides[0], bias=bias)]
    for channels, row in zip(widths, rows[1:], strict=False):
        stages.append(SeparableBlock(channels, row.width, stride=row.stride, bias=bias))
    head = PoolHead(widths[-1], num_classes)
    return SequentialNetwork(stages, head, levels, in_channels=in_channels, input_size=input_size, num_classes=num_classes)
