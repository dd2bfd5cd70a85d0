"""The library's pooled pointwise convolution with tensors: maps channels-last on the CPU. Nothing here knows of autograd."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from sepnet.kernels import _native
from sepnet.kernels._calls import native_call
from sepnet.kernels._choice_pointwise import MOST_FEW
from sepnet.kernels._library import Library
from sepnet.kernels._lookup import looked_up
from sepnet.kernels._native import Call, Gradients, Shape, empty_gradients, empty_map, memory, pointer, workspace
from sepnet.kernels._native_norm import CONSTANTS, Averages, as_running, norm_description

__all__ = ["Pooled", "pooled_pointwise_backward", "pooled_pointwise_forward"]

_MOMENTS = MOST_FEW + MOST_FEW * MOST_FEW


class Pooled(NamedTuple):
    """What the backward pass needs of the forward pass: the normalisation's constants, the input's mean and covariance, and which
    pixel of each window was kept.
    """

    constants: Tensor
    moments: Tensor
    kept: Tensor


@looked_up
def _call(lib: Library, isa: bytes, shape: Shape, outputs: int, dtype: torch.dtype, relu: bool, most_threads: int) -> Call:
    batch, inputs, height, width = shape
    threads = _native.threads_for(batch * height * width * outputs, most_threads)
    d = norm_description((batch, outputs, height, width), dtype, True, relu, threads)
    sizes = [lib.handle.sepnet_pooled_pointwise_workspace(ctypes.byref(d), inputs, backward) for backward in (0, 1)]
    return _native.described(d, sizes, (batch, outputs, height // 2, width // 2), f"pool a map of shape {tuple(shape)}")


def _describe(lib: Library, x: Tensor, outputs: int, relu: bool) -> Call:
    return _call(lib, lib.isa_key, x.shape, outputs, x.dtype, relu, torch.get_num_threads())


@native_call
def pooled_pointwise_forward(
    lib: Library, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, averages: Averages | None, eps: float, relu: bool
) -> tuple[Tensor, Pooled]:
    """(B, C, H, W) by weight (N, C, 1, 1), float32 without gaps, to (B, N, H // 2, W // 2)."""
    outputs = weight.shape[0]
    call = _describe(lib, x, outputs, relu)
    y = empty_map(x, call.output)
    pooled = Pooled(memory(CONSTANTS, outputs), memory(_MOMENTS, dtype=torch.float64), memory(y.numel(), dtype=torch.uint8))
    scratch = workspace(call.workspace[0])
    running = as_running(averages)
    lib.handle.sepnet_pooled_pointwise_forward(
        call.address,
        x.shape[1],
        x.data_ptr(),
        weight.data_ptr(),
        gamma.data_ptr(),
        beta.data_ptr(),
        eps,
        None if running is None else ctypes.addressof(running),
        *map(pointer, pooled[:2]),
        y.data_ptr(),
        pooled.kept.data_ptr(),
        scratch.data_ptr(),
    )
    return y, pooled


@native_call
def pooled_pointwise_backward(
    lib: Library, x: Tensor, weight: Tensor, pooled: Pooled, grad: Tensor, relu: bool, want: tuple[bool, bool]
) -> tuple[Gradients, Tensor]:
    """Gradients of x and weight (with its strides), as far as they are wanted, then those of gamma and beta, (2, N)."""
    call = _describe(lib, x, weight.shape[0], relu)
    _native.check_gradient(grad, call, x)
    scratch = workspace(call.workspace[1])
    gradients = empty_gradients(x, weight, weight.shape[0], (*want, False))
    affine = memory(2, weight.shape[0])
    lib.handle.sepnet_pooled_pointwise_backward(
        call.address,
        x.shape[1],
        x.data_ptr(),
        weight.data_ptr(),
        pooled.kept.data_ptr(),
        grad.data_ptr(),
        pooled.constants.data_ptr(),
        pooled.moments.data_ptr(),
        *map(pointer, gradients[:2]),
        affine[0].data_ptr(),
        affine[1].data_ptr(),
        scratch.data_ptr(),
    )
    return gradients, affine
