"""The same operations in PyTorch: they serve where the kernels cannot, and the kernels are tested against them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sepnet.kernels._geometry import Geometry

__all__ = ["batch_norm_relu", "depthwise_conv2d", "depthwise_conv2d_backward"]


def _filter_banks(weight: Tensor, channels: int, geometry: Geometry) -> list[Tensor]:
    """The weights of each convolution of PyTorch's that it takes: one, or one a branch."""
    if geometry.interleaved or len(geometry.kernels) == 1:
        return [weight]
    parts = torch.split(weight.reshape(-1), [channels * height * width for height, width in geometry.kernels])
    return [part.view(channels, 1, *kernel) for part, kernel in zip(parts, geometry.kernels, strict=True)]


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Shapes as those of ``sepnet.kernels.depthwise_conv2d``."""
    channels = x.shape[1]
    banks = _filter_banks(weight, channels, geometry)
    biases = [bias] * len(banks) if bias is None or len(banks) == 1 else list(torch.split(bias, channels))
    outputs = [
        F.conv2d(x, bank, part, geometry.stride, padding, dilation, channels)
        for bank, part, padding, dilation in zip(banks, biases, geometry.paddings, geometry.dilations, strict=False)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def depthwise_conv2d_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, for where autograd does not reach: inside an operator."""
    channels = x.shape[1]
    banks = _filter_banks(weight, channels, geometry)
    grads_x, grads_weight = [], []
    for bank, part, padding, dilation in zip(banks, grad.chunk(len(banks), 1), geometry.paddings, geometry.dilations, strict=False):
        grad_x, grad_bank, _ = torch.ops.aten.convolution_backward(
            part, x, bank, None, geometry.stride, padding, dilation, False, (0, 0), channels, (True, True, False)
        )
        grads_x.append(grad_x)
        grads_weight.append(grad_bank.reshape(-1))
    return sum(grads_x[1:], grads_x[0]), torch.cat(grads_weight).view_as(weight)


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
    shortcut: Tensor | None = None,
) -> Tensor:
    """Shapes as those of ``sepnet.kernels.batch_norm_relu``."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if shortcut is not None:
        y = y + shortcut
    if pool:
        y = F.max_pool2d(y, 2)
    return F.relu(y, inplace=True) if relu else y
