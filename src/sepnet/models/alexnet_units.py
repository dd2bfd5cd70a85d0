"""Wang et al. 2018, baseline: the paper's layout (Table 1) with standard 3x3 convolutions (Fig. 3a)."""

from __future__ import annotations

from collections.abc import Sequence

from sepnet.models._card import ModelCard
from sepnet.models._factory import register_model
from sepnet.models._network import StagedNetwork
from sepnet.models._wang import PAPER, stack_units
from sepnet.nn.units import StandardUnit

__all__ = ["alexnet_units"]


def _published(units: tuple[int, ...]) -> int:
    return sum(9 * n for n in units)


@register_model(
    ModelCard(
        paper=PAPER,
        where="baseline: Fig. 3a, Table 2",
        summary="standard 3x3 convolutions",
        params_trainable=956_138,
        params_total=956_586,
        macs=11_184_000,
        readings=("BN and ReLU after the convolution, 2x2 max pooling ends a unit",),
        published_params=_published,
        published_note="Table 2 counts one input channel of each unit; Tables 3-6 print the sum over the units",
    )
)
def alexnet_units(
    *,
    units: Sequence[int] = (32, 64, 128),
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 32,
) -> StagedNetwork:
    """The baseline. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes)."""
    return stack_units(StandardUnit, units, in_channels=in_channels, num_classes=num_classes, input_size=input_size)
