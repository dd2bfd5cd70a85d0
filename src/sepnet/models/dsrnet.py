"""Luo, Kuang, Liu, Ma: DSRNet, ResNet-50's layout with dilated depthwise convolutions (Fig. 1, Table 1).

                            as counted          as printed
    stem      64 channels, see ``_residual``; the paper's is "imagenet", its 7x7 convolution of dilation 3
    layer1    3 blocks     128 ->  256          64 ->  256
    layer2    4            256 ->  512         128 ->  512
    layer3    6            512 -> 1024         256 -> 1024
    layer4    3           1024 -> 2048         512 -> 2048
    global average pooling, classifier

    block: 1x1 to the width, depthwise 3x3, 1x1 to four (two) times the width, each with BN, ReLU; shortcut, ReLU

Differs from the paper / our reading: see the card.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import StagedNetwork
from sepnet.models._residual import ResidualNetwork, Stage
from sepnet.models._size import Stem
from sepnet.nn.conv import depthwise

__all__ = ["dsrnet50", "dsrnet50_printed"]

COUNTED = (
    Stage(3, 128, 256, 1),  # 56x56 of a 224x224 image; 32x32 of a 32x32 one
    Stage(4, 256, 512, 2),  # 28x28                     16x16
    Stage(6, 512, 1024, 2),  # 14x14                     8x8
    Stage(3, 1024, 2048, 2),  # 7x7                      4x4
)
PRINTED = (
    Stage(3, 64, 256, 1),
    Stage(4, 128, 512, 2),
    Stage(6, 256, 1024, 2),
    Stage(3, 512, 2048, 2),
)

PAPER = "Luo, Kuang, Liu, Ma, DSRNet: A Novel Feature Extraction Network achieving trade off between accuracy and speed"
READINGS = (
    "the widths of Table 1 (64, 128, 256, 512) give 12.4 M parameters for 100 classes (12.2 M for 10), the paper counts 21.9 M: "
    "the widths of ResNeXt-50 (128, 256, 512, 1024) give that; as counted: dsrnet50, as printed: dsrnet50_printed",
    "'1x1, 64' in conv5 is a misprint of 512, which stands beside it as Dw",
    "dilating a 1x1 convolution does nothing: dilation and stride belong to the depthwise 3x3; "
    "dilation 2 where a stage halves the map",
    "the stem is Table 1's for images of 128 pixels and more (stem='imagenet': 7x7, stride 2, dilation 3, pooling); what the "
    "paper had for 32x32 is not said: here stem='small', a 3x3 convolution of stride 1 without dilation",
)
SOURCE = "conclusion and Fig. 2"


def _dilated_depthwise(width: int, stride: int) -> nn.Conv2d:
    return depthwise(width, stride=stride, dilation=2 if stride > 1 else 1)


def _build(stages: Sequence[Stage], stem: Stem | None, in_channels: int, num_classes: int, input_size: int) -> StagedNetwork:
    return ResidualNetwork(
        stages,
        _dilated_depthwise,
        stem=stem,
        stem_dilation=3,
        in_channels=in_channels,
        num_classes=num_classes,
        input_size=input_size,
    )


@register_model(
    ModelCard(
        paper=PAPER,
        where="Table 1, as counted in Fig. 2",
        summary="ResNet-50 with dilated depthwise convolutions, as counted",
        params_trainable=21_838_116,
        params_total=21_906_340,
        macs=4_022_262_784,
        native_size=(3, 224, 224),
        num_classes=100,
        readings=READINGS,
        published=(PublishedCount("params_total", 2.19e7, SOURCE),),
    )
)
def dsrnet50(*, stem: Stem | None = None, in_channels: int = 3, num_classes: int = 10, input_size: int = 224) -> StagedNetwork:
    """DSRNet of 21.9 M parameters. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
    """
    return _build(COUNTED, stem, in_channels, num_classes, input_size)


@register_model(
    ModelCard(
        paper=PAPER,
        where="Table 1, as printed",
        summary="ResNet-50 with dilated depthwise convolutions, as printed",
        params_trainable=12_429_668,
        params_total=12_482_788,
        macs=2_250_071_552,
        native_size=(3, 224, 224),
        num_classes=100,
        readings=READINGS,
        published=(
            PublishedCount("params_total", 2.19e7, SOURCE, "the printed widths give 12.5 M; those of dsrnet50 give 21.9 M"),
        ),
    )
)
def dsrnet50_printed(
    *, stem: Stem | None = None, in_channels: int = 3, num_classes: int = 10, input_size: int = 224
) -> StagedNetwork:
    """DSRNet of Table 1's widths. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
    """
    return _build(PRINTED, stem, in_channels, num_classes, input_size)
