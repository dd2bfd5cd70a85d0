"""What the five networks of Wang et al. 2018 share: units that halve the map, then FC 384, FC 192, classifier (Table 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from sepnet.models._network import FeatureInfo, SequentialNetwork, StagedNetwork
from sepnet.nn.conv import check_positive
from sepnet.nn.head import FlattenMLPHead

__all__ = ["PAPER", "UnitLike", "stack_units"]

PAPER = "Wang, Yuan, Li, Liu 2018, IPSJ Transactions on Computer Vision and Applications 10:11"


class UnitLike(Protocol):
    """A module (B, C, H, W) -> (B, out_channels, H//2, W//2)."""

    out_channels: int

    def __call__(self, x: Tensor) -> Tensor:
        """Run the unit."""
        ...


def stack_units(
    unit: Callable[[int, int], UnitLike],
    units: Sequence[int],
    *,
    in_channels: int,
    num_classes: int,
    input_size: int,
) -> StagedNetwork:
    """Units of the given widths one after the other, each halving the map, then the paper's head.

    Args:
        unit: (in_channels, width) -> module.
        units: widths N, one a unit.

    Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Raises:
        ValueError: units that are no list of widths, or no unit at all, or an input too small to be halved that often; the
            message shows the values.
    """
    if not isinstance(units, Sequence) or isinstance(units, str):
        raise ValueError(f"units must be a list of widths, got {units!r}")
    widths = tuple(units)
    check_positive(in_channels=in_channels, num_classes=num_classes, input_size=input_size)
    if not widths:
        raise ValueError("units must name at least one width, got ()")
    if input_size < 2 ** len(widths):
        raise ValueError(f"input_size {input_size} is too small for {len(widths)} units: at least {2 ** len(widths)}")
    stages: list[nn.Module] = []
    info: list[FeatureInfo] = []
    channels, size = in_channels, input_size
    for i, width in enumerate(widths):
        stage = unit(channels, width)
        channels, size = stage.out_channels, size // 2
        stages.append(cast(nn.Module, stage))
        info.append(FeatureInfo(channels, 2 ** (i + 1), f"stages.{i}"))
    head = FlattenMLPHead(channels * size * size, num_classes)
    return SequentialNetwork(stages, head, info, in_channels=in_channels, input_size=input_size, num_classes=num_classes)
