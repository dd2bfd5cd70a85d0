"""What ResNet, ResNeXt and DSRNet share: a stem, four stages of bottlenecks, global average pooling, classifier.

The stems, by the side of the images that they suit (``choose_stem``):

    imagenet   7x7 convolution of stride 2, 3x3 max pooling of stride 2   224 -> 56   (the published one)
    medium     3x3 convolution of stride 1, 3x3 max pooling of stride 2    64 -> 32
    small      3x3 convolution of stride 1                                 32 -> 32

State-dict names are those of torchvision: conv1, bn1, layer1.0.conv1, ..., layer4, fc.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sepnet.kernels import global_average
from sepnet.models._network import FeatureInfo, StagedNetwork
from sepnet.models._size import Stem, check_sizes, choose_stem
from sepnet.nn.init import he_normal_
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.residual import Bottleneck

__all__ = ["ResidualNetwork", "Stage"]

STEM_WIDTH = 64


@dataclass(frozen=True)
class Stage:
    """One row of the table: how many bottlenecks, their inner width, their output channels, the stride of the first."""

    blocks: int
    width: int
    out_channels: int
    stride: int


class ResidualNetwork(StagedNetwork):
    """Stem, stages of bottlenecks, global average pooling, classifier.

    Args:
        stages: the rows of the table.
        spatial: (width, stride) -> the 3x3 convolution of a bottleneck.
        stem: see the head of this file; None chooses by ``input_size``.
        stem_dilation: of the 7x7 convolution.

    Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Raises:
        ValueError: an unknown stem, a count less than 1, or images smaller than the total stride; the message shows the value.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        spatial: Callable[[int, int], nn.Conv2d],
        *,
        stem: Stem | None,
        in_channels: int,
        num_classes: int,
        input_size: int,
        stem_dilation: int = 1,
    ) -> None:
        stem = choose_stem(stem, input_size)
        least = {"small": 8, "medium": 16, "imagenet": 32}[stem]
        check_sizes(in_channels, num_classes, input_size, least=least, what=f"the {stem} stem")
        layers: dict[str, nn.Module] = {"conv1": _first_convolution(in_channels, stem, stem_dilation)}
        layers["bn1"] = BatchNormReLU(STEM_WIDTH)
        reduction = 2 if stem == "imagenet" else 1
        levels = [FeatureInfo(STEM_WIDTH, reduction, "bn1")]
        if stem != "small":
            layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
            reduction *= 2
        channels = STEM_WIDTH
        for i, stage in enumerate(stages, start=1):
            layers[f"layer{i}"] = _blocks(channels, stage, spatial)
            channels, reduction = stage.out_channels, reduction * stage.stride
            levels.append(FeatureInfo(channels, reduction, f"layer{i}"))
        super().__init__(layers, levels, classifier="fc", in_channels=in_channels, input_size=input_size, num_classes=num_classes)
        self.fc = nn.Linear(channels, num_classes)
        he_normal_(self)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes), or the pooled features (B, C) with ``pre_logits``."""
        hidden = global_average(x)
        if pre_logits:
            return hidden
        logits: Tensor = self.fc(hidden)
        return logits


def _first_convolution(in_channels: int, stem: Stem, dilation: int) -> nn.Conv2d:
    if stem == "imagenet":
        return nn.Conv2d(in_channels, STEM_WIDTH, 7, stride=2, padding=3 * dilation, dilation=dilation, bias=False)
    return nn.Conv2d(in_channels, STEM_WIDTH, 3, padding=1, bias=False)


def _blocks(in_channels: int, stage: Stage, spatial: Callable[[int, int], nn.Conv2d]) -> nn.Sequential:
    first = Bottleneck(in_channels, stage.out_channels, spatial(stage.width, stage.stride))
    others = [Bottleneck(stage.out_channels, stage.out_channels, spatial(stage.width, 1)) for _ in range(stage.blocks - 1)]
    return nn.Sequential(first, *others)
