"""The forward and the backward pass of a depthwise convolution as they were chosen, and the call that joins them by autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sepnet.kernels import _native
from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._choice_depthwise import ByTorch
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import Library
from sepnet.kernels._tensors import dense, exact

__all__ = ["DepthwiseConv2d", "as_type", "backward", "forward", "torch_conv2d"]


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; where it has that type PyTorch takes microseconds to find out."""
    return x if x.dtype == dtype else x.to(dtype)


def torch_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A single filter bank by PyTorch's convolution, in x's type; on small maps every call into PyTorch beside it counts."""
    bias = None if bias is None else as_type(bias, x.dtype)
    arguments = geometry.stride, geometry.paddings[0], geometry.dilations[0], x.shape[1]
    return torch.conv2d(x, as_type(weight, x.dtype), bias, *arguments)


def forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, choice: ByTorch) -> Tensor:
    """x: channels-last. Weight and bias in x's type, or float32."""
    if choice.forward:
        return torch_conv2d(x, weight, bias, geometry)
    return _native.depthwise_forward(lib, x, exact(weight), None if bias is None else exact(bias), geometry)


def backward(
    lib: Library, x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, choice: ByTorch, want: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (in its type), weight and bias, as far as they are wanted."""
    grad = dense(grad)
    if not choice.backward:
        return _native.depthwise_backward(lib, x, exact(weight), grad, geometry, want)
    bias_sizes = [grad.shape[1]] if want[2] else None
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), bias_sizes, geometry.stride, geometry.paddings[0], geometry.dilations[0], False, (0, 0),
        x.shape[1], want,
    )  # fmt: skip
    return gradients


_NO_GRADIENTS = (None, None, None)  # of geometry, library and choice


class DepthwiseConv2d(Function):
    """The eager path where PyTorch's dispatcher is none (``_dispatcher``): less overhead a call than the registered operator."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, lib: Library, choice: ByTorch
    ) -> Tensor:
        x = dense(x)
        # the weights that the forward pass sees, so that the gradients are those of what was computed
        seen = as_type(weight, x.dtype) if choice.forward else weight
        ctx.save_for_backward(x, seen)
        ctx.call = lib, geometry, choice
        ctx.types = weight.dtype, None if bias is None else bias.dtype
        return forward(lib, x, seen, bias, geometry, choice)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x = dense(x)  # hooks of saved tensors may give it back in another layout
        lib, geometry, choice = ctx.call
        weight_type, bias_type = ctx.types
        grad_x, grad_weight, grad_bias = backward(lib, x, weight, grad, geometry, choice, ctx.needs_input_grad[:3])
        return (
            grad_x,
            None if grad_weight is None else as_type(grad_weight, weight_type),
            None if grad_bias is None else as_type(grad_bias, bias_type),
            *_NO_GRADIENTS,
        )
