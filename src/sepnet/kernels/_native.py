"""Calls into the library with tensors. Nothing here knows of autograd; inputs are channels-last on the CPU, float32 or bfloat16."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import Branch, Depthwise, Library, Norm, Running

__all__ = ["depthwise_backward", "depthwise_forward", "norm_apply", "norm_backward", "norm_forward"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_FLOATS_A_THREAD = 1 << 14  # below this a second thread costs more than it saves


class _Call(NamedTuple):
    """A description in the library's terms, and the bytes of workspace that it needs (forward, backward)."""

    description: ctypes.Structure
    workspace: tuple[int, int]


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // _FLOATS_A_THREAD))


def _isa_key(lib: Library) -> bytes:
    return bytes(lib.handle.sepnet_isa())  # the workspace depends on the length of a vector


@lru_cache(maxsize=512)
def _depthwise_call(
    lib: Library, isa: bytes, shape: tuple[int, ...], out: tuple[int, int], dtype: torch.dtype, geometry: Geometry, threads: int
) -> _Call:
    d = Depthwise(*shape, *out, *geometry.stride, len(geometry.kernels), geometry.interleaved, _DTYPES[dtype], threads)
    for j, (kernel, padding, dilation) in enumerate(zip(geometry.kernels, geometry.paddings, geometry.dilations, strict=True)):
        d.branch[j] = Branch(*kernel, *padding, *dilation)
    sizes = tuple(lib.handle.sepnet_depthwise_workspace(ctypes.byref(d), backward) for backward in (0, 1))
    if min(sizes) < 0:
        raise ValueError(f"the kernels do not take {tuple(shape)} with {geometry}")
    return _Call(d, (sizes[0], sizes[1]))


def _describe(lib: Library, x: Tensor, out: tuple[int, int], geometry: Geometry) -> _Call:
    taps = sum(h * w for h, w in geometry.kernels)
    return _depthwise_call(lib, _isa_key(lib), tuple(x.shape), out, x.dtype, geometry, _threads(x.numel() * taps // 4))


def _empty_like_map(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return torch.empty((x.shape[0], channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def depthwise_forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Weight and bias: float32, contiguous."""
    out = geometry.output_size(x.shape[2], x.shape[3])
    y = _empty_like_map(x, x.shape[1] * len(geometry.kernels), *out)
    call = _describe(lib, x, out, geometry)
    workspace = torch.empty(call.workspace[0], dtype=torch.uint8)
    lib.handle.sepnet_depthwise_forward(
        ctypes.addressof(call.description), x.data_ptr(), weight.data_ptr(), _pointer(bias), y.data_ptr(), workspace.data_ptr()
    )
    return y


def depthwise_backward(
    lib: Library, x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, want: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (in its type), weight and bias (float32), as far as they are wanted."""
    call = _describe(lib, x, (grad.shape[2], grad.shape[3]), geometry)
    workspace = torch.empty(call.workspace[1], dtype=torch.uint8)
    grad_x = _empty_like_map(x, *x.shape[1:]) if want[0] else None
    grad_weight = torch.empty_like(weight) if want[1] else None
    grad_bias = torch.empty(grad.shape[1]) if want[2] else None
    lib.handle.sepnet_depthwise_backward(
        ctypes.addressof(call.description),
        x.data_ptr(),
        weight.data_ptr(),
        grad.data_ptr(),
        _pointer(grad_x),
        _pointer(grad_weight),
        _pointer(grad_bias),
        workspace.data_ptr(),
    )
    return grad_x, grad_weight, grad_bias


@lru_cache(maxsize=512)
def _norm_call(lib: Library, isa: bytes, shape: tuple[int, ...], dtype: torch.dtype, pool: bool, relu: bool, threads: int) -> _Call:
    d = Norm(*shape, pool, relu, _DTYPES[dtype], threads)
    size = int(lib.handle.sepnet_norm_workspace(ctypes.byref(d)))
    if size < 0:
        raise ValueError(f"the kernels do not normalise a map of shape {tuple(shape)} (pool={pool})")
    return _Call(d, (size, size))


def _describe_norm(lib: Library, x: Tensor, pool: bool, relu: bool) -> _Call:
    return _norm_call(lib, _isa_key(lib), tuple(x.shape), x.dtype, pool, relu, _threads(x.numel()))


def _pooled(x: Tensor, pool: bool) -> tuple[int, int, int]:
    return (x.shape[1], x.shape[2] // 2, x.shape[3] // 2) if pool else (x.shape[1], x.shape[2], x.shape[3])


class NormStatistics(NamedTuple):
    """What the backward pass needs: mean, inverse standard deviation and kept positions (with pooling)."""

    mean: Tensor
    invstd: Tensor
    argmax: Tensor | None


def norm_forward(
    lib: Library,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    eps: float,
    pool: bool,
    relu: bool,
) -> tuple[Tensor, NormStatistics]:
    """With x's own statistics; the running averages are updated in place."""
    call = _describe_norm(lib, x, pool, relu)
    y = _empty_like_map(x, *_pooled(x, pool))
    argmax = torch.empty(y.numel(), dtype=torch.uint8) if pool else None
    statistics = torch.empty(2, x.shape[1])
    workspace = torch.empty(call.workspace[0], dtype=torch.uint8)
    averages = Running(running[0].data_ptr(), running[1].data_ptr(), momentum) if running else None
    lib.handle.sepnet_norm_forward(
        ctypes.addressof(call.description),
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        eps,
        ctypes.addressof(averages) if averages else None,
        statistics.data_ptr(),
        statistics.data_ptr() + 4 * x.shape[1],
        y.data_ptr(),
        _pointer(argmax),
        workspace.data_ptr(),
    )
    return y, NormStatistics(statistics[0], statistics[1], argmax)


def norm_apply(lib: Library, x: Tensor, scale: Tensor, shift: Tensor, pool: bool, relu: bool) -> Tensor:
    """relu(pool(x * scale + shift)), scale and shift a channel."""
    call = _describe_norm(lib, x, pool, relu)
    y = _empty_like_map(x, *_pooled(x, pool))
    lib.handle.sepnet_norm_apply(
        ctypes.addressof(call.description), x.data_ptr(), scale.data_ptr(), shift.data_ptr(), y.data_ptr(), None
    )
    return y


def norm_backward(
    lib: Library,
    x: Tensor,
    y: Tensor | None,
    statistics: NormStatistics,
    weight: Tensor,
    bias: Tensor,
    grad: Tensor,
    pool: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias. ``y``, the forward pass's result, is needed with both pooling and ReLU."""
    call = _describe_norm(lib, x, pool, relu)
    grad_x = _empty_like_map(x, *x.shape[1:])
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    workspace = torch.empty(call.workspace[1], dtype=torch.uint8)
    lib.handle.sepnet_norm_backward(
        ctypes.addressof(call.description),
        x.data_ptr(),
        _pointer(y),
        _pointer(statistics.argmax),
        grad.data_ptr(),
        statistics.mean.data_ptr(),
        statistics.invstd.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        grad_x.data_ptr(),
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
        workspace.data_ptr(),
    )
    return grad_x, grad_weight, grad_bias
