"""Weights at the start of training, where a network's source departs from PyTorch's defaults. All work in place."""

from __future__ import annotations

import math

from torch import nn

__all__ = ["glorot_", "he_normal_", "spread_shifts_"]


def glorot_(network: nn.Module) -> None:
    """Glorot and Bengio 2010, uniform, and biases of zero for convolutions and linear layers: the defaults of Keras."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def he_normal_(network: nn.Module) -> None:
    """He et al. 2015 for ReLU: convolutions of variance 2 / fan-out (of their group), biases of zero.

    Linear layers keep what they have.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def spread_shifts_(unit: nn.Module, spread: float) -> None:
    """The shifts of a unit's batch normalisations drawn uniformly from -spread to spread, in deviations, instead of 0.

    Where a pointwise convolution reads few maps, its many outputs are, once normalised, nearly the same few functions of them
    (of a single map: two, it and its negative). With shifts of their own the ReLUs behind them cut at thresholds of their own.
    """
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -spread, spread)
