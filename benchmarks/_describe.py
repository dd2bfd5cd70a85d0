"""A network as a list of layers in plain words, from which its peers are built: torch.nn modules (``_plain``), Keras (``_keras``).

A layer is a dictionary of JSON values whose "op" is one of

    conv     in_channels, out_channels, kernel, stride, padding, dilation ([height, width] each), groups, bias
    bn       channels, eps, momentum (PyTorch's: the share of the new batch)
    relu, gap (global average pooling, (B, C, H, W) -> (B, C)), flatten
    maxpool  kernel, stride, padding
    dropout  rate
    linear   in_features, out_features, bias
    sum      branches: lists of layers, each applied to the same input; an empty one is the identity
    concat   branches

and says what the network computes, not how: no kernels, no fused layers.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from torch import nn

from sepnet.models import create_model, model_card, models
from sepnet.nn import (
    Bottleneck,
    ConvBNReLU,
    DilatedSeparableBlock,
    FlattenMLPHead,
    MultiScaleUnit,
    PoolHead,
    SeparableBlock,
    SeparableUnit,
    StandardUnit,
)
from sepnet.nn.norm import BatchNormReLU

__all__ = ["Layer", "build", "describe"]

Layer = dict[str, Any]

RELU: Layer = {"op": "relu"}
GAP: Layer = {"op": "gap"}


def build(name: str, *, size: int = 32, num_classes: int = 10, **options: Any) -> nn.Module:
    """A registered network for colour images of ``size`` x ``size``."""
    if "input_size" in models.get(name).options:
        options["input_size"] = size
    return create_model(name, num_classes=num_classes, in_channels=model_card(name).native_size[0], **options)


def _each(*modules: nn.Module) -> list[Layer]:
    return [layer for module in modules for layer in describe(module)]


@singledispatch
def describe(module: nn.Module) -> list[Layer]:
    """The layers of ``module`` in the order of execution, which is the order of its state dict too.

    Raises:
        TypeError: a kind of module that the peers are not built with.
    """
    if hasattr(module, "layer_names"):  # a registered network
        features = _each(*(module.get_submodule(name) for name in module.layer_names))
        head = getattr(module, "head", None)
        return features + (describe(head) if head is not None else [GAP, *describe(module.get_classifier())])
    raise TypeError(f"the benchmarks cannot build {type(module).__name__} of other libraries' layers")


@describe.register
def _(module: nn.Sequential) -> list[Layer]:
    return _each(*module)


@describe.register
def _(module: nn.Conv2d) -> list[Layer]:
    return [
        {
            "op": "conv",
            "in_channels": module.in_channels,
            "out_channels": module.out_channels,
            "kernel": list(module.kernel_size),
            "stride": list(module.stride),
            "padding": [int(p) for p in module.padding],
            "dilation": list(module.dilation),
            "groups": module.groups,
            "bias": module.bias is not None,
        }
    ]


@describe.register
def _(module: nn.BatchNorm2d) -> list[Layer]:
    return [{"op": "bn", "channels": module.num_features, "eps": module.eps, "momentum": module.momentum}]


@describe.register
def _(module: BatchNormReLU) -> list[Layer]:
    pool = [{"op": "maxpool", "kernel": 2, "stride": 2, "padding": 0}] if module.pool else []
    relu = [RELU] if module.relu else []
    return [*describe.dispatch(nn.BatchNorm2d)(module), *relu, *pool]


@describe.register
def _(module: nn.MaxPool2d) -> list[Layer]:
    return [{"op": "maxpool", "kernel": module.kernel_size, "stride": module.stride, "padding": module.padding}]


@describe.register
def _(module: nn.Linear) -> list[Layer]:
    bias = module.bias is not None
    return [{"op": "linear", "in_features": module.in_features, "out_features": module.out_features, "bias": bias}]


@describe.register
def _(module: ConvBNReLU) -> list[Layer]:
    return _each(module.conv, module.bn)


@describe.register
def _(module: StandardUnit) -> list[Layer]:
    return describe(module.conv)


@describe.register
def _(module: SeparableUnit) -> list[Layer]:
    return _each(module.dw, module.pw, module.bn)


@describe.register
def _(module: SeparableBlock) -> list[Layer]:
    return _each(module.dw, module.bn1, module.pw, module.bn2)


@describe.register
def _(module: DilatedSeparableBlock) -> list[Layer]:
    return _each(module.dw, module.pw, module.bn)


@describe.register
def _(module: MultiScaleUnit) -> list[Layer]:
    """Two stacked convolutions of padding 2, then 0 (border="once"), or 1 and 1 (border="layer")."""
    small, first, second = _each(module.dw_small, module.dw_large1, module.dw_large2)
    if module.pad:
        first = first | {"padding": [2, 2]}
    branches: list[list[Layer]] = [[small], [first, second]]
    identity: list[list[Layer]] = [[]] if module.residual else []
    if module.merge == "concat":
        merged: Layer = {"op": "concat", "branches": [[{"op": "sum", "branches": [*identity, b]}] for b in branches]}
    else:
        merged = {"op": "sum", "branches": [*identity, *branches]}
    return [merged, *_each(module.pw, module.bn)]


@describe.register
def _(module: Bottleneck) -> list[Layer]:
    main = _each(module.conv1, module.bn1, module.conv2, module.bn2, module.conv3, module.bn3)
    shortcut = [] if module.downsample is None else describe(module.downsample)
    return [{"op": "sum", "branches": [main, shortcut]}, RELU]


@describe.register
def _(module: FlattenMLPHead) -> list[Layer]:
    layers: list[Layer] = [{"op": "flatten"}]
    for i in range(1, module.depth + 1):
        layers += [*describe(module.get_submodule(f"fc{i}")), RELU]
    dropout: list[Layer] = [{"op": "dropout", "rate": module.dropout}] if module.dropout else []
    return [*layers, *dropout, *describe(module.classifier)]


@describe.register
def _(module: PoolHead) -> list[Layer]:
    return [GAP, *describe(module.classifier)]
