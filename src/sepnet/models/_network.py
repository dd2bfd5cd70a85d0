"""The shape that every network here has: stages, then a head; and its pyramid of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["FeatureInfo", "FeatureNetwork", "StagedNetwork"]


@dataclass(frozen=True)
class FeatureInfo:
    """One level of the pyramid: channels of the map, and its stride (``reduction``) against the image."""

    channels: int
    reduction: int
    module: str


class StagedNetwork(nn.Module):
    """Stages one after the other, then a head.

    Args:
        stages: modules, each (B, C, H, W) -> (B, C', H', W').
        head: module (B, C, H, W) -> (B, num_classes); takes ``pre_logits``.
        feature_info: one entry a stage.
        in_channels, input_size, num_classes: what the network was built for.

    Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        head: nn.Module,
        feature_info: Sequence[FeatureInfo],
        *,
        in_channels: int,
        input_size: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        if len(stages) != len(feature_info):
            raise ValueError(f"{len(stages)} stages but {len(feature_info)} entries of feature_info")
        self.stages = nn.Sequential(*stages)
        self.head = head
        self.feature_info = tuple(feature_info)
        self.in_channels = in_channels
        self.input_size = input_size
        self.num_classes = num_classes

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> the last stage's map (B, C, H', W')."""
        y: Tensor = self.stages(x)
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map -> logits (B, num_classes), or the head's hidden features with ``pre_logits``."""
        y: Tensor = self.head(x, pre_logits=pre_logits)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


class FeatureNetwork(nn.Module):
    """The stages of a network without its head: returns the maps of the chosen levels, for a detector to stand on.

    Args:
        network: the network whose stages are taken.
        out_indices: stage numbers in ascending order, negative ones count from the end; None for all of them.

    Shape: (B, in_channels, H, W) -> list of (B, C_i, H_i, W_i); channels and strides in ``feature_info``.

    Raises:
        ValueError: an index outside the stages, or not ascending; the message shows it.
    """

    def __init__(self, network: StagedNetwork, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        count = len(network.stages)
        wanted = list(range(count)) if out_indices is None else [i + count if i < 0 else i for i in out_indices]
        if not wanted or sorted(set(wanted)) != wanted or not 0 <= wanted[0] <= wanted[-1] < count:
            raise ValueError(f"out_indices must ascend within the {count} stages, got {out_indices!r}")
        self.out_indices = tuple(wanted)
        self.stages = nn.Sequential(*list(network.stages)[: wanted[-1] + 1])
        self.feature_info = tuple(network.feature_info[i] for i in wanted)
        self.in_channels = network.in_channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> the chosen maps, largest first."""
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                maps.append(x)
        return maps
