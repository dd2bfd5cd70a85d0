"""Calls into the library with tensors: what all kernels share, and depthwise convolution. Nothing here knows of autograd; maps are
channels-last on the CPU, float32 or bfloat16.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from sepnet.kernels._calls import native_call
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import MAX_BRANCHES, Branch, Depthwise, Joined, Library
from sepnet.kernels._lookup import looked_up

__all__ = [
    "DTYPES",
    "Call",
    "Gradients",
    "Shape",
    "Side",
    "check_gradient",
    "depthwise_backward",
    "depthwise_backward_joined",
    "depthwise_forward",
    "depthwise_forward_joined",
    "described",
    "empty_gradients",
    "empty_map",
    "joined",
    "memory",
    "pointer",
    "tell_way",
    "threads_for",
    "workspace",
]

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_ALL_THREADS = 1 << 20
_FLOATS_A_THREAD = 1 << 14  # below this a second thread costs more than it saves

Shape = tuple[int, ...]
"""(B, C, H, W)."""


class Call(NamedTuple):
    """All of a call that depends on no values: a description in the library's terms, its address, the bytes of workspace that are
    needed (forward, backward), and the shape of the result.
    """

    description: ctypes.Structure
    address: int
    workspace: tuple[int, int]
    output: Shape


def described(description: ctypes.Structure, workspace: Sequence[int], output: Sequence[int], what: str) -> Call:
    """A call, from the library's answers to how much workspace it needs.

    Raises:
        ValueError: the library does not take it: an answer is negative.
    """
    if min(workspace) < 0:
        raise ValueError(f"the kernels do not {what}")
    forward, backward = workspace
    return Call(description, ctypes.addressof(description), (forward, backward), tuple(output))


def threads_for(elements: int, most: int) -> int:
    """``most``, as many as PyTorch uses, but for a small map."""
    return max(1, min(most, elements // _FLOATS_A_THREAD))


def _worth(shape: Shape, geometry: Geometry) -> int:
    """What a convolution of (B, C, H, W) has to do, in values of a map."""
    return math.prod(shape) * sum(h * w for h, w in geometry.kernels) // 4


def _description(shape: Shape, dtype: torch.dtype, geometry: Geometry, threads: int) -> Depthwise:
    """Raises ValueError: there is no output."""
    out = geometry.output_size(shape[2], shape[3])
    d = Depthwise(*shape, *out, *geometry.stride, len(geometry.kernels), geometry.interleaved, DTYPES[dtype], threads)
    branches = zip(geometry.kernels, geometry.paddings, geometry.dilations, strict=True)
    for j, (kernel, padding, dilation) in enumerate(islice(branches, MAX_BRANCHES)):
        d.branch[j] = Branch(*kernel, *padding, *dilation)
    return d


@looked_up
def _depthwise_call(lib: Library, isa: bytes, shape: Shape, dtype: torch.dtype, geometry: Geometry, most_threads: int) -> Call:
    d = _description(shape, dtype, geometry, threads_for(_worth(shape, geometry), most_threads))
    sizes = [lib.handle.sepnet_depthwise_workspace(ctypes.byref(d), backward) for backward in (0, 1)]
    output = shape[0], shape[1] * len(geometry.kernels), d.out_h, d.out_w
    return described(d, sizes, output, f"take {tuple(shape)} with {geometry}")


def tell_way(lib: Library, shape: Shape, dtype: torch.dtype, geometry: Geometry, by_torch: tuple[bool, bool]) -> bool:
    """Tell the library which passes of a convolution of (B, C, H, W) are to be PyTorch's, for calls by way of its dispatcher.

    False if it can remember no more. Raises ValueError: there is no output.
    """
    d = _description(shape, dtype, geometry, 0)
    most_threads = threads_for(_worth(shape, geometry), _ALL_THREADS)
    failed: int = lib.handle.sepnet_tell_way(ctypes.byref(d), by_torch[0] + 2 * by_torch[1], most_threads)
    return failed == 0


def memory(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Not filled; of this type and on the CPU whatever PyTorch's defaults are set to."""
    return torch.empty(size, dtype=dtype, device="cpu")


class _Kept(threading.local):
    workspace: Tensor | None = None


_kept = _Kept()
_MOST_KEPT = 4 << 20  # bytes a thread


def workspace(size: int) -> Tensor:
    """``size`` bytes at least, for one call into the library: the same in every call of a thread, and so in its caches."""
    kept = _kept.workspace
    if kept is None or kept.numel() < size:
        kept = memory(size, dtype=torch.uint8)
        if size <= _MOST_KEPT * max(2, torch.get_num_threads()):
            _kept.workspace = kept
    return kept


def empty_map(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Of x's type, channels-last, not filled; in two thirds of the time that ``torch.empty`` takes with a memory format."""
    _, channels, height, width = shape
    row = width * channels
    return x.new_empty_strided(shape, (height * row, 1, row, channels))


def pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor's values are; NULL for none."""
    return None if tensor is None else tensor.data_ptr()


class Side(NamedTuple):
    """A normalisation at one side of a convolution: its constants (see ``norm_statistics``), and whether ReLU follows."""

    constants: Tensor
    relu: bool


def joined(sums: Tensor | None, before: Side | None) -> Joined:
    """What a convolution takes over, in the library's terms; the caller keeps the tensors while the library reads them."""
    sides = Joined(sums=pointer(sums))
    if before is not None:
        sides.before, sides.before_relu = before.constants.data_ptr(), before.relu
    return sides


def check_gradient(grad: Tensor, call: Call, x: Tensor) -> None:
    """Raise ValueError, naming the shapes, unless ``grad`` is of the shape of the call's result."""
    if grad.shape != call.output:
        raise ValueError(f"the gradient is {tuple(grad.shape)}, the output of {tuple(x.shape)} is {call.output}")


@native_call
def depthwise_forward(lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Weight and bias: float32, contiguous."""
    return _depthwise_forward(lib, x, weight, bias, geometry, None)


@native_call
def depthwise_forward_joined(
    lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, before: Side | None, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """The convolution of the normalised x, and with ``sums`` those of its outputs that ``norm_statistics`` takes."""
    rows = memory(3, x.shape[1] * len(geometry.kernels), dtype=torch.float64) if sums else None
    return _depthwise_forward(lib, x, weight, bias, geometry, joined(rows, before)), rows


def _depthwise_forward(
    lib: Library, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, sides: Joined | None
) -> Tensor:
    call = _depthwise_call(lib, lib.isa_key, x.shape, x.dtype, geometry, torch.get_num_threads())
    y = empty_map(x, call.output)
    scratch = workspace(call.workspace[0])
    lib.handle.sepnet_depthwise_forward(
        call.address,
        None if sides is None else ctypes.addressof(sides),
        x.data_ptr(),
        weight.data_ptr(),
        pointer(bias),
        y.data_ptr(),
        scratch.data_ptr(),
    )
    return y


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def empty_gradients(x: Tensor, weight: Tensor, outputs: int, want: tuple[bool, bool, bool]) -> Gradients:
    """For those of x, weight (with its strides) and bias (a float32 an output channel), as far as they are wanted."""
    return (
        empty_map(x, x.shape) if want[0] else None,
        torch.empty_like(weight) if want[1] else None,
        memory(outputs) if want[2] else None,
    )


@native_call
def depthwise_backward(
    lib: Library, x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, want: tuple[bool, bool, bool]
) -> Gradients:
    """Gradients of x (in its type), weight and bias (float32), as far as they are wanted."""
    return _depthwise_backward(lib, x, weight, grad, geometry, want, None)


@native_call
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
    sides = joined(rows, before)
    if after is not None:
        y, side = after
        sides.after, sides.y, sides.after_relu = side.constants.data_ptr(), y.data_ptr(), side.relu
    return _depthwise_backward(lib, x, weight, grad, geometry, want, sides), rows


def _depthwise_backward(
    lib: Library,
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    geometry: Geometry,
    want: tuple[bool, bool, bool],
    sides: Joined | None,
) -> Gradients:
    call = _depthwise_call(lib, lib.isa_key, x.shape, x.dtype, geometry, torch.get_num_threads())
    check_gradient(grad, call, x)
    scratch = workspace(call.workspace[1])
    gradients = empty_gradients(x, weight, grad.shape[1], want)
    lib.handle.sepnet_depthwise_backward(
        call.address,
        None if sides is None else ctypes.addressof(sides),
        x.data_ptr(),
        weight.data_ptr(),
        grad.data_ptr(),
        *map(pointer, gradients),
        scratch.data_ptr(),
    )
    return gradients
