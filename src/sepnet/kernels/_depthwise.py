"""The depthwise convolution as a differentiable function that chooses its path; PyTorch knows it as sepnet::depthwise_conv2d."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sepnet.kernels import _gpu, _native, _reference
from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._choice_depthwise import ByTorch, by_torch
from sepnet.kernels._geometry import Geometry, Pair
from sepnet.kernels._library import MAX_BRANCHES, MAX_KERNEL, Library, library
from sepnet.kernels._tensors import compute_dtype, dense, exact, is_trifle, library_for, wants_gradients
from sepnet.kernels._tracing import is_written_down

__all__ = [
    "choose",
    "depthwise_branches",
    "depthwise_by_geometry",
    "depthwise_conv2d",
    "fits",
    "native_for",
]

_TYPES = (torch.float32, torch.bfloat16)
# The kernels unpack a map with its padding, and have a table for each remainder of the strides: beyond these, needless megabytes.
_MAX_REACH = 512
_MAX_STRIDE = 16


def _pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    # nearly always one of the first two, and this is called three times a layer
    if type(value) is int and value >= least:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and value[0] >= least <= value[1]:
        return value
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in pair):
        raise ValueError(f"{name} must be an integer of at least {least}, or two of them, got {value!r}")
    return int(pair[0]), int(pair[1])


def _single(
    shape: Sequence[int], filters: Sequence[int], biases: Sequence[int] | None, stride: Pair, padding: Pair, dilation: Pair
) -> Geometry:
    """One filter bank, of operands of such shapes. Raises ValueError."""
    channels = shape[1] if len(shape) == 4 else 0
    if channels == 0 or len(filters) != 4 or filters[1] != 1 or filters[0] % channels or min(filters) < 1:
        raise ValueError(
            f"depthwise_conv2d wants (B, C, H, W) and (C * multiplier, 1, kh, kw), got {tuple(shape)}, {tuple(filters)}"
        )
    if biases is not None and biases != filters[:1]:
        raise ValueError(f"depthwise_conv2d wants a bias of {filters[0]} values, got {tuple(biases)}")
    multiplier, kernel = filters[0] // channels, (filters[2], filters[3])
    return Geometry(stride, (kernel,) * multiplier, (padding,) * multiplier, (dilation,) * multiplier, multiplier > 1)


@lru_cache(maxsize=1024)
def _plan(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    filters: tuple[int, ...],
    biases: tuple[int, ...] | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Geometry, ByTorch | None]:
    """The geometry of operands of such shapes, and which way they go: for small maps it matters that both are looked up at once."""
    geometry = _single(shape, filters, biases, stride, padding, dilation)
    return geometry, choose(dtype, shape, geometry)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """``F.conv2d`` with as many groups as channels (Howard et al. 2017, Eq. 3), by the kernels where they serve.

    Differentiable once: a second derivative raises RuntimeError on the native path. Under autocast it computes in autocast's type.
    Accumulates in float32.

    Args:
        weight: (C * multiplier, 1, kh, kw).
        bias: (C * multiplier,), or None.

    Shape: (B, C, H, W) -> (B, C * multiplier, H', W'), channels-last.

    Raises:
        ValueError: weight, bias and input do not go together or are on several devices, or a stride, padding or dilation is none;
            the message shows shapes, devices, or the value.
    """
    numbers = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    lib, biases = library_for(x, weight, bias), None if bias is None else bias.shape
    if lib is None:
        return _elsewhere(x, weight, bias, _single(x.shape, weight.shape, biases, *numbers))
    dtype = compute_dtype(x)
    geometry, choice = _plan(dtype, x.shape, weight.shape, biases, *numbers)
    return _computed(lib, x, weight, bias, dtype, geometry, choice)


def depthwise_branches(
    x: Tensor, weights: Sequence[Tensor], *, stride: int | Sequence[int] = 1, paddings: Sequence[int], dilations: Sequence[int]
) -> Tensor:
    """Several depthwise convolutions of one input in one pass over it, their outputs concatenated.

    Args:
        weights: one (C, 1, kh, kw) a branch; with its padding and dilation each gives maps of the same size.

    Shape: (B, C, H, W) -> (B, branches * C, H', W').

    Raises:
        ValueError: the branches' outputs differ in size, weights and input do not go together, or a stride, padding or dilation
            is none; the message shows the sizes, the shapes, or the value.
    """
    shapes = [tuple(w.shape) for w in weights]
    fit = x.dim() == 4 and all(len(s) == 4 and s[:2] == (x.shape[1], 1) and min(s) > 0 for s in shapes)
    if not fit or not len(weights) == len(paddings) == len(dilations) > 0:
        raise ValueError(
            "depthwise_branches wants (B, C, H, W) and for each branch (C, 1, kh, kw), a padding and a dilation, got "
            f"{tuple(x.shape)}, {shapes}, {paddings}, {dilations}"
        )
    kernels = tuple((w.shape[2], w.shape[3]) for w in weights)
    pads, steps = tuple(_pair("padding", p, 0) for p in paddings), tuple(_pair("dilation", d, 1) for d in dilations)
    geometry = Geometry(_pair("stride", stride, 1), kernels, pads, steps, False)
    geometry.output_size(x.shape[2], x.shape[3])
    weight = weights[0] if len(weights) == 1 else torch.cat([w.reshape(-1) for w in weights])
    return depthwise_by_geometry(x, weight, None, geometry)


def native_for(x: Tensor) -> bool:
    """Whether the kernels would be given ``x``: a caller may then choose the form that suits them."""
    return library_for(x) is not None and x.dtype in _TYPES and not is_trifle(x)


def fits(geometry: Geometry, channels: int, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are one filter for each of so many channels, of the kernel that ``geometry`` names: nobody looks again."""
    return weight.shape == (channels, 1, *geometry.kernels[0]) and (bias is None or bias.shape == (channels,))


# --- which path ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def choose(dtype: torch.dtype, shape: tuple[int, ...], geometry: Geometry) -> ByTorch | None:
    """Which way a convolution of (B, C, H, W) goes on the CPU; None if the kernels do not take it. A network asks the same of each
    layer at every step.
    """
    return by_torch(dtype, shape, geometry) if dtype in _TYPES and _fits(geometry) else None


def _fits(geometry: Geometry) -> bool:
    if len(geometry.kernels) > MAX_BRANCHES or max(map(max, geometry.kernels)) > MAX_KERNEL or max(geometry.stride) > _MAX_STRIDE:
        return False
    branches = zip(geometry.kernels, geometry.paddings, geometry.dilations, strict=True)
    return all(max(p, d * (k - 1)) <= _MAX_REACH for branch in branches for k, p, d in zip(*branch, strict=True))


def depthwise_by_geometry(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same for operands that go together, by the path that suits; the weights of several branches one after the other."""
    lib = library_for(x, weight, bias)
    if lib is None:
        return _elsewhere(x, weight, bias, geometry)
    dtype = compute_dtype(x)
    return _computed(lib, x, weight, bias, dtype, geometry, choose(dtype, x.shape, geometry))


def _computed(
    lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, geometry: Geometry, choice: ByTorch | None
) -> Tensor:
    """In that type, and the way that was chosen."""
    if x.dtype != dtype:
        x = x.to(dtype)
    if choice is None:
        return _reference.depthwise_conv2d(x, weight, bias, geometry)
    if choice.wholly:
        return _by_torch(dense(x), weight, bias, geometry)
    if not wants_gradients(x, weight, bias):
        return _forward(lib, dense(x), weight, bias, geometry, choice)
    y: Tensor = _DepthwiseConv2d.apply(x, weight, bias, geometry, lib, choice)
    return y


def _elsewhere(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """For a graph that is being made, for tensors that are not plain ones on the CPU, or without the library."""
    if is_written_down():
        return _reference.depthwise_conv2d(x, weight, bias, geometry)
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        operator = _operator if x.device.type == "cpu" else _reference.depthwise_conv2d
        return operator(x, weight, bias, geometry)
    if x.device != weight.device or (bias is not None and x.device != bias.device):  # PyTorch reads what is not there
        raise ValueError(f"input, weight and bias must be on one device, the input is on {x.device}, the weight on {weight.device}")
    return _gpu.depthwise_conv2d(x, weight, bias, geometry) if x.is_cuda else _reference.depthwise_conv2d(x, weight, bias, geometry)


# --- forward and backward --------------------------------------------------------------------------------------------------


def _as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; where it has that type PyTorch takes microseconds to find out."""
    return x if x.dtype == dtype else x.to(dtype)


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A single filter bank by PyTorch's convolution, in x's type; on small maps every call into PyTorch beside it counts."""
    bias = None if bias is None else _as_type(bias, x.dtype)
    arguments = geometry.stride, geometry.paddings[0], geometry.dilations[0], x.shape[1]
    return torch.conv2d(x, _as_type(weight, x.dtype), bias, *arguments)


def _forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, choice: ByTorch) -> Tensor:
    """x: channels-last. Weight and bias in x's type, or float32."""
    if choice.forward:
        return _by_torch(x, weight, bias, geometry)
    return _native.depthwise_forward(lib, x, exact(weight), None if bias is None else exact(bias), geometry)


def _backward(
    lib: Library, x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, choice: ByTorch, want: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, as far as they are wanted; those of x and weight in their types."""
    grad = dense(grad)
    if choice.backward:
        bias_sizes = [grad.shape[1]] if want[2] else None
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight.to(x.dtype), bias_sizes, geometry.stride, geometry.paddings[0], geometry.dilations[0], False, (0, 0),
            x.shape[1], want,
        )  # fmt: skip
    else:
        grad_x, grad_weight, grad_bias = _native.depthwise_backward(lib, x, exact(weight), grad, geometry, want)
    return grad_x, None if grad_weight is None else _as_type(grad_weight, weight.dtype), grad_bias


_NO_GRADIENTS = (None, None, None)  # of geometry, library and choice


class _DepthwiseConv2d(Function):
    """The eager path: less overhead a call than the registered operator."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, lib: Library, choice: ByTorch
    ) -> Tensor:
        x = dense(x)
        # the weights that the forward pass sees, so that the gradients are those of what was computed
        seen = _as_type(weight, x.dtype) if choice.forward else weight
        ctx.save_for_backward(x, seen)
        ctx.call = lib, geometry, choice
        ctx.types = weight.dtype, None if bias is None else bias.dtype
        return _forward(lib, x, seen, bias, geometry, choice)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x = dense(x)  # hooks of saved tensors may give it back in another layout
        lib, geometry, choice = ctx.call
        weight_type, bias_type = ctx.types
        grad_x, grad_weight, grad_bias = _backward(lib, x, weight, grad, geometry, choice, ctx.needs_input_grad[:3])
        return (
            grad_x,
            None if grad_weight is None else _as_type(grad_weight, weight_type),
            None if grad_bias is None else _as_type(grad_bias, bias_type),
            *_NO_GRADIENTS,
        )


# --- the operator that PyTorch knows ---------------------------------------------------------------------------------------


def _flat(pairs: Sequence[Pair]) -> list[int]:
    return [n for pair in pairs for n in pair]


def _pairs(flat: Sequence[int]) -> tuple[Pair, ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _geometry(
    stride: Sequence[int], kernels: Sequence[int], paddings: Sequence[int], dilations: Sequence[int], interleaved: bool
) -> Geometry:
    return Geometry((stride[0], stride[1]), _pairs(kernels), _pairs(paddings), _pairs(dilations), interleaved)


def _operator(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
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
    return _forward(lib, dense(x), weight, bias, geometry, choice)


@_conv_op.register_fake
def _conv_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    kernels: list[int],
    paddings: list[int],
    dilations: list[int],
    interleaved: bool,
) -> Tensor:
    size = _geometry(stride, kernels, paddings, dilations, interleaved).output_size(x.shape[2], x.shape[3])
    shape = (x.shape[0], x.shape[1] * len(kernels) // 2, *size)
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
        grad_x, grad_weight, _ = _backward(lib, dense(x), weight, grad, geometry, choice, (True, True, False))
        assert grad_x is not None
        assert grad_weight is not None
        return grad_x, grad_weight
    grad_x, grad_weight = _reference.depthwise_conv2d_backward(grad, x, weight.to(x.dtype), geometry)
    return dense(grad_x), grad_weight.to(weight.dtype)


@_backward_op.register_fake
def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    kernels: list[int],
    paddings: list[int],
    dilations: list[int],
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
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
