"""Sun, Zhou, Zhang, He 2020: the network of dilated depthwise-separable convolutions (Fig. 1, 4, 5; Tables 1, 2, 3).

    nine layers of dilated depthwise 3x3, pointwise 1x1, BN, ReLU:

    width     32   64  128  256  512  512  1024 1024 1024
    stride     1    2    1    2    1    2    1    1    1     below 128 pixels: 32, 16, 16, 8, 8, 4, 4, 4, 4 a side
    stride     2    1    2    1    2    1    2    1    1     from 128 pixels: 112, 112, 56, 56, 28, 28, 14, 14, 14 of 224

    global average pooling, classifier: 30 layers as the paper counts them (9 dilated, 9 separable, 9 BN, pooling, FC, softmax).

Differs from the paper / our reading: widths, strides and the size of the images are not given; see the card, and
``DilatedSeparableBlock`` for the dilated rate. All pixels that an output sees lie a multiple of the dilation apart, so that rates
above 0 want large images: at 32x32, rate 2 (dilation 5) leaves 6x6 of them, at 224x224 45x45.
"""

from __future__ import annotations

from collections.abc import Sequence

from sepnet.models._card import ModelCard, PublishedCount
from sepnet.models._factory import register_model
from sepnet.models._network import SequentialNetwork, StagedNetwork, pyramid
from sepnet.models._size import check_sizes
from sepnet.nn.conv import check_positive
from sepnet.nn.head import PoolHead
from sepnet.nn.separable import DilatedSeparableBlock

__all__ = ["LARGE_STRIDES", "dilated_separable"]

WIDTHS = (32, 64, 128, 256, 512, 512, 1024, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1)
LARGE_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1)  # the best of four on validation, see LOG.md
LARGE = 128  # pixels a side


@register_model(
    ModelCard(
        paper="Sun, Zhou, Zhang, He 2020, A Lightweight Neural Network Combining Dilated and Depthwise Separable Convolution",
        where="Fig. 5, Tables 1 to 3",
        summary="nine dilated depthwise-separable layers",
        params_trainable=3_109_157,
        params_total=3_118_309,
        macs=60_265_472,
        readings=(
            "the widths are not given: 32, 64, 128, 256, 512, 512, 1024, 1024, 1024 give the published 3.1 M",
            "the strides are not given: chosen by short comparisons on a validation split of CIFAR-10, for images as they are and "
            "enlarged to 224x224",
            "the paper's rate d = 0, 1, 2, 3 covers 3, 7, 11, 15 pixels (Eq. 1), which is dilation 2d + 1 = 1, 3, 5, 7",
            "no normalisation between the dilated and the pointwise convolution (Fig. 4; 9 BN layers)",
        ),
        published=(PublishedCount("params_trainable", 3.1e6, "Table 1"),),
    )
)
def dilated_separable(
    *,
    rate: int = 2,
    strides: Sequence[int] | None = None,
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 32,
) -> StagedNetwork:
    """The network of Table 1. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        rate: the paper's dilated rate d of every layer, 0 to 3 in Table 2 (dilation 2d + 1).
        strides: of the nine layers; None for those that suit ``input_size``, see above.

    Raises:
        ValueError: a rate below 0, strides that are not nine positive integers, or images smaller than their product;
            the message shows the value.
    """
    if strides is None:
        check_positive(input_size=input_size)
        strides = LARGE_STRIDES if input_size >= LARGE else STRIDES
    if not isinstance(strides, Sequence) or isinstance(strides, str) or len(strides) != len(WIDTHS):
        raise ValueError(f"strides must be {len(WIDTHS)} integers, one a layer, got {strides!r}")
    for stride in strides:
        check_positive(stride=stride)
    levels = pyramid(WIDTHS, strides)
    check_sizes(in_channels, num_classes, input_size, least=levels[-1].reduction, what=f"a total stride of {levels[-1].reduction}")
    stages = [
        DilatedSeparableBlock(m, n, rate=rate, stride=stride)
        for m, n, stride in zip((in_channels, *WIDTHS), WIDTHS, strides, strict=False)
    ]
    head = PoolHead(WIDTHS[-1], num_classes)
    return SequentialNetwork(stages, head, levels, in_channels=in_channels, input_size=input_size, num_classes=num_classes)
