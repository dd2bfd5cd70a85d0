"""The depthwise convolution as a differentiable function that chooses its path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from sepnet.kernels import _dispatcher, _gpu, _library, _native, _reference
from sepnet.kernels._choice_depthwise import TYPES, ByTorch, choose
from sepnet.kernels._depthwise_operator import operator
from sepnet.kernels._depthwise_passes import DepthwiseConv2d, forward, torch_conv2d
from sepnet.kernels._geometry import Geometry, Pair
from sepnet.kernels._library import Library
from sepnet.kernels._lookup import looked_up
from sepnet.kernels._tensors import KINDS, compute_dtype, dense, has_autocast, is_trifle, library_for, wants_gradients
from sepnet.kernels._tracing import has_modes, is_ordinary, is_written_down

__all__ = [
    "depthwise_branches",
    "depthwise_by_geometry",
    "depthwise_conv2d",
    "fits",
    "native_for",
]


def _pair(name: str, value: int | Sequence[int], least: int) -> Pair:
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


class _Plan(NamedTuple):
    """Which way a convolution goes: choice None if the kernels do not take it, arguments None if PyTorch's dispatcher does not."""

    geometry: Geometry
    choice: ByTorch | None
    arguments: _dispatcher.Arguments | None


@looked_up
def _plan_of_geometry(lib: Library, dtype: torch.dtype, shape: tuple[int, ...], geometry: Geometry) -> _Plan:
    """Also tells the library, so that PyTorch's dispatcher may call it."""
    choice, arguments = choose(dtype, shape, geometry), None
    if dtype in TYPES and (geometry.interleaved or len(geometry.kernels) == 1):
        if _native.tell_way(lib, shape, dtype, geometry, choice or ByTorch(forward=True, backward=True)):
            arguments = _dispatcher.arguments(geometry, shape[1])
        else:  # whose memory is full
            _library.stop_dispatching(lib)
    return _Plan(geometry, choice, arguments)


def _pairs(stride: int | Sequence[int], padding: int | Sequence[int], dilation: int | Sequence[int]) -> tuple[Pair, Pair, Pair]:
    """All three as pairs, by the shortest way. Raises ValueError."""
    pairs = []
    for value, least in ((stride, 1), (padding, 0), (dilation, 1)):
        if type(value) is int and value >= least:
            pairs.append((value, value))
        elif type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and value[0] >= least <= value[1]:
            pairs.append(value)
        else:
            return _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    return pairs[0], pairs[1], pairs[2]


@looked_up
def _plan(
    lib: Library,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    filters: tuple[int, ...],
    biases: tuple[int, ...] | None,
    numbers: tuple[Pair, Pair, Pair],
) -> _Plan:
    """That of operands of such shapes: for small maps it matters that all is looked up at once. Raises ValueError."""
    geometry = _single(shape, filters, biases, *numbers)
    return _plan_of_geometry(lib, dtype, shape, geometry)


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

    Second derivatives are those of PyTorch's convolution, for weights of the map's type and from PyTorch 2.13 on; otherwise it is
    differentiable once. The forward mode raises RuntimeError on the native path. Under autocast it computes in autocast's type; it
    accumulates in float32.

    Args:
        weight: (C * multiplier, 1, kh, kw).
        bias: (C * multiplier,), or None.

    Shape: (B, C, H, W) -> (B, C * multiplier, H', W'), channels-last.

    Raises:
        ValueError: weight, bias and input do not go together or are on several devices, or a stride, padding or dilation is none;
            the message shows shapes, devices, or the value.
    """
    numbers = _pairs(stride, padding, dilation)
    y = _dispatched(x, weight, bias, *numbers)
    if y is not None:
        return y
    lib, biases = library_for(x, weight, bias), None if bias is None else bias.shape
    if lib is None:
        return _elsewhere(x, weight, bias, _single(x.shape, weight.shape, biases, *numbers))
    dtype = compute_dtype(x) if has_autocast() else x.dtype
    plan = _plan(lib, dtype, x.shape, weight.shape, biases, numbers)
    return _computed(lib, x, weight, bias, dtype, plan)


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
    return library_for(x) is not None and x.dtype in TYPES and not is_trifle(x)


def fits(geometry: Geometry, channels: int, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are one filter for each of so many channels, of the kernel that ``geometry`` names: nobody looks again."""
    return weight.shape == (channels, 1, *geometry.kernels[0]) and (bias is None or bias.shape == (channels,))


# --- which path ------------------------------------------------------------------------------------------------------------


def depthwise_by_geometry(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same for operands that go together, by the path that suits; the weights of several branches one after the other."""
    if len(geometry.kernels) == 1:
        y = _dispatched(x, weight, bias, geometry.stride, geometry.paddings[0], geometry.dilations[0])
        if y is not None:
            return y
    lib = library_for(x, weight, bias)
    if lib is None:
        return _elsewhere(x, weight, bias, geometry)
    dtype = compute_dtype(x) if has_autocast() else x.dtype
    plan = _plan_of_geometry(lib, dtype, x.shape, geometry)
    return _computed(lib, x, weight, bias, dtype, plan)


def _dispatched(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair) -> Tensor | None:
    """By PyTorch's dispatcher, without a question that it or the library answers anyway. None where either refuses.

    The library does where it has not been told of the convolution, which happens on the careful way: once for each.
    """
    if is_dynamo_compiling():
        return None
    convolution = _library.dispatched
    if convolution is None or type(x) is not Tensor or not x.is_cpu or x.dtype not in TYPES or type(weight) not in KINDS:
        return None
    if (bias is not None and type(bias) not in KINDS) or has_autocast() or not is_ordinary():
        return None
    try:
        y: Tensor = convolution(x, weight, bias, stride, padding, dilation, False, (0, 0), x.shape[1])
    except (RuntimeError, IndexError, TypeError):
        return None
    return y


def _computed(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, plan: _Plan) -> Tensor:
    """In that type, and the way that was chosen."""
    geometry, choice, arguments = plan
    if x.dtype != dtype:
        x = x.to(dtype)
    # a mode that watches the library's calls (_calls) would not see those of PyTorch's dispatcher
    if _library.dispatched is not None and arguments is not None and not has_modes():
        return _library.dispatched(x, weight, bias, *arguments)
    if choice is None:
        return _reference.depthwise_conv2d(x, weight, bias, geometry)
    if choice.wholly:
        return torch_conv2d(dense(x), weight, bias, geometry)
    if not wants_gradients(x, weight, bias):
        return forward(lib, dense(x), weight, bias, geometry, choice)
    y: Tensor = DepthwiseConv2d.apply(x, weight, bias, geometry, lib, choice)
    return y


def _elsewhere(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """For a graph that is being made, for tensors that are not plain ones on the CPU, or without the library."""
    if is_written_down():
        return _reference.depthwise_conv2d(x, weight, bias, geometry)
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        compute = operator if x.device.type == "cpu" else _reference.depthwise_conv2d
        return compute(x, weight, bias, geometry)
    if x.device != weight.device or (bias is not None and x.device != bias.device):  # PyTorch reads what is not there
        raise ValueError(f"input, weight and bias must be on one device, the input is on {x.device}, the weight on {weight.device}")
    return _gpu.depthwise_conv2d(x, weight, bias, geometry) if x.is_cuda else _reference.depthwise_conv2d(x, weight, bias, geometry)
