"""Wang et al. 2018, baseline: the paper's layout (Table 1) with depthwise-separable 3x3 convolutions (Fig. 3b)."""

from __future__ import annotations

from collections.abc import Sequence

from sepnet.models._card import ModelCard
from sepnet.models._factory import register_model
from sepnet.models._network import StagedNetwork
from sepnet.models._wang import PAPER, stack_units
from sepnet.nn.units import SeparableUnit

__all__ = ["mobilenet_units"]


def _published(units: tuple[int, ...]) -> int:
    return sum(n + 9 for n in units)


@register_model(
    ModelCard(
        paper=PAPER,
        where="baseline: Fig. 3b, Table 2",
        summary="depthwise-separable 3x3 convolutions",
        params_trainable=874_341,
        params_total=874_789,
        macs=2_147_200,
        readings=("one BN and ReLU after the pointwise convolution, as in the multi-scale unit; 2x2 max pooling ends a unit",),
        published_params=_published,
        published_note="Table 2 counts one input channel of each unit; Tables 3-6 print the sum over the units",
    )
)
def mobilenet_units(
    *,
    units: Sequence[int] = (32, 64, 128),
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 32,
) -> StagedNetwork:
    """The baseline. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes)."""
    return stack_units(SeparableUnit, units, in_channels=in_channels, num_classes=num_classes, input_size=input_size)
