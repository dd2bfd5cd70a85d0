"""Calls into the library with tensors. Nothing here knows of autograd; inputs are channels-last on the CPU, float32 or bfloat16."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import Branch, Depthwise, Joined, Library, Norm, Running

__all__ = [
    "Averages",
    "Call",
    "Gradients",
    "Side",
    "depthwise_backward",
    "depthwise_backward_joined",
    "depthwise_forward",
    "depthwise_forward_joined",
    "empty_gradients",
    "empty_like_map",
    "isa_key",
    "memory",
    "norm_apply",
    "norm_apply_constants",
    "norm_backward",
    "norm_forward",
    "norm_gradients",
    "norm_input_gradient_",
    "norm_statistics",
    "norm_sums",
    "pointer",
    "threads_for",
]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_FLOATS_A_THREAD = 1 << 14  # below this a second thread costs more than it saves


class Call(NamedTuple):
    """A description in the library's terms, and the bytes of workspace that it needs (forward, backward)."""

    description: ctypes.Structure
    workspace: tuple[int, int]


def threads_for(elements: int) -> int:
    """As many as PyTorch uses, but for a small map."""
    return max(1, min(torch.get_num_threads(), elements // _FLOATS_A_THREAD))


def isa_key(lib: Library) -> bytes:
    """The instruction set: the workspace depends on the length of a vector."""
    return bytes(lib.handle.sepnet_isa())


@lru_cache(maxsize=512)
def _depthwise_call(lib: Library, isa: bytes, shape: tuple[int, ...], dtype: torch.dtype, geometry: Geometry, threads: int) -> Call:
    out = geometry.output_size(shape[2], shape[3])
    d = Depthwise(*shape, *out, *geometry.stride, len(geometry.kernels), geometry.interleaved, _DTYPES[dtype], threads)
    for j, (kernel, padding, dilation) in enumerate(zip(geometry.kernels, geometry.paddings, geometry.dilations, strict=True)):
        d.branch[j] = Branch(*kernel, *padding, *dilation)
    sizes = tuple(lib.handle.sepnet_depthwise_workspace(ctypes.byref(d), backward) for backward in (0, 1))
    if min(sizes) < 0:
        raise ValueError(f"the kernels do not take {tuple(shape)} with {geometry}")
    return Call(d, (sizes[0], sizes[1]))


def _describe(lib: Library, x: Tensor, geometry: Geometry) -> Call:
    taps = sum(h * w for h, w in geometry.kernels)
    return _depthwise_call(lib, isa_key(lib), x.shape, x.dtype, geometry, threads_for(x.numel() * taps // 4))


def _output(call: Call) -> tuple[int, int, int]:
    """Channels, height and width of a convolution's result."""
    d = call.description
    return d.channels * d.branches, d.out_h, d.out_w


def memory(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Not filled; of this type and on the CPU whatever PyTorch's defaults are set to."""
    return torch.empty(size, dtype=dtype, device="cpu")


def empty_like_map(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """(B, channels, height, width), channels-last, of x's batch and type."""
    return torch.empty((x.shape[0], channels, height, width), dtype=x.dtype, device="cpu", memory_format=torch.channels_last)


def pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor's values are; NULL for none."""
    return None if tensor is None else tensor.data_ptr()


class Side(NamedTuple):
    """A normalisation at one side of a depthwise convolution: its constants (see ``norm_statistics``), and whether ReLU follows."""

    constants: Tensor
    relu: bool


def depthwise_forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Weight and bias: float32, contiguous."""
    return _depthwise_forward(lib, x, weight, bias, geometry, None)


def depthwise_forward_joined(
    lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, before: Side | None, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """The convolution of the normalised x, and with ``sums`` those of its outputs that ``norm_statistics`` takes."""
    rows = memory(3, x.shape[1] * len(geometry.kernels), dtype=torch.float64) if sums else None
    joined = Joined(sums=pointer(rows))
    if before is not None:
        joined.before, joined.before_relu = before.constants.data_ptr(), before.relu
    return _depthwise_forward(lib, x, weight, bias, geometry, joined), rows


def _depthwise_forward(
    lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, joined: Joined | None
) -> Tensor:
    call = _describe(lib, x, geometry)
    y = empty_like_map(x, *_output(call))
    workspace = memory(call.workspace[0], dtype=torch.uint8)
    lib.handle.sepnet_depthwise_forward(
        ctypes.addressof(call.description),
        None if joined is None else ctypes.addressof(joined),
        x.data_ptr(),
        weight.data_ptr(),
        pointer(bias),
        y.data_ptr(),
        workspace.data_ptr(),
    )
    return y


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def empty_gradients(x: Tensor, weight: Tensor, outputs: int, want: tuple[bool, bool, bool]) -> Gradients:
    """For those of x, weight (with its strides) and bias (a float32 an output channel), as far as they are wanted."""
    return (
        empty_like_map(x, *x.shape[1:]) if want[0] else None,
        torch.empty_like(weight) if want[1] else None,
        memory(outputs) if want[2] else None,
    )


def depthwise_backward(
    lib: Library, x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, want: tuple[bool, bool, bool]
) -> Gradients:
    """Gradients of x (in its type), weight and bias (float32), as far as they are wanted."""
    return _depthwise_backward(lib, x, weight, grad, geometry, want, None)


def depthwise_backward_joined(
    lib: Library,
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    geometry: Geometry,
    want: tuple[bool, bool, bool],
    before: Side | None,
    after: tuple[Tensor, Side] | None,
) -> tuple[Gradients, Tensor | None]:
    """The same between two normalisations.

    Args:
        before: of x. The gradient is that of its result, not yet cut by its ReLU; the sums that ``norm_gradients`` takes come too.
        after: the convolution's output, and its normalisation, of whose result ``grad`` is the gradient.
    """
    rows = None if before is None else memory(2, x.shape[1], dtype=torch.float64)
    joined = Joined(sums=pointer(rows))
    if before is not None:
        joined.before, joined.before_relu = before.constants.data_ptr(), before.relu
    if after is not None:
        y, side = after
        joined.after, joined.y, joined.after_relu = side.constants.data_ptr(), y.data_ptr(), side.relu
    return _depthwise_backward(lib, x, weight, grad, geometry, want, joined), rows


def _depthwise_backward(
    lib: Library,
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    geometry: Geometry,
    want: tuple[bool, bool, bool],
    joined: Joined | None,
) -> Gradients:
    call = _describe(lib, x, geometry)
    if grad.shape != (x.shape[0], *_output(call)):
        raise ValueError(f"the gradient is {tuple(grad.shape)}, the output of {tuple(x.shape)} is {(x.shape[0], *_output(call))}")
    workspace = memory(call.workspace[1], dtype=torch.uint8)
    gradients = empty_gradients(x, weight, grad.shape[1], want)
    lib.handle.sepnet_depthwise_backward(
        ctypes.addressof(call.description),
        None if joined is None else ctypes.addressof(joined),
        x.data_ptr(),
        weight.data_ptr(),
        grad.data_ptr(),
        *map(pointer, gradients),
        workspace.data_ptr(),
    )
    return gradients


@lru_cache(maxsize=512)
def _norm_call(lib: Library, isa: bytes, shape: tuple[int, ...], dtype: torch.dtype, pool: bool, relu: bool, threads: int) -> Call:
    d = Norm(*shape, pool, relu, _DTYPES[dtype], threads)
    size = int(lib.handle.sepnet_norm_workspace(ctypes.byref(d)))
    if size < 0:
        raise ValueError(f"the kernels do not normalise a map of shape {tuple(shape)} (pool={pool})")
    return Call(d, (size, size))


def _describe_norm(lib: Library, x: Tensor, pool: bool, relu: bool) -> Call:
    return _norm_call(lib, isa_key(lib), tuple(x.shape), x.dtype, pool, relu, threads_for(x.numel()))


def _pooled(x: Tensor, pool: bool) -> tuple[int, int, int]:
    return (x.shape[1], x.shape[2] // 2, x.shape[3] // 2) if pool else (x.shape[1], x.shape[2], x.shape[3])


_CONSTANTS = 6  # rows: mean, inverse standard deviation, scale, shift, and in the backward pass slope, constant
_SCALE, _SHIFT = 2, 3


class Averages(NamedTuple):
    """Running mean and variance, which training updates in place, and the share of the new value."""

    mean: Tensor
    var: Tensor
    momentum: float


def _running(averages: Averages | None) -> Running | None:
    return None if averages is None else Running(averages.mean.data_ptr(), averages.var.data_ptr(), averages.momentum)


def norm_statistics(
    lib: Library, x: Tensor, sums: Tensor | None, weight: Tensor, bias: Tensor, averages: Averages | None, eps: float
) -> Tensor:
    """Constants of x's normalisation, float32 (6, C), the last two rows not filled; from ``sums`` of x where they are known."""
    call = _describe_norm(lib, x, False, False)
    constants = memory(_CONSTANTS, x.shape[1])
    workspace = memory(call.workspace[0], dtype=torch.uint8)
    running = _running(averages)
    lib.handle.sepnet_norm_statistics(
        ctypes.addressof(call.description),
        x.data_ptr(),
        pointer(sums),
        weight.data_ptr(),
        bias.data_ptr(),
        eps,
        None if running is None else ctypes.addressof(running),
        constants.data_ptr(),
        workspace.data_ptr(),
    )
    return constants


def norm_forward(
    lib: Library,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    averages: Averages | None,
    eps: float,
    pool: bool,
    relu: bool,
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """With x's own statistics; the result, the constants, and which positions pooling kept. ``shortcut``: added before the ReLU."""
    call = _describe_norm(lib, x, pool, relu)
    y = empty_like_map(x, *_pooled(x, pool))
    argmax = memory(y.numel(), dtype=torch.uint8) if pool else None
    constants = memory(_CONSTANTS, x.shape[1])
    workspace = memory(call.workspace[0], dtype=torch.uint8)
    running = _running(averages)
    lib.handle.sepnet_norm_forward(
        ctypes.addressof(call.description),
        x.data_ptr(),
        pointer(shortcut),
        weight.data_ptr(),
        bias.data_ptr(),
        eps,
        None if running is None else ctypes.addressof(running),
        constants.data_ptr(),
        y.data_ptr(),
        pointer(argmax),
        workspace.data_ptr(),
    )
    return y, constants, argmax


def norm_apply(
    lib: Library, x: Tensor, scale: Tensor, shift: Tensor, pool: bool, relu: bool, shortcut: Tensor | None = None
) -> Tensor:
    """relu(pool(x * scale + shift + shortcut)), scale and shift a channel."""
    call = _describe_norm(lib, x, pool, relu)
    y = empty_like_map(x, *_pooled(x, pool))
    lib.handle.sepnet_norm_apply(
        ctypes.addressof(call.description),
        x.data_ptr(),
        pointer(shortcut),
        scale.data_ptr(),
        shift.data_ptr(),
        y.data_ptr(),
        None,
    )
    return y


def norm_apply_constants(lib: Library, x: Tensor, side: Side) -> Tensor:
    """The normalisation, and ReLU, whose constants are known."""
    return norm_apply(lib, x, side.constants[_SCALE], side.constants[_SHIFT], False, side.relu)


def norm_sums(lib: Library, x: Tensor, grad: Tensor, side: Side) -> Tensor:
    """Sums over a channel of the gradient that passes the ReLU, and of its product with x - mean: float64 (2, C)."""
    call = _describe_norm(lib, x, False, side.relu)
    rows = memory(2, x.shape[1], dtype=torch.float64)
    workspace = memory(call.workspace[1], dtype=torch.uint8)
    lib.handle.sepnet_norm_sums(
        ctypes.addressof(call.description),
        x.data_ptr(),
        None,
        None,
        grad.data_ptr(),
        side.constants.data_ptr(),
        None,
        rows.data_ptr(),
        workspace.data_ptr(),
    )
    return rows


def norm_gradients(lib: Library, x: Tensor, sums: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """Gradients of the normalisation's weight and bias; fills the last two rows of its constants."""
    call = _describe_norm(lib, x, False, side.relu)
    grads = memory(2, x.shape[1])
    lib.handle.sepnet_norm_gradients(
        ctypes.addressof(call.description), sums.data_ptr(), side.constants.data_ptr(), grads[0].data_ptr(), grads[1].data_ptr()
    )
    return grads[0], grads[1]


def norm_input_gradient_(lib: Library, x: Tensor, grad: Tensor, side: Side) -> Tensor:
    """x's gradient, in place of ``grad``, with all constants known."""
    call = _describe_norm(lib, x, False, side.relu)
    lib.handle.sepnet_norm_input_gradient(
        ctypes.addressof(call.description), x.data_ptr(), None, None, grad.data_ptr(), side.constants.data_ptr(), grad.data_ptr()
    )
    return grad


def norm_backward(
    lib: Library,
    x: Tensor,
    y: Tensor | None,
    constants: Tensor,
    argmax: Tensor | None,
    grad: Tensor,
    pool: bool,
    relu: bool,
    shortcut: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias and shortcut. ``y``, the forward pass's result: for ReLU after pooling or a shortcut."""
    call = _describe_norm(lib, x, pool, relu)
    grad_x = empty_like_map(x, *x.shape[1:])
    grad_shortcut = empty_like_map(x, *x.shape[1:]) if shortcut else None
    grads = memory(2, x.shape[1])
    workspace = memory(call.workspace[1], dtype=torch.uint8)
    lib.handle.sepnet_norm_backward(
        ctypes.addressof(call.description),
        x.data_ptr(),
        pointer(y),
        pointer(argmax),
        grad.data_ptr(),
        constants.data_ptr(),
        grad_x.data_ptr(),
        pointer(grad_shortcut),
        grads[0].data_ptr(),
        grads[1].data_ptr(),
        workspace.data_ptr(),
    )
    return grad_x, grads[0], grads[1], grad_shortcut
