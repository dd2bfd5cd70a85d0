"""The library's step of Muon with tensors: float32 on the CPU, without gaps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sepnet.kernels import _native
from sepnet.kernels._library import Library, Muon
from sepnet.kernels._native import DTYPES, pointer, workspace

__all__ = ["Iterations", "Update", "muon_step"]

_PRODUCTS_A_VALUE = 64  # multiplications that take about as long as a value's way through another kernel


class Iterations(NamedTuple):
    """Newton-Schulz iterations: X becomes a X + b X X' X + c (X X')^2 X, so many times, computed in a type."""

    a: float
    b: float
    c: float
    steps: int
    dtype: torch.dtype


class Update(NamedTuple):
    """Of a weight, (rows, all the rest): its gradient, the gradient's running mean if there is one, and the rate of its step."""

    weight: Tensor
    gradient: Tensor
    mean: Tensor | None
    rate: float

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns."""
        rows = self.weight.shape[0]
        return rows, self.weight.numel() // rows


def muon_step(lib: Library, updates: Sequence[Update], iterations: Iterations, momentum: float, keep: float) -> None:
    """Each weight becomes keep * weight + rate * D, where D is made near orthogonal of the gradient, or of Nesterov's look ahead of
    its mean, which moves towards it. Columns stand in any order, the same in the three tensors of an update.

    Raises:
        ValueError: the library does not compute in that type.
    """
    numbers = iterations.steps, DTYPES[iterations.dtype], *iterations[:3], momentum, keep
    entries = [Muon(*u.matrix, *numbers, u.rate, u.gradient.data_ptr(), pointer(u.mean), u.weight.data_ptr()) for u in updates]
    weights = (Muon * len(entries))(*entries)
    work = sum(rows * columns * min(rows, columns) for rows, columns in (u.matrix for u in updates))
    threads = _native.threads_for(work // _PRODUCTS_A_VALUE, torch.get_num_threads())
    address = ctypes.addressof(weights)
    size = lib.handle.sepnet_muon_workspace(address, len(entries), threads)
    if size < 0:
        raise ValueError(f"the kernels do not take {iterations} of {[u.matrix for u in updates]}")
    scratch = workspace(size)
    lib.handle.sepnet_muon_step(address, len(entries), threads, scratch.data_ptr())
