"""Which path each operation takes on this machine, and why; told from the functions that choose."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sepnet.kernels._choice_depthwise import choose, has_few_channels
from sepnet.kernels._choice_pointwise import MOST_FEW, Way, pointwise_way
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._gpu import why_not_triton
from sepnet.kernels._library import Library, library, why_not_native
from sepnet.kernels._muon import why_torch_iterates

__all__ = ["EXAMPLE_BATCH", "KernelPath", "calls_by", "gpu_path", "kernel_paths", "kernels_in_use"]

_CPU = torch.device("cpu")


class KernelPath(NamedTuple):
    """One operation: who computes its forward and its backward pass, and the reason."""

    operation: str
    dtype: str
    forward: str
    backward: str
    why: str


def kernels_in_use(device: torch.device = _CPU) -> str:
    """The instruction set that the library computes with, "Triton" on a GPU where that serves, or "PyTorch"."""
    if device.type == "cuda":
        return "PyTorch" if why_not_triton(device) else "Triton"
    lib = library() if device.type == "cpu" else None
    return lib.isa if lib is not None else "PyTorch"


def calls_by(lib: Library) -> str:
    """Who calls the library for a depthwise convolution of a step that is not recorded."""
    return "PyTorch's dispatcher" if lib.convolution is not None else f"an autograd.Function ({lib.why_no_dispatcher})"


def gpu_path() -> str | None:
    """Who computes on the GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    reason = why_not_triton(torch.device("cuda", torch.cuda.current_device()))
    if reason is not None:
        return f"PyTorch's own operations: {reason}"
    return "Triton: depthwise convolution (up to 7x7, stride 2, one filter a channel), and in training batch norm, shortcut, ReLU"


def _plain(kernel: int, stride: int = 1, dilation: int = 1, branches: int = 1, interleaved: bool = False) -> Geometry:
    padding = dilation * (kernel - 1) // 2
    return Geometry(
        (stride, stride),
        ((kernel, kernel),) * branches,
        ((padding, padding),) * branches,
        ((dilation, dilation),) * branches,
        interleaved,
    )


_CHANNELS = 64
EXAMPLE_BATCH = 128  # of what is listed: the way of a convolution depends on it
_WHY_POINTWISE = {
    Way.KERNELS: "PyTorch's products are slower here",
    Way.CONVOLUTION: "the faster of the two in PyTorch",
    Way.PRODUCT: "the faster of the two in PyTorch",
}
_DEPTHWISE = [
    *((f"depthwise 3x3, {n}x{n} map", n, _CHANNELS, _plain(3)) for n in (32, 8, 2)),
    ("depthwise 3x3, 32x32 map of 3 channels", 32, 3, _plain(3)),
    ("depthwise 3x3 stride 2, 32x32 map", 32, _CHANNELS, _plain(3, stride=2)),
    *((f"depthwise 3x3 dilation 5, {n}x{n} map", n, _CHANNELS, _plain(3, dilation=5)) for n in (32, 8)),
    *((f"depthwise {k}x{k}, 32x32 map", 32, _CHANNELS, _plain(k)) for k in (5, 7, 9)),
    ("depthwise 3x3, multiplier 2, 32x32 map", 32, _CHANNELS, _plain(3, branches=2, interleaved=True)),
    (
        "parallel depthwise 3x3 and 5x5, 32x32 map",
        32,
        _CHANNELS,
        Geometry((1, 1), ((3, 3), (5, 5)), ((1, 1), (2, 2)), ((1, 1), (1, 1)), False),
    ),
]


def _depthwise_path(
    name: str, size: int, channels: int, geometry: Geometry, dtype: torch.dtype, native: str, reason: str | None
) -> KernelPath:
    label = str(dtype).removeprefix("torch.")
    if reason is not None:
        return KernelPath(name, label, "PyTorch", "PyTorch", reason)
    shape = (EXAMPLE_BATCH, channels, size, size)
    choice = choose(dtype, shape, geometry)
    if choice is None:
        return KernelPath(name, label, "PyTorch", "PyTorch", "kernels reach to 7x7")
    forward, backward = choice
    if forward and backward:
        why = "PyTorch is as fast or faster here in both"
    elif forward:
        why = "PyTorch's forward pass is faster, its backward slower"
    elif has_few_channels(shape):
        why = "several images share a vector"
    elif len(geometry.kernels) > 1:
        why = "all branches in one pass over the input"
    else:
        why = "PyTorch is slower here in both"
    return KernelPath(name, label, "PyTorch" if forward else native, "PyTorch" if backward else native, why)


def _way_of_pointwise(lib: Library | None, dtype: torch.dtype, size: int) -> Way:
    if lib is None:
        return Way.CONVOLUTION
    shape = EXAMPLE_BATCH, _CHANNELS, size, size
    return pointwise_way(dtype, shape, _CHANNELS, bias=False, in_bf16=lib.has_bf16_products)


def kernel_paths() -> list[KernelPath]:
    """A row for each kind of operation and type, as they would run now."""
    reason = why_not_native()
    lib = library()
    native = "PyTorch" if lib is None else f"native {lib.isa}"
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        label = str(dtype).removeprefix("torch.")
        rows += [_depthwise_path(*case, dtype, native, reason) for case in _DEPTHWISE]
        for size in (4, 8):
            way = _way_of_pointwise(lib, dtype, size)
            how = native if way is Way.KERNELS else way.value
            name = f"pointwise 1x1, {size}x{size} map"
            rows.append(KernelPath(name, label, how, how, reason or _WHY_POINTWISE[way]))
        for name in ("batch norm, ReLU", "batch norm, 2x2 max pooling, ReLU"):
            why = reason or "one pass for all, after that of the statistics"
            rows.append(KernelPath(name, label, native, native, why))
        why = reason or "one operation in training: the wide map is never in memory"
        name = f"pointwise 1x1 of up to {MOST_FEW} channels to 16 and more, batch norm, 2x2 max pooling, ReLU"
        rows.append(KernelPath(name, label, native, native, why))
        why = reason or "joined in training: convolutions take over part of the normalisations' passes"
        further = ", pointwise" if lib is not None and lib.has_bf16_products and dtype == torch.bfloat16 else ""
        rows.append(KernelPath(f"batch norm, ReLU, depthwise, batch norm, ReLU{further}", label, native, native, why))
        against = reason if lib is None else why_torch_iterates(lib, dtype)
        how, why = "PyTorch" if against else native, against or "one call, and half of each symmetric product"
        rows.append(KernelPath("Muon's iterations and update", label, how, how, why))
    return rows
