"""The shape that every network here has: layers by name, then a head; and its pyramid of features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sepnet.nn.pending import EndsInNorm, Pending, is_open, settle

__all__ = ["FeatureInfo", "FeatureNetwork", "SequentialNetwork", "StagedNetwork", "pyramid"]


@dataclass(frozen=True)
class FeatureInfo:
    """One level of the pyramid.

    Attributes:
        channels: of the map.
        reduction: stride against the image. A map has about 1/reduction of its height and width: exactly that, where
            reduction divides them and no layer goes without padding.
        module: name of the layer whose output the map is.
    """

    channels: int
    reduction: int
    module: str


def pyramid(channels: Sequence[int], strides: Sequence[int]) -> list[FeatureInfo]:
    """The levels of layers stages.0, stages.1, ... with these output channels and strides: the last layer of each resolution."""
    levels, reduction = [], 1
    for i, (width, stride) in enumerate(zip(channels, strides, strict=True)):
        reduction *= stride
        if i + 1 == len(strides) or strides[i + 1] > 1:
            levels.append(FeatureInfo(width, reduction, f"stages.{i}"))
    return levels


def _step(x: Tensor | Pending, layer: nn.Module) -> Tensor | Pending:
    """One layer; its last normalisation is put off where the layer can do that and nobody watches it."""
    if isinstance(layer, EndsInNorm) and is_open(layer, EndsInNorm):
        return layer.pending(x)
    y: Tensor = layer(settle(x))
    return y


class StagedNetwork(nn.Module):
    """Layers one after the other, then a head. A subclass adds the head's modules, and runs them in ``forward_head``.

    Args:
        layers: the layers of the features in the order of execution, by the names that they have in the state dict
            ("stages.0", "layer1", "features.3"); each (B, C, H, W) -> (B, C', H', W'), those without weights too.
        feature_info: levels of the pyramid, finest first; the last is the output of the last layer.
        classifier: name of the module that makes logits of the hidden features.
        in_channels, input_size, num_classes: what the network was built for.

    Shape: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Raises:
        ValueError: levels that do not ascend through the layers, or do not end with the last.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        feature_info: Sequence[FeatureInfo],
        *,
        classifier: str,
        in_channels: int,
        input_size: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        names, levels = list(layers), [info.module for info in feature_info]
        if [n for n in names if n in levels] != levels or levels[-1:] != names[-1:]:
            raise ValueError(f"levels {levels} must ascend through the layers {names} and end with the last")
        for name, layer in layers.items():
            _place(self, name, layer)
        self.layer_names = tuple(names)
        self.feature_info = tuple(feature_info)
        self.classifier_name = classifier
        self.in_channels = in_channels
        self.input_size = input_size
        self.num_classes = num_classes

    def get_classifier(self) -> nn.Module:
        """The module that makes logits of the hidden features: what fine-tuning replaces."""
        return self.get_submodule(self.classifier_name)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> the last layer's map (B, C, H', W')."""
        features: Tensor | Pending = x
        for name in self.layer_names:
            features = _step(features, self.get_submodule(name))
        return settle(features)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last layer's map -> logits (B, num_classes), or the head's hidden features (B, n) with ``pre_logits``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


class SequentialNetwork(StagedNetwork):
    """Layers called stages.0, stages.1, ..., and one module as the head.

    Args:
        stages: modules, each (B, C, H, W) -> (B, C', H', W').
        head: module (B, C, H, W) -> (B, num_classes); takes ``pre_logits``, and holds its last layer as ``classifier``.
        feature_info, in_channels, input_size, num_classes: see ``StagedNetwork``.
    """

    def __init__(
        self,
        stages: Iterable[nn.Module],
        head: nn.Module,
        feature_info: Sequence[FeatureInfo],
        *,
        in_channels: int,
        input_size: int,
        num_classes: int,
    ) -> None:
        super().__init__(
            {f"stages.{i}": stage for i, stage in enumerate(stages)},
            feature_info,
            classifier="head.classifier",
            in_channels=in_channels,
            input_size=input_size,
            num_classes=num_classes,
        )
        self.head = head

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map -> logits (B, num_classes), or the head's hidden features with ``pre_logits``."""
        y: Tensor = self.head(x, pre_logits=pre_logits)
        return y


class FeatureNetwork(nn.Module):
    """The layers of a network without its head: returns the maps of the chosen levels, for a detector to stand on.

    The layers keep their names, so that the network's state dict loads here with ``strict=False``.

    Args:
        network: the network whose layers are taken, as far as the last chosen level.
        out_indices: levels of its ``feature_info`` in ascending order, negative ones count from the end; None for all of them.

    Shape: (B, in_channels, H, W) -> list of (B, C_i, H_i, W_i); channels and strides in ``feature_info``.

    Raises:
        ValueError: an index outside the levels, or not ascending; the message shows it.
    """

    def __init__(self, network: StagedNetwork, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        count = len(network.feature_info)
        wanted = list(range(count)) if out_indices is None else [i + count if i < 0 else i for i in out_indices]
        if not wanted or sorted(set(wanted)) != wanted or not 0 <= wanted[0] <= wanted[-1] < count:
            raise ValueError(f"out_indices must ascend within the {count} levels, got {out_indices!r}")
        self.out_indices = tuple(wanted)
        self.feature_info = tuple(network.feature_info[i] for i in wanted)
        self.in_channels = network.in_channels
        last = network.layer_names.index(self.feature_info[-1].module)
        self.layer_names = network.layer_names[: last + 1]
        for name in self.layer_names:
            _place(self, name, network.get_submodule(name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> the chosen maps, largest first."""
        levels = {info.module for info in self.feature_info}
        maps = []
        for name in self.layer_names:
            x = self.get_submodule(name)(x)
            if name in levels:
                maps.append(x)
        return maps


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Make ``module`` the submodule ``name`` ("features.3") of ``root``, with the containers on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Sequential())
        root = root.get_submodule(part)
    root.add_module(leaf, module)
