"""The same operations in PyTorch: they serve where the kernels cannot, and the kernels are tested against them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sepnet.kernels._geometry import Geometry

__all__ = ["batch_norm_relu", "depthwise_conv2d"]


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Shapes as those of ``sepnet.kernels.depthwise_conv2d``."""
    channels = x.shape[1]
    if geometry.interleaved or len(geometry.kernels) == 1:
        kernel = weight.view(-1, 1, *geometry.kernels[0])
        return F.conv2d(x, kernel, bias, geometry.stride, geometry.paddings[0], geometry.dilations[0], channels)
    outputs, at = [], 0
    for j, (size, padding, dilation) in enumerate(zip(geometry.kernels, geometry.paddings, geometry.dilations, strict=True)):
        count = channels * size[0] * size[1]
        kernel = weight.view(-1)[at : at + count].view(channels, 1, *size)
        at += count
        part = None if bias is None else bias[j * channels : (j + 1) * channels]
        outputs.append(F.conv2d(x, kernel, part, geometry.stride, padding, dilation, channels))
    return torch.cat(outputs, dim=1)


def batch_norm_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    pool: bool,
    relu: bool,
) -> Tensor:
    """Shapes as those of ``sepnet.kernels.batch_norm_relu``."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if pool:
        y = F.max_pool2d(y, 2)
    return F.relu(y, inplace=True) if relu else y
