"""Wang et al. 2018: the multi-scale depthwise-separable networks, method 1 (concat) and method 2 (add). Table 1, Fig. 2.

    32x32 input
    unit 1   N = 32    -> 16x16, 32 channels (concat) or  64 (add)
    unit 2   N = 64    ->   8x8, 64                      128
    unit 3   N = 128   ->   4x4, 128                     256
    FC 384, FC 192, classifier

MNIST has two units (32, 64) on 28x28. Differs from the paper / our reading: see the card, and ``MultiScaleUnit``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from sepnet.models._card import ModelCard
from sepnet.models._factory import register_model
from sepnet.models._network import StagedNetwork
from sepnet.models._wang import PAPER, stack_units
from sepnet.nn.init import spread_shifts_
from sepnet.nn.multiscale import Border, Merge, MultiScaleUnit

__all__ = ["multiscale_add", "multiscale_concat"]

READINGS = (
    "the identity joins each branch before the pointwise convolution: the only arrangement that gives both 27 + 2N "
    "parameters per input channel (Table 2) and Table 1's output channels",
    "no nonlinearity between depthwise convolutions; BN and ReLU after the pointwise one; 2x2 max pooling ends a unit",
    "the stacked branch is zero-padded once by 2 before its first layer (border='once'), or by 1 at each layer (border='layer')",
)
NOTE = "Table 2 counts one input channel of each unit, 27 + 2N; Tables 3-6 print their sum over the units"


def _published(units: tuple[int, ...]) -> int:
    return sum(27 + 2 * n for n in units)


def _build(
    merge: Merge,
    units: Sequence[int],
    in_channels: int,
    num_classes: int,
    input_size: int,
    residual: bool,
    border: Border,
    spread: float,
) -> StagedNetwork:
    if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread < math.inf:
        raise ValueError(f"spread must be a number of at least 0, got {spread!r}")
    unit = partial(MultiScaleUnit, merge=merge, residual=residual, border=border)
    network = stack_units(unit, units, in_channels=in_channels, num_classes=num_classes, input_size=input_size)
    if spread:
        spread_shifts_(network.get_submodule("stages.0"), spread)
    return network


@register_model(
    ModelCard(
        paper=PAPER,
        where="method 1: Fig. 2a, Eq. 2, Table 1",
        summary="two depthwise scales, concatenated",
        params_trainable=886_459,
        params_total=886_907,
        macs=3_614_444,
        readings=READINGS,
        published_params=_published,
        published_note=NOTE,
    )
)
def multiscale_concat(
    *,
    units: Sequence[int] = (32, 64, 128),
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 32,
    residual: bool = True,
    border: Border = "once",
    spread: float = 0.0,
) -> StagedNetwork:
    """Method 1: branches concatenated (Eq. 2). Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        spread: of the first unit's initial shifts, see ``sepnet.nn.init.spread_shifts_``; 0 as published networks begin.
    """
    return _build("concat", units, in_channels, num_classes, input_size, residual, border, spread)


@register_model(
    ModelCard(
        paper=PAPER,
        where="method 2: Fig. 2b, Eq. 3, Table 1",
        summary="two depthwise scales, added",
        params_trainable=1_696_411,
        params_total=1_697_307,
        macs=6_870_124,
        readings=READINGS,
        published_params=_published,
        published_note=NOTE,
    )
)
def multiscale_add(
    *,
    units: Sequence[int] = (32, 64, 128),
    in_channels: int = 3,
    num_classes: int = 10,
    input_size: int = 32,
    residual: bool = True,
    border: Border = "once",
    spread: float = 0.0,
) -> StagedNetwork:
    """Method 2: branches added (Eq. 3). Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Args:
        spread: as for ``multiscale_concat``.
    """
    return _build("add", units, in_channels, num_classes, input_size, residual, border, spread)
