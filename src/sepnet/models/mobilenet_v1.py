"""Howard et al. 2017: MobileNet (Table 1), with the width multiplier; the resolution multiplier is the size of the images.

    stem       first convolution   block 128   total stride   224 -> 7, 64 -> 4, 32 -> 4
    imagenet   stride 2            stride 2    32             the published network
    medium     stride 1            stride 2    16
    small      stride 1            stride 1     8

The weights fit all stems. torchvision has no MobileNet of this version.
"""

from __future__ import annotations

from dataclasses import replace

from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import StagedNetwork
from sepnet.models._separable import Row, separable_network
from sepnet.models._size import Stem, choose_stem

__all__ = ["mobilenet_v1"]

TABLE_1 = (
    Row(32, 2),  # 112x112 of a 224x224 image; standard convolution
    Row(64, 1),
    Row(128, 2),  # 56x56
    Row(128, 1),
    Row(256, 2),  # 28x28
    Row(256, 1),
    Row(512, 2),  # 14x14
    *[Row(512, 1)] * 5,
    Row(1024, 2),  # 7x7
    Row(1024, 1),
)
FIRST, BLOCK_128 = 0, 2
LEAST_WIDTH = 8


def _rows(width: float, stem: Stem) -> list[Row]:
    rows = [replace(row, width=max(LEAST_WIDTH, int(row.width * width))) for row in TABLE_1]
    if stem != "imagenet":
        rows[FIRST] = replace(rows[FIRST], stride=1)
    if stem == "small":
        rows[BLOCK_128] = replace(rows[BLOCK_128], stride=1)
    return rows


@register_model(
    ModelCard(
        paper="Howard et al. 2017, MobileNets",
        where="Table 1",
        summary="depthwise-separable, 13 blocks",
        params_trainable=4_231_976,
        params_total=4_253_864,
        macs=568_740_352,
        native_size=(3, 224, 224),
        num_classes=1000,
        readings=(
            "the last block has stride 1: the stride 2 that Table 1 prints would leave 4x4, and the table says 7x7",
            "the resolution multiplier is the size of the images: input_size=192, 160, 128 for 6/7, 5/7, 4/7",
            "for images below 128 pixels the first strides are left out (stem)",
        ),
        published=(
            PublishedCount("params_trainable", 4.2e6, "Table 6; Sun et al. 2020, Table 1"),
            PublishedCount("macs", 569e6, "Table 6"),
        ),
    )
)
def mobilenet_v1(
    *,
    width: float = 1.0,
    stem: Stem | None = None,
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 224,
) -> StagedNetwork:
    """MobileNet. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        width: the multiplier alpha of every layer's channels, 1, 0.75, 0.5 or 0.25 in the paper; no layer gets fewer than 8.
        stem: "small", "medium" or "imagenet"; None chooses by ``input_size``.

    Raises:
        ValueError: a width that is no number above 0 and up to 16, an unknown stem, or images smaller than the total
            stride; the message shows the value.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 16:
        raise ValueError(f"width must be a number above 0 and up to 16, got {width!r}")
    rows = _rows(width, choose_stem(stem, input_size))
    return separable_network(rows, in_channels=in_channels, num_classes=num_classes, input_size=input_size)
