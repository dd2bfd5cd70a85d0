"""The depthwise convolution as PyTorch knows it: ``sepnet::depthwise_conv2d``, for torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sepnet.kernels import _reference
from sepnet.kernels._choice_depthwise import choose
from sepnet.kernels._depthwise_passes import as_type, backward, forward
from sepnet.kernels._geometry import Geometry, Pair
from sepnet.kernels._library import library
from sepnet.kernels._tensors import dense

__all__ = ["operator"]


def _flat(pairs: Sequence[Pair]) -> list[int]:
    return [n for pair in pairs for n in pair]


def _pairs(flat: Sequence[int]) -> tuple[Pair, ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _geometry(
    stride: Sequence[int], kernels: Sequence[int], paddings: Sequence[int], dilations: Sequence[int], interleaved: bool
) -> Geometry:
    return Geometry((stride[0], stride[1]), _pairs(kernels), _pairs(paddings), _pairs(dilations), interleaved)


def operator(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """``depthwise_conv2d`` as a call of it."""
    y: Tensor = torch.ops.sepnet.depthwise_conv2d(
        x, weight, bias, list(g.stride), _flat(g.kernels), _flat(g.paddings), _flat(g.dilations), g.interleaved
    )
    return y


@torch.library.custom_op("sepnet::depthwise_conv2d", mutates_args=())
def _conv_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    kernels: list[int],
    paddings: list[int],
    dilations: list[int],
    interleaved: bool,
) -> Tensor:
    geometry = _geometry(stride, kernels, paddings, dilations, interleaved)
    lib, choice = library(), choose(x.dtype, x.shape, geometry) if x.is_cpu else None
    if lib is None or choice is None:
        return dense(_reference.depthwise_conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), geometry))
    return forward(lib, dense(x), weight, bias, geometry, choice)


@_conv_op.register_fake
def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    g = _geometry(*geometry)
    shape = (x.shape[0], x.shape[1] * len(g.kernels), *g.output_size(x.shape[2], x.shape[3]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("sepnet::depthwise_conv2d_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    kernels: list[int],
    paddings: list[int],
    dilations: list[int],
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    geometry = _geometry(stride, kernels, paddings, dilations, interleaved)
    lib, choice = library(), choose(x.dtype, x.shape, geometry) if x.is_cpu else None
    if lib is not None and choice is not None:
        grad_x, grad_weight, _ = backward(lib, dense(x), weight, grad, geometry, choice, (True, True, False))
        assert grad_x is not None
        assert grad_weight is not None
        return grad_x, as_type(grad_weight, weight.dtype)
    grad_x, grad_weight = _reference.depthwise_conv2d_backward(grad, x, weight.to(x.dtype), geometry)
    return dense(grad_x), grad_weight.to(weight.dtype)


@_backward_op.register_fake
def _backward_fake(grad: Tensor, x: Tensor, weight: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_type = None if bias is None else bias.dtype


def _op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = torch.ops.sepnet.depthwise_conv2d_backward(grad, x, weight, *ctx.geometry)
    grad_bias = None if ctx.bias_type is None else grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type)
    return grad_x, grad_weight, grad_bias, None, None, None, None, None


torch.library.register_autograd("sepnet::depthwise_conv2d", _op_backward, setup_context=_setup_context)
torch.library.register_autocast("sepnet::depthwise_conv2d", "cpu", torch.bfloat16)
torch.library.register_autocast("sepnet::depthwise_conv2d", "cuda", torch.bfloat16)
