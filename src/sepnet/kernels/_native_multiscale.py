"""Filters of the multi-scale unit's branches composed by the library, with tensors. Nothing here knows of autograd."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from sepnet.kernels._calls import native_call
from sepnet.kernels._library import Library, Multiscale
from sepnet.kernels._native import memory, pointer

__all__ = ["SIDE", "WIDE", "compose_filters", "filter_gradients"]

SIDE, WIDE = 3, 5  # of a filter, and of two that are stacked


@native_call
def compose_filters(lib: Library, unit: Multiscale, small: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """All branches' filters, from float32 (C, 1, 3, 3) without gaps: (C, 1, 5, 5), or one after the other."""
    channels = unit.channels
    filters = memory(channels, 1, WIDE, WIDE) if unit.add else memory(channels * (SIDE**2 + WIDE**2))
    lib.handle.sepnet_multiscale_filters(
        ctypes.addressof(unit), small.data_ptr(), first.data_ptr(), second.data_ptr(), filters.data_ptr()
    )
    return filters


@native_call
def filter_gradients(
    lib: Library, unit: Multiscale, filters: Sequence[Tensor], grad: Tensor, want: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of the three filters, as far as they are wanted, from that of the composed ones (without gaps)."""
    found = tuple(torch.empty_like(w) if wanted else None for w, wanted in zip(filters, want, strict=True))
    lib.handle.sepnet_multiscale_gradients(
        ctypes.addressof(unit), filters[1].data_ptr(), filters[2].data_ptr(), grad.data_ptr(), *map(pointer, found)
    )
    return found
