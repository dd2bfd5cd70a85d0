"""He et al. 2016, ResNet, and Xie et al. 2017, ResNeXt: the networks that Luo et al. compare DSRNet with.

              blocks            widths                  3x3 convolution
    ResNet    3, 4, 6 (23), 3   64, 128, 256, 512       standard
    ResNeXt   3, 4, 6 (23), 3   128, 256, 512, 1024     32 groups ("32x4d": of 4, 8, 16, 32 channels)

    stem 64 channels (see ``_residual``: imagenet, medium, small); block outputs 256, 512, 1024, 2048

State dicts are those of torchvision (which has no resnext101_32x4d; its names are the same).
"""

from __future__ import annotations

from torch import nn

from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import StagedNetwork
from sepnet.models._residual import ResidualNetwork, Stage
from sepnet.models._size import Stem

__all__ = ["resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x4d"]

RESNET = "He, Zhang, Ren, Sun 2016, Deep Residual Learning for Image Recognition"
RESNEXT = "Xie, Girshick, Dollar, Tu, He 2017, Aggregated Residual Transformations"
TORCHVISION = "torchvision's weight file"

STEM_READING = "for images below 128 pixels the first convolution is a 3x3 of stride 1, below 64 without pooling (stem)"
STRIDE_READING = (
    "the 3x3 convolution carries the stride, as in torchvision and in ResNeXt; in He et al. the first 1x1 does, "
    "which then reads a quarter of the map and saves 0.23e9 MACs"
)
STRIDE_DIFFERENCE = "the stride is in the 3x3 convolution here (torchvision: {}), in the first 1x1 there"


Widths = tuple[int, int, int, int]
RESNET_WIDTHS: Widths = (64, 128, 256, 512)
RESNEXT_WIDTHS: Widths = (128, 256, 512, 1024)


def _stages(depth: int, widths: Widths) -> tuple[Stage, ...]:
    """The four rows of Table 1; ``depth`` is the number of blocks in the third."""
    return (
        Stage(3, widths[0], 256, 1),  # 56x56 of a 224x224 image
        Stage(4, widths[1], 512, 2),  # 28x28
        Stage(depth, widths[2], 1024, 2),  # 14x14
        Stage(3, widths[3], 2048, 2),  # 7x7
    )


def _build(
    depth: int, widths: Widths, groups: int, stem: Stem | None, in_channels: int, num_classes: int, input_size: int
) -> StagedNetwork:
    def spatial(width: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)

    return ResidualNetwork(
        _stages(depth, widths),
        spatial,
        stem=stem,
        in_channels=in_channels,
        num_classes=num_classes,
        input_size=input_size,
    )


@register_model(
    ModelCard(
        paper=RESNET,
        where="Table 1, 50-layer",
        summary="residual, 16 bottlenecks",
        params_trainable=25_557_032,
        params_total=25_610_152,
        macs=4_089_184_256,
        native_size=(3, 224, 224),
        num_classes=1000,
        readings=(STRIDE_READING, STEM_READING),
        published=(
            PublishedCount("params_trainable", 25_557_032, TORCHVISION),
            PublishedCount("macs", 4.089e9, TORCHVISION),
            PublishedCount("macs", 3.8e9, "Table 1", STRIDE_DIFFERENCE.format("4.09e9")),
        ),
    )
)
def resnet50(*, stem: Stem | None = None, in_channels: int = 3, num_classes: int = 10, input_size: int = 224) -> StagedNetwork:
    """ResNet-50. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
    """
    return _build(6, RESNET_WIDTHS, 1, stem, in_channels, num_classes, input_size)


@register_model(
    ModelCard(
        paper=RESNET,
        where="Table 1, 101-layer",
        summary="residual, 33 bottlenecks",
        params_trainable=44_549_160,
        params_total=44_654_504,
        macs=7_801_405_440,
        native_size=(3, 224, 224),
        num_classes=1000,
        readings=(STRIDE_READING, STEM_READING),
        published=(
            PublishedCount("params_trainable", 44_549_160, TORCHVISION),
            PublishedCount("macs", 7.801e9, TORCHVISION),
            PublishedCount("macs", 7.6e9, "Table 1", STRIDE_DIFFERENCE.format("7.80e9")),
        ),
    )
)
def resnet101(*, stem: Stem | None = None, in_channels: int = 3, num_classes: int = 10, input_size: int = 224) -> StagedNetwork:
    """ResNet-101. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
    """
    return _build(23, RESNET_WIDTHS, 1, stem, in_channels, num_classes, input_size)


@register_model(
    ModelCard(
        paper=RESNEXT,
        where="Table 1, ResNeXt-50 (32x4d)",
        summary="residual, grouped, 16 bottlenecks",
        params_trainable=25_028_904,
        params_total=25_097_128,
        macs=4_230_479_872,
        native_size=(3, 224, 224),
        num_classes=1000,
        readings=(STEM_READING,),
        published=(
            PublishedCount("params_trainable", 25_028_904, TORCHVISION),
            PublishedCount("params_trainable", 25.0e6, "Table 1"),
            PublishedCount("macs", 4.23e9, TORCHVISION),
            PublishedCount("macs", 4.2e9, "Table 1"),
        ),
    )
)
def resnext50_32x4d(
    *, stem: Stem | None = None, in_channels: int = 3, num_classes: int = 10, input_size: int = 224
) -> StagedNetwork:
    """ResNeXt-50 (32x4d). Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
    """
    return _build(6, RESNEXT_WIDTHS, 32, stem, in_channels, num_classes, input_size)


@register_model(
    ModelCard(
        paper=RESNEXT,
        where="Table 1 with 23 blocks in the third stage, ResNeXt-101 (32x4d)",
        summary="residual, grouped, 33 bottlenecks",
        params_trainable=44_177_704,
        params_total=44_315_560,
        macs=7_969_996_800,
        native_size=(3, 224, 224),
        num_classes=1000,
        readings=(STEM_READING,),
        published=(
            PublishedCount("params_trainable", 44.18e6, "MMClassification's model zoo"),
            PublishedCount("macs", 8.03e9, "MMClassification's model zoo"),
        ),
    )
)
def resnext101_32x4d(
    *, stem: Stem | None = None, in_channels: int = 3, num_classes: int = 10, input_size: int = 224
) -> StagedNetwork:
    """ResNeXt-101 (32x4d). Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
    """
    return _build(23, RESNEXT_WIDTHS, 32, stem, in_channels, num_classes, input_size)
