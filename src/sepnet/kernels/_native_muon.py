"""The library's step of Muon with tensors: float32 on the CPU, without gaps."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sepnet.kernels import _native
from sepnet.kernels._library import Library, Muon
from sepnet.kernels._native import DTYPES, pointer, workspace

__all__ = ["Iterations", "muon_step"]

_PRODUCTS_A_VALUE = 64  # multiplications that take about as long as a value's way through another kernel


class Iterations(NamedTuple):
    """Newton-Schulz iterations: X becomes a X + b X X' X + c (X X')^2 X, so many times, computed in a type."""

    a: float
    b: float
    c: float
    steps: int
    dtype: torch.dtype


@lru_cache(maxsize=512)
def _workspace_bytes(lib: Library, isa: bytes, rows: int, columns: int, dtype: torch.dtype) -> int:
    step = Muon(rows=rows, cols=columns, steps=1, dtype=DTYPES[dtype], threads=1)
    return int(lib.handle.sepnet_muon_workspace(ctypes.byref(step)))


def muon_step(
    lib: Library,
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor | None,
    iterations: Iterations,
    momentum: float,
    keep: float,
    rate: float,
) -> bool:
    """``weight`` becomes keep * weight + rate * D, where D is made near orthogonal of the gradient, or of Nesterov's look ahead of
    its mean, which moves towards it. The columns of (rows, ...) stand in any order, the same in all three. False where the library
    does not compute in that type.
    """
    rows = weight.shape[0]
    columns = weight.numel() // rows
    size = _workspace_bytes(lib, lib.isa_key, rows, columns, iterations.dtype)
    if size < 0:
        return False
    scratch = workspace(size)
    short = min(rows, columns)
    threads = _native.threads_for(short * rows * columns // _PRODUCTS_A_VALUE)
    step = Muon(rows, columns, iterations.steps, DTYPES[iterations.dtype], threads, *iterations[:3], momentum, keep, rate)
    lib.handle.sepnet_muon_step(ctypes.addressof(step), gradient.data_ptr(), pointer(mean), weight.data_ptr(), scratch.data_ptr())
    return True
