"""Wang et al. 2018, baseline: the paper's layout (Table 1) with inception units (Fig. 3c)."""

from __future__ import annotations

from collections.abc import Sequence

from sepnet.models._card import ModelCard
from sepnet.models._factory import register_model
from sepnet.models._network import StagedNetwork
from sepnet.models._wang import PAPER, stack_units
from sepnet.nn.units import InceptionUnit

__all__ = ["googlenet_units"]


def _published(units: tuple[int, ...]) -> int:
    return sum(38 * n for n in units)


@register_model(
    ModelCard(
        paper=PAPER,
        where="baseline: Fig. 3c, Table 2",
        summary="inception units",
        params_trainable=6_576_074,
        params_total=6_577_226,
        macs=86_452_096,
        min_size=4,
        readings=(
            "four branches of width N each, BN and ReLU after every convolution, 3x3 max pooling before the last; two units",
        ),
        published_params=_published,
        published_note=(
            "Table 2 counts 38N for one input channel of a unit (1216 for N = 32); "
            "the 6640 of Tables 3-6 follows from no choice of widths we found"
        ),
    )
)
def googlenet_units(
    *,
    units: Sequence[int] = (32, 64),
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 32,
) -> StagedNetwork:
    """The baseline. Shape: (B, in_channels, input_size, input_size) -> (B, num_classes)."""
    return stack_units(InceptionUnit, units, in_channels=in_channels, num_classes=num_classes, input_size=input_size)
