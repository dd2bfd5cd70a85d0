"""Networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sepnet.errors import ConfigError, one_line
from sepnet.models._card import ModelCard
from sepnet.models._network import FeatureNetwork, StagedNetwork
from sepnet.registry import Registry

__all__ = ["ModelEntry", "create_model", "list_models", "model_card", "models", "register_model"]

Builder = Callable[..., StagedNetwork]


@dataclass(frozen=True)
class ModelEntry:
    """A network's builder and its card."""

    build: Builder
    card: ModelCard

    @property
    def options(self) -> dict[str, object]:
        """The builder's keyword options with their defaults."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}


models: Registry[ModelEntry] = Registry("model", "sepnet.models")


def register_model(card: ModelCard) -> Callable[[Builder], Builder]:
    """Decorator: enters a builder under its function's name, with its card."""

    def enter(build: Builder) -> Builder:
        models.register(build.__name__)(ModelEntry(build, card))
        return build

    return enter


def list_models(pattern: str | None = None) -> list[str]:
    """Names of the registered networks; ``pattern`` is a shell pattern or a part of a name."""
    return models.names(pattern)


def model_card(name: str) -> ModelCard:
    """The card of a network.

    Raises:
        UnknownNameError: there is no such network.
    """
    return models.get(name).card


def create_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: a registered name, see ``list_models()``.
        num_classes: outputs of the classifier.
        in_channels: channels of the image (1 grey, 3 colour).
        features_only: return the layers without the head, as a ``FeatureNetwork``.
        out_indices: with ``features_only``, the levels of ``feature_info`` whose maps are returned.
        options: the network's own options (``input_size``, ``units``, ``stem``, ...), see ``sepnet info NAME``.

    Shape of the network: (B, in_channels, input_size, input_size) -> (B, num_classes).

    Raises:
        UnknownNameError: no such network.
        ConfigError: an option that the network does not have, or a value it refuses; the message shows it. Also a network
            too large for the memory.
    """
    entry = models.get(name)
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        own = [option for option in entry.options if option not in ("num_classes", "in_channels")]
        raise ConfigError(f"model {name} has no option '{one_line(unknown[0])}'; it has: {', '.join(own)}")
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices needs features_only=True")
    try:
        network = entry.build(num_classes=num_classes, in_channels=in_channels, **options)
        return FeatureNetwork(network, out_indices) if features_only else network
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:  # the last two: more weights than can be allocated
        raise ConfigError(f"model {name}: {one_line(error)}") from error
