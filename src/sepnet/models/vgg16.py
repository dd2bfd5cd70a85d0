"""Simonyan and Zisserman 2015: VGG-16 (Table 1, configuration D).

    3x3 convolutions with ReLU; 2x2 max pooling after each row     224x224   64x64   32x32
    64, 64                                                         -> 112       32      16
    128, 128                                                       ->  56       16       8
    256, 256, 256                                                  ->  28        8       4
    512, 512, 512                                                  ->  14        4       2
    512, 512, 512                                                  ->   7        2       1
    FC 4096, dropout 0.5, FC 4096, dropout 0.5, classifier

The convolutions suit any size; the stem says how large a map the first fully connected layer reads: "imagenet" 7x7,
"medium" 2x2, "small" 1x1 (a map of another size is averaged to that). State-dict names are those of torchvision.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import FeatureInfo, StagedNetwork
from sepnet.models._size import Stem, check_sizes, choose_stem
from sepnet.nn.head import check_dropout
from sepnet.nn.init import he_normal_

__all__ = ["vgg16"]

CONFIGURATION_D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
GRID = {"small": 1, "medium": 2, "imagenet": 7}
HIDDEN = 4096
LEAST = 2 ** len(CONFIGURATION_D)


class _VGG(StagedNetwork):
    """The network of ``vgg16``."""

    def __init__(self, stem: Stem, dropout: float, in_channels: int, num_classes: int, input_size: int) -> None:
        layers, levels = _features(in_channels)
        super().__init__(
            layers, levels, classifier="classifier.6", in_channels=in_channels, input_size=input_size, num_classes=num_classes
        )
        self.grid = GRID[stem]
        self.classifier = nn.Sequential(
            nn.Linear(levels[-1].channels * self.grid**2, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, num_classes),
        )
        he_normal_(self)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 512, H, W) -> logits (B, num_classes), or the second hidden layer (B, 4096) with ``pre_logits``."""
        hidden = F.adaptive_avg_pool2d(x, self.grid).flatten(1)
        y: Tensor = (self.classifier[:-1] if pre_logits else self.classifier)(hidden)
        return y


def _features(channels: int) -> tuple[dict[str, nn.Module], list[FeatureInfo]]:
    """The layers by torchvision's names; levels are the last maps before each pooling, and the last pooling's."""
    layers: list[nn.Module] = []
    levels = []
    for i, widths in enumerate(CONFIGURATION_D):
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        levels.append(FeatureInfo(channels, 2**i, f"features.{len(layers) - 1}"))
        layers.append(nn.MaxPool2d(2))
    levels.append(FeatureInfo(channels, LEAST, f"features.{len(layers) - 1}"))
    return {f"features.{i}": layer for i, layer in enumerate(layers)}, levels


@register_model(
    ModelCard(
        paper="Simonyan, Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition",
        where="Table 1, configuration D",
        summary="13 standard 3x3 convolutions, 3 fully connected layers",
        params_trainable=138_357_544,
        params_total=138_357_544,
        macs=15_470_264_320,
        native_size=(3, 224, 224),
        num_classes=1000,
        min_size=LEAST,
        readings=(
            "He's initialisation, with which 16 layers without normalisation can be trained at once; the paper began with 11",
            "for images below 128 pixels the first fully connected layer reads a 2x2 map, below 64 a 1x1 map, not 7x7 (stem)",
        ),
        published=(
            PublishedCount("params_trainable", 138e6, "Table 2; Sun et al. 2020, Table 1"),
            PublishedCount("params_trainable", 138_357_544, "torchvision's weight file"),
            PublishedCount("macs", 15.47e9, "torchvision's weight file"),
        ),
    )
)
def vgg16(
    *,
    stem: Stem | None = None,
    dropout: float = 0.5,
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 224,
) -> StagedNetwork:
    """VGG-16 without batch normalisation. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
        dropout: part of each hidden layer's values that training sets to zero.

    Raises:
        ValueError: images smaller than 32x32, an unknown stem, or a dropout outside [0, 1); the message shows the value.
    """
    check_sizes(in_channels, num_classes, input_size, least=LEAST)
    check_dropout(dropout)
    return _VGG(choose_stem(stem, input_size), dropout, in_channels, num_classes, input_size)
