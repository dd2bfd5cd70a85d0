"""The library's pointwise convolution with tensors: maps channels-last on the CPU, float32 or, where it has products of
it, bfloat16, and weights in float32. Nothing here knows of autograd.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sepnet.kernels import _native
from sepnet.kernels._calls import native_call
from sepnet.kernels._library import Joined, Library, Pointwise
from sepnet.kernels._lookup import looked_up
from sepnet.kernels._native import (
    DTYPES,
    Call,
    Gradients,
    Shape,
    Side,
    empty_gradients,
    empty_map,
    joined,
    memory,
    pointer,
    workspace,
)

__all__ = ["pointwise_backward", "pointwise_backward_joined", "pointwise_forward", "pointwise_forward_joined"]

_PRODUCTS_A_VALUE = 64  # multiplications that take about as long as a value's way through another kernel


@looked_up
def _call(lib: Library, isa: bytes, shape: Shape, dtype: torch.dtype, outputs: int, most_threads: int) -> Call:
    batch, inputs, height, width = shape
    rows = batch * height * width
    threads = _native.threads_for(rows * inputs * outputs // _PRODUCTS_A_VALUE, most_threads)
    d = Pointwise(rows, inputs, outputs, DTYPES[dtype], threads)
    sizes = [lib.handle.sepnet_pointwise_workspace(ctypes.byref(d), backward) for backward in (0, 1)]
    what = f"take {rows} pixels of {inputs} channels to {outputs} in {dtype}"
    return _native.described(d, sizes, (batch, outputs, height, width), what)


def _describe(lib: Library, x: Tensor, outputs: int) -> Call:
    return _call(lib, lib.isa_key, x.shape, x.dtype, outputs, torch.get_num_threads())


@native_call
def pointwise_forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W) by weight (N, C, 1, 1) and bias (N), both without gaps, to (B, N, H, W)."""
    return _forward(lib, x, weight, bias, None)


@native_call
def pointwise_forward_joined(
    lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, before: Side | None, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """The convolution of the normalised x, and with ``sums`` those of its outputs that ``norm_statistics`` takes."""
    rows = memory(3, weight.shape[0], dtype=torch.float64) if sums else None
    return _forward(lib, x, weight, bias, joined(rows, before)), rows


def _forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, sides: Joined | None) -> Tensor:
    call = _describe(lib, x, weight.shape[0])
    y = empty_map(x, call.output)
    scratch = workspace(call.workspace[0])
    lib.handle.sepnet_pointwise_forward(
        call.address,
        None if sides is None else ctypes.addressof(sides),
        x.data_ptr(),
        weight.data_ptr(),
        pointer(bias),
        y.data_ptr(),
        scratch.data_ptr(),
    )
    return y


@native_call
def pointwise_backward(lib: Library, x: Tensor, weight: Tensor, grad: Tensor, want: tuple[bool, bool, bool]) -> Gradients:
    """Gradients of x, weight (with its strides) and bias, as far as they are wanted."""
    return _backward(lib, x, weight, grad, want, None)


@native_call
def pointwise_backward_joined(
    lib: Library, x: Tensor, weight: Tensor, grad: Tensor, want: tuple[bool, bool, bool], before: Side
) -> tuple[Gradients, Tensor]:
    """The same behind a normalisation of x, of whose result x's gradient is that, not yet cut by its ReLU; with it the sums that
    ``norm_gradients`` takes come, too.
    """
    rows = memory(2, x.shape[1], dtype=torch.float64)
    return _backward(lib, x, weight, grad, want, joined(rows, before)), rows


def _backward(
    lib: Library, x: Tensor, weight: Tensor, grad: Tensor, want: tuple[bool, bool, bool], sides: Joined | None
) -> Gradients:
    call = _describe(lib, x, weight.shape[0])
    _native.check_gradient(grad, call, x)
    scratch = workspace(call.workspace[1])
    gradients = empty_gradients(x, weight, weight.shape[0], want)
    lib.handle.sepnet_pointwise_backward(
        call.address,
        None if sides is None else ctypes.addressof(sides),
        x.data_ptr(),
        weight.data_ptr(),
        grad.data_ptr(),
        *map(pointer, gradients),
        scratch.data_ptr(),
    )
    return gradients
