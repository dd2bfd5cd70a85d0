"""Iandola et al. 2016: SqueezeNet 1.0 (Table 1, Fig. 2 left).

    stem      first convolution            first pooling   total stride
    imagenet  7x7, 96, stride 2, no border  3x3, stride 2  16            the published network: 224 -> 109, 54, 27, 13
    medium    3x3, 96, stride 1             3x3, stride 2   8            64 -> 64, 32, 16, 8
    small     3x3, 96, stride 1             none            4            32 -> 32, 32, 16, 8

    fire 2, 3, 4, pooling, fire 5, 6, 7, 8, pooling, fire 9; dropout 0.5, 1x1 convolution to the classes, ReLU, global
    average pooling.

State-dict names are those of torchvision.
"""

from __future__ import annotations

from torch import Tensor, nn

from sepnet.kernels import global_average
from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import FeatureInfo, StagedNetwork
from sepnet.models._size import Stem, check_sizes, choose_stem
from sepnet.nn.fire import Fire
from sepnet.nn.head import check_dropout
from sepnet.nn.init import he_normal_

__all__ = ["squeezenet"]

STEM_WIDTH = 96
LEAST = {"small": 4, "medium": 8, "imagenet": 21}


class _SqueezeNet(StagedNetwork):
    """The network of ``squeezenet``."""

    def __init__(self, stem: Stem, dropout: float, in_channels: int, num_classes: int, input_size: int) -> None:
        layers, levels = _features(in_channels, stem)
        super().__init__(
            layers, levels, classifier="classifier.1", in_channels=in_channels, input_size=input_size, num_classes=num_classes
        )
        classifier = nn.Conv2d(levels[-1].channels, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), classifier, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
        he_normal_(self)
        nn.init.normal_(classifier.weight, std=0.01)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 512, H, W) -> logits (B, num_classes), or with ``pre_logits`` the averaged map (B, 512).

        The classifier is a convolution with ReLU that stands before the average, so the logits are no function of the latter.
        """
        y: Tensor = global_average(x) if pre_logits else self.classifier(x).flatten(1)
        return y


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _features(in_channels: int, stem: Stem) -> tuple[dict[str, nn.Module], list[FeatureInfo]]:
    """The layers by torchvision's names; levels are the last maps before each pooling, and fire 9's."""
    published = stem == "imagenet"
    first = nn.Conv2d(in_channels, STEM_WIDTH, 7, stride=2) if published else nn.Conv2d(in_channels, STEM_WIDTH, 3, padding=1)
    layers = (
        first,
        nn.ReLU(inplace=True),  # level 0
        nn.Identity() if stem == "small" else _pool(),
        Fire(96, 16, 64),
        Fire(128, 16, 64),
        Fire(128, 32, 128),  # level 1
        _pool(),
        Fire(256, 32, 128),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),  # level 2
        _pool(),
        Fire(512, 64, 256),  # level 3
    )
    after_stem = 2 if published else 1
    after_pool = after_stem if stem == "small" else 2 * after_stem
    levels = [
        FeatureInfo(STEM_WIDTH, after_stem, "features.1"),
        FeatureInfo(256, after_pool, "features.5"),
        FeatureInfo(512, 2 * after_pool, "features.10"),
        FeatureInfo(512, 4 * after_pool, "features.12"),
    ]
    return {f"features.{i}": layer for i, layer in enumerate(layers)}, levels


@register_model(
    ModelCard(
        paper="Iandola et al. 2016, SqueezeNet",
        where="Table 1, version 1.0",
        summary="eight Fire modules",
        params_trainable=1_248_424,
        params_total=1_248_424,
        macs=818_924_576,
        native_size=(3, 224, 224),
        num_classes=1000,
        min_size=LEAST["small"],
        readings=(
            "no bypass connections (Fig. 2, left)",
            "He's initialisation, the classifier's weights of deviation 0.01",
            "for images below 128 pixels the first convolution is a 3x3 of stride 1, below 64 without pooling after it (stem)",
        ),
        published=(
            PublishedCount("params_trainable", 1_248_424, "Table 1, before pruning; torchvision's weight file"),
            PublishedCount("params_trainable", 1.25e6, "Sun et al. 2020, Table 1"),
            PublishedCount("macs", 0.819e9, "torchvision's weight file"),
        ),
    )
)
def squeezenet(
    *,
    stem: Stem | None = None,
    dropout: float = 0.5,
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 224,
) -> StagedNetwork:
    """SqueezeNet 1.0. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
        dropout: part of fire 9's values that training sets to zero.

    Raises:
        ValueError: images smaller than the stem takes (4, 8, 21 pixels), an unknown stem, or a dropout outside [0, 1); the
            message shows the value.
    """
    stem = choose_stem(stem, input_size)
    check_sizes(in_channels, num_classes, input_size, least=LEAST[stem], what=f"the {stem} stem")
    check_dropout(dropout)
    return _SqueezeNet(stem, dropout, in_channels, num_classes, input_size)
