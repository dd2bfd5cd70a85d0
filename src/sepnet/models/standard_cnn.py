"""Tseng and Kao 2020, Table 1: the standard convolutional network that the separable one is compared with.

    conv 3x3, 32, ReLU, 2x2 max pooling   -> 16x16
    conv 3x3, 64                          ->   8x8
    conv 3x3, 128                         ->   4x4
    FC 1024, ReLU, dropout 0.5, classifier

2,201,674 parameters for 10 classes, as published. Our reading: weights as Keras makes them (Glorot, biases of zero), as
the paper's were; the pooling of "stride 1" in Table 1 halves the map, as its sizes show.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import FeatureInfo, SequentialNetwork, StagedNetwork
from sepnet.models._size import check_sizes
from sepnet.nn.head import FlattenMLPHead
from sepnet.nn.init import glorot_

__all__ = ["standard_cnn"]

WIDTHS = (32, 64, 128)
HIDDEN = 1024
LEAST = 2 ** len(WIDTHS)


class _Stage(nn.Module):
    """3x3 convolution with bias, ReLU, 2x2 max pooling. Shape: (B, C, H, W) -> (B, N, H//2, W//2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, H//2, W//2)."""
        return F.relu(F.max_pool2d(self.conv(x), 2), inplace=True)  # the two commute; ReLU costs a quarter after pooling


@register_model(
    ModelCard(
        paper="Tseng, Kao 2020, A Study of Image Recognition for Standard Convolution and Depthwise Separable Convolution",
        where="Table 1",
        summary="three standard 3x3 convolutions, FC 1024",
        params_trainable=2_201_674,
        params_total=2_201_674,
        macs=12_429_312,
        readings=(
            "Table 1 gives the poolings stride 1; its map sizes are those of stride 2",
            "weights begin as Keras makes them (Glorot, biases of zero), as the paper's did",
        ),
        published=(PublishedCount("params_total", 2_201_674, "section 4.2"),),
    )
)
def standard_cnn(*, in_channels: int = 3, num_classes: int = 10, input_size: int = 32, dropout: float = 0.5) -> StagedNetwork:
    """The standard network. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        dropout: part of the 1024 hidden values that training sets to zero.

    Raises:
        ValueError: images smaller than 8x8, or another size or dropout that cannot be; the message shows the value.
    """
    check_sizes(in_channels, num_classes, input_size, least=LEAST)
    stages = [_Stage(m, n) for m, n in zip((in_channels, *WIDTHS), WIDTHS, strict=False)]
    levels = [FeatureInfo(n, 2 ** (i + 1), f"stages.{i}") for i, n in enumerate(WIDTHS)]
    head = FlattenMLPHead(WIDTHS[-1] * (input_size // LEAST) ** 2, num_classes, (HIDDEN,), dropout=dropout)
    network = SequentialNetwork(stages, head, levels, in_channels=in_channels, input_size=input_size, num_classes=num_classes)
    glorot_(network)
    return network
