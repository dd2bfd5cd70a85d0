"""The peer in PyTorch: a described network of torch.nn modules only, as somebody would write it without sepnet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from _describe import Layer

__all__ = ["copy_weights", "plain"]


class Sum(nn.Module):
    """The sum of branches."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branches[0](x)
        for branch in self.branches[1:]:
            y = y + branch(x)
        return y


class Concat(nn.Module):
    """Branches side by side."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _conv(layer: Layer) -> nn.Module:
    return nn.Conv2d(
        layer["in_channels"],
        layer["out_channels"],
        tuple(layer["kernel"]),
        stride=tuple(layer["stride"]),
        padding=tuple(layer["padding"]),
        dilation=tuple(layer["dilation"]),
        groups=layer["groups"],
        bias=layer["bias"],
    )


def _branches(layer: Layer) -> list[nn.Module]:
    return [plain(branch) if branch else nn.Identity() for branch in layer["branches"]]


OPS: dict[str, Callable[[Layer], nn.Module]] = {
    "conv": _conv,
    "bn": lambda layer: nn.BatchNorm2d(layer["channels"], layer["eps"], layer["momentum"]),
    "relu": lambda _: nn.ReLU(inplace=True),
    "maxpool": lambda layer: nn.MaxPool2d(layer["kernel"], layer["stride"], layer["padding"]),
    "gap": lambda _: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "flatten": lambda _: nn.Flatten(),
    "dropout": lambda layer: nn.Dropout(layer["rate"]),
    "linear": lambda layer: nn.Linear(layer["in_features"], layer["out_features"], bias=layer["bias"]),
    "sum": lambda layer: Sum(_branches(layer)),
    "concat": lambda layer: Concat(_branches(layer)),
}


def plain(layers: list[Layer]) -> nn.Sequential:
    """The network of ``layers``, with random weights."""
    return nn.Sequential(*(OPS[layer["op"]](layer) for layer in layers))


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the weights of the network that it was described from; the two then compute the same.

    Raises:
        ValueError: they have other weights.
    """
    theirs, ours = target.state_dict(), source.state_dict()
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise ValueError("the networks differ in their weights")
    target.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
