"""Szegedy et al. 2015: GoogLeNet (Table 1), with batch normalisation as torchvision has it.

    stem      conv1            max pooling   total stride
    imagenet  7x7, stride 2    yes           32           the published network
    medium    3x3, stride 1    yes           16
    small     3x3, stride 1    no             8

    conv1 64, conv2 64, conv3 192, pooling, inception 3a-3b, pooling, 4a-4e, pooling, 5a-5b; global average pooling,
    dropout 0.4, classifier. Auxiliary classifiers on 4a and 4d while training (``aux``).

State-dict names are those of torchvision. Differs from the paper: see the card.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.kernels import global_average
from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import FeatureInfo, StagedNetwork
from sepnet.models._size import Stem, check_sizes, choose_stem
from sepnet.nn.conv import ConvBNReLU
from sepnet.nn.head import check_dropout
from sepnet.nn.inception import EPS, AuxiliaryHead, Inception

__all__ = ["googlenet"]

# Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj
TABLE_1 = {
    "3a": (64, 96, 128, 16, 32, 32),  # 28x28 of a 224x224 image
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),  # 14x14
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),  # 7x7
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY = {"inception4a": "aux1", "inception4d": "aux2"}
LEAST = {"small": 8, "medium": 16, "imagenet": 32}


class _Rescale(nn.Module):
    """From ImageNet's mean and deviation to 0.5 and 0.5, which torchvision's weights expect. Shape: (B, 3, H, W), kept."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("scale", (std / 0.5).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return x * self.get_buffer("scale") + self.get_buffer("shift")


class _GoogLeNet(StagedNetwork):
    """The network of ``googlenet``. While training with auxiliary heads it returns (logits, aux1's, aux2's)."""

    def __init__(
        self,
        layers: dict[str, nn.Module],
        levels: list[FeatureInfo],
        *,
        aux: bool,
        dropout: float,
        in_channels: int,
        num_classes: int,
        input_size: int,
    ) -> None:
        super().__init__(layers, levels, classifier="fc", in_channels=in_channels, input_size=input_size, num_classes=num_classes)
        self.auxiliary = AUXILIARY if aux else {}
        if aux:
            self.aux1 = AuxiliaryHead(_width("4a"), num_classes)
            self.aux2 = AuxiliaryHead(_width("4d"), num_classes)
        else:
            self.register_load_state_dict_pre_hook(_without_auxiliary)  # type: ignore[no-untyped-call]
        self.dropout = dropout
        self.fc = nn.Linear(levels[-1].channels, num_classes)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 1024, H, W) -> logits (B, num_classes), or the pooled features (B, 1024) with ``pre_logits``."""
        hidden = F.dropout(global_average(x), self.dropout, self.training)
        if pre_logits:
            return hidden
        logits: Tensor = self.fc(hidden)
        return logits

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]  # a tuple while training with aux
        """(B, in_channels, H, W) -> logits (B, num_classes); those of the auxiliary heads after them, while training."""
        if not (self.training and self.auxiliary):
            return super().forward(x)
        logits = []
        for name in self.layer_names:
            x = self.get_submodule(name)(x)
            if name in self.auxiliary:
                logits.append(self.get_submodule(self.auxiliary[name])(x))
        return (self.forward_head(x), *logits)


def _without_auxiliary(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A network without auxiliary heads takes the weights of one that has them, as torchvision's file does."""
    for key in [k for k in state if k.startswith((f"{prefix}aux1.", f"{prefix}aux2."))]:
        del state[key]


def _width(name: str) -> int:
    one, _, three, _, five, pool = TABLE_1[name]
    return one + three + five + pool


def _layers(
    in_channels: int, stem: Stem, large_kernel: int, transform_input: bool
) -> tuple[dict[str, nn.Module], list[FeatureInfo]]:
    """The layers by torchvision's names; levels are the last maps before each pooling, and inception 5b's."""
    published = stem == "imagenet"
    layers: dict[str, nn.Module] = {"rescale": _Rescale()} if transform_input else {}
    layers["conv1"] = ConvBNReLU(in_channels, 64, 7 if published else 3, stride=2 if published else 1, eps=EPS)
    reduction = 2 if published else 1
    levels = [FeatureInfo(64, reduction, "conv1")]
    if stem != "small":
        layers["maxpool1"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        reduction *= 2
    layers["conv2"] = ConvBNReLU(64, 64, eps=EPS)
    layers["conv3"] = ConvBNReLU(64, 192, 3, eps=EPS)
    levels.append(FeatureInfo(192, reduction, "conv3"))
    channels = 192
    for number, group in ((2, ("3a", "3b")), (3, ("4a", "4b", "4c", "4d", "4e")), (4, ("5a", "5b"))):
        layers[f"maxpool{number}"] = nn.MaxPool2d(2 if number == 4 else 3, stride=2, ceil_mode=True)
        reduction *= 2
        for name in group:
            layers[f"inception{name}"] = Inception(channels, *TABLE_1[name], large_kernel=large_kernel)
            channels = _width(name)
        levels.append(FeatureInfo(channels, reduction, f"inception{group[-1]}"))
    return layers, levels


@register_model(
    ModelCard(
        paper="Szegedy et al. 2015, Going Deeper with Convolutions",
        where="Table 1",
        summary="nine inception modules",
        params_trainable=6_624_904,
        params_total=6_639_464,
        macs=1_498_376_192,
        native_size=(3, 224, 224),
        num_classes=1000,
        readings=(
            "BN after every convolution instead of local response normalisation, as in torchvision",
            "a 3x3 kernel where Table 1 says 5x5, as in torchvision's weights; large_kernel=5 is the paper's (7.0 M parameters)",
            "counts are without the auxiliary heads (aux=True adds 6.4 M), which work in training only",
            "for images below 128 pixels the first convolution is a 3x3 of stride 1, below 64 without pooling after it (stem)",
        ),
        published=(
            PublishedCount("params_trainable", 6_624_904, "torchvision's weight file, without auxiliary heads"),
            PublishedCount("macs", 1.498e9, "torchvision's weight file"),
            PublishedCount("macs", 1.5e9, "section 1"),
            PublishedCount(
                "params_trainable",
                6.8e6,
                "Sun et al. 2020, Table 1",
                "the sum of Table 1's column of Szegedy et al., 6,798 K: K is 1,024 there (6.96 M), and the kernels are 5x5, "
                "3x3 here; large_kernel=5 has 7.0 M",
            ),
        ),
    )
)
def googlenet(
    *,
    stem: Stem | None = None,
    aux: bool = False,
    large_kernel: int = 3,
    dropout: float = 0.4,
    transform_input: bool = False,
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 224,
) -> StagedNetwork:
    """GoogLeNet. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.
        aux: auxiliary classifiers; while training, the network then returns (logits, aux1's, aux2's).
        large_kernel: 5 as in the paper, or 3 as in torchvision's weights.
        dropout: part of the pooled features that training sets to zero.
        transform_input: images are normalised with ImageNet's mean and deviation, the weights (torchvision's) want 0.5 and 0.5.

    Raises:
        ValueError: images smaller than the total stride (8, 16, 32), an unknown stem, another kernel, a dropout outside
            [0, 1), or transform_input for images that are not of 3 channels; the message shows the value.
    """
    stem = choose_stem(stem, input_size)
    check_sizes(in_channels, num_classes, input_size, least=LEAST[stem], what=f"the {stem} stem")
    check_dropout(dropout)
    if large_kernel not in (3, 5):
        raise ValueError(f"large_kernel must be 3 or 5, got {large_kernel!r}")
    for name, value in (("aux", aux), ("transform_input", transform_input)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")
    if transform_input and in_channels != 3:
        raise ValueError(f"transform_input is for images of 3 channels, got in_channels {in_channels}")
    layers, levels = _layers(in_channels, stem, large_kernel, transform_input)
    return _GoogLeNet(
        layers, levels, aux=aux, dropout=dropout, num_classes=num_classes, in_channels=in_channels, input_size=input_size
    )
