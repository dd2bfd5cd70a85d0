"""The library's pointwise convolution with tensors: float32, maps channels-last on the CPU. Nothing here knows of autograd."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from torch import Tensor

from sepnet.kernels import _native
from sepnet.kernels._calls import native_call
from sepnet.kernels._library import Library, Pointwise
from sepnet.kernels._native import Call, Gradients, empty_gradients, empty_like_map, pointer, workspace

__all__ = ["pointwise_backward", "pointwise_forward"]

_PRODUCTS_A_VALUE = 64  # multiplications that take about as long as a value's way through another kernel


@lru_cache(maxsize=512)
def _call(lib: Library, isa: bytes, rows: int, inputs: int, outputs: int, threads: int) -> Call:
    d = Pointwise(rows, inputs, outputs, threads)
    sizes = tuple(lib.handle.sepnet_pointwise_workspace(ctypes.byref(d), backward) for backward in (0, 1))
    if min(sizes) < 0:
        raise ValueError(f"the kernels do not take {rows} pixels of {inputs} channels to {outputs}")
    return Call(d, (sizes[0], sizes[1]))


def _describe(lib: Library, x: Tensor, outputs: int) -> Call:
    batch, inputs, height, width = x.shape
    rows = batch * height * width
    return _call(lib, lib.isa_key, rows, inputs, outputs, _native.threads_for(rows * inputs * outputs // _PRODUCTS_A_VALUE))


@native_call
def pointwise_forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W) by weight (N, C, 1, 1) and bias (N), both without gaps, to (B, N, H, W)."""
    call = _describe(lib, x, weight.shape[0])
    y = empty_like_map(x, weight.shape[0], *x.shape[2:])
    scratch = workspace(call.workspace[0])
    lib.handle.sepnet_pointwise_forward(
        ctypes.addressof(call.description),
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
    if grad.shape != (x.shape[0], weight.shape[0], *x.shape[2:]):
        raise ValueError(f"the gradient is {tuple(grad.shape)}, the map {tuple(x.shape)}, the weight {tuple(weight.shape)}")
    call = _describe(lib, x, weight.shape[0])
    scratch = workspace(call.workspace[1])
    gradients = empty_gradients(x, weight, weight.shape[0], want)
    lib.handle.sepnet_pointwise_backward(
        ctypes.addressof(call.description),
        x.data_ptr(),
        weight.data_ptr(),
        grad.data_ptr(),
        *map(pointer, gradients),
        scratch.data_ptr(),
    )
    return gradients
