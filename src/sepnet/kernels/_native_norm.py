"""The library's batch normalisation, with 2x2 max pooling and ReLU, with tensors. Nothing here knows of autograd."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from sepnet.kernels import _native
from sepnet.kernels._calls import native_call
from sepnet.kernels._library import Library, Norm, Running
from sepnet.kernels._lookup import looked_up
from sepnet.kernels._native import DTYPES, Call, Shape, Side, described, empty_map, memory, pointer, workspace

__all__ = [
    "CONSTANTS",
    "Averages",
    "as_running",
    "norm_apply",
    "norm_apply_constants",
    "norm_backward",
    "norm_description",
    "norm_forward",
    "norm_gradients",
    "norm_input_gradient_",
    "norm_statistics",
    "norm_sums",
]


def norm_description(shape: tuple[int, ...], dtype: torch.dtype, pool: bool, relu: bool, threads: int) -> Norm:
    """In the library's terms."""
    return Norm(*shape, pool, relu, DTYPES[dtype], threads)


@looked_up
def _norm_call(lib: Library, isa: bytes, shape: Shape, dtype: torch.dtype, pool: bool, relu: bool, most_threads: int) -> Call:
    d = norm_description(shape, dtype, pool, relu, _native.threads_for(math.prod(shape), most_threads))
    size = int(lib.handle.sepnet_norm_workspace(ctypes.byref(d)))
    output = (*shape[:2], shape[2] // 2, shape[3] // 2) if pool else shape
    return described(d, (size, size), output, f"normalise a map of shape {tuple(shape)} (pool={pool})")


def _describe_norm(lib: Library, x: Tensor, pool: bool, relu: bool) -> Call:
    return _norm_call(lib, lib.isa_key, x.shape, x.dtype, pool, relu, torch.get_num_threads())


CONSTANTS = 6  # rows: mean, inverse standard deviation, scale, shift, and in the backward pass slope, constant
_SCALE, _SHIFT = 2, 3


class Averages(NamedTuple):
    """Running mean and variance, which training updates in place, and the share of the new value."""

    mean: Tensor
    var: Tensor
    momentum: float


def as_running(averages: Averages | None) -> Running | None:
    """In the library's terms; the caller keeps it while the library reads it."""
    return None if averages is None else Running(averages.mean.data_ptr(), averages.var.data_ptr(), averages.momentum)


@native_call
def norm_statistics(
    lib: Library, x: Tensor, sums: Tensor | None, weight: Tensor, bias: Tensor, averages: Averages | None, eps: float
) -> Tensor:
    """Constants of x's normalisation, float32 (6, C), the last two rows not filled; from ``sums`` of x where they are known."""
    call = _describe_norm(lib, x, False, False)
    constants = memory(CONSTANTS, x.shape[1])
    scratch = workspace(call.workspace[0])
    running = as_running(averages)
    lib.handle.sepnet_norm_statistics(
        call.address,
        x.data_ptr(),
        pointer(sums),
        weight.data_ptr(),
        bias.data_ptr(),
        eps,
        None if running is None else ctypes.addressof(running),
        constants.data_ptr(),
        scratch.data_ptr(),
    )
    return constants


@native_call
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
    sums: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """With x's own statistics, from ``sums`` where they are known; the result, the constants, and which positions pooling kept.
    ``shortcut``: added before the ReLU.
    """
    call = _describe_norm(lib, x, pool, relu)
    y = empty_map(x, call.output)
    argmax = memory(y.numel(), dtype=torch.uint8) if pool else None
    constants = memory(CONSTANTS, x.shape[1])
    scratch = workspace(call.workspace[0])
    running = as_running(averages)
    lib.handle.sepnet_norm_forward(
        call.address,
        x.data_ptr(),
        pointer(sums),
        pointer(shortcut),
        weight.data_ptr(),
        bias.data_ptr(),
        eps,
        None if running is None else ctypes.addressof(running),
        constants.data_ptr(),
        y.data_ptr(),
        pointer(argmax),
        scratch.data_ptr(),
    )
    return y, constants, argmax


@native_call
def norm_apply(
    lib: Library, x: Tensor, scale: Tensor, shift: Tensor, pool: bool, relu: bool, shortcut: Tensor | None = None
) -> Tensor:
    """relu(pool(x * scale + shift + shortcut)), scale and shift a channel."""
    call = _describe_norm(lib, x, pool, relu)
    y = empty_map(x, call.output)
    lib.handle.sepnet_norm_apply(
        call.address,
        x.data_ptr(),
        pointer(shortcut),
        scale.data_ptr(),
        shift.data_ptr(),
        y.data_ptr(),
        None,
    )
    return y


@native_call
def norm_apply_constants(lib: Library, x: Tensor, side: Side) -> Tensor:
    """The normalisation, and ReLU, whose constants are known."""
    return norm_apply(lib, x, side.constants[_SCALE], side.constants[_SHIFT], False, side.relu, None)


@native_call
def norm_sums(lib: Library, x: Tensor, grad: Tensor, side: Side) -> Tensor:
    """Sums over a channel of the gradient that passes the ReLU, and of its product with x - mean: float64 (2, C)."""
    call = _describe_norm(lib, x, False, side.relu)
    rows = memory(2, x.shape[1], dtype=torch.float64)
    scratch = workspace(call.workspace[1])
    lib.handle.sepnet_norm_sums(
        call.address,
        x.data_ptr(),
        None,
        None,
        grad.data_ptr(),
        side.constants.data_ptr(),
        None,
        rows.data_ptr(),
        scratch.data_ptr(),
    )
    return rows


@native_call
def norm_gradients(lib: Library, x: Tensor, sums: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """Gradients of the normalisation's weight and bias; fills the last two rows of its constants."""
    call = _describe_norm(lib, x, False, side.relu)
    grads = memory(2, x.shape[1])
    lib.handle.sepnet_norm_gradients(
        call.address, sums.data_ptr(), side.constants.data_ptr(), grads[0].data_ptr(), grads[1].data_ptr()
    )
    return grads[0], grads[1]


@native_call
def norm_input_gradient_(lib: Library, x: Tensor, grad: Tensor, side: Side) -> Tensor:
    """x's gradient, in place of ``grad``, with all constants known."""
    call = _describe_norm(lib, x, False, side.relu)
    lib.handle.sepnet_norm_input_gradient(
        call.address, x.data_ptr(), None, None, grad.data_ptr(), side.constants.data_ptr(), grad.data_ptr()
    )
    return grad


@native_call
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
    grad_x = empty_map(x, x.shape)
    grad_shortcut = empty_map(x, x.shape) if shortcut else None
    grads = memory(2, x.shape[1])
    scratch = workspace(call.workspace[1])
    lib.handle.sepnet_norm_backward(
        call.address,
        x.data_ptr(),
        pointer(y),
        pointer(argmax),
        grad.data_ptr(),
        constants.data_ptr(),
        grad_x.data_ptr(),
        pointer(grad_shortcut),
        grads[0].data_ptr(),
        grads[1].data_ptr(),
        scratch.data_ptr(),
    )
    return grad_x, grads[0], grads[1], grad_shortcut
