"""A step of Muon (Jordan et al. 2024) by the kernels: momentum, iterations and update in one call.

Newton-Schulz iterations are products of matrices whose results are symmetric: the kernels compute one half of them. And nothing is
read for its norm alone, or converted, scaled and added one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress

import torch
from torch import Tensor

from sepnet.kernels import _native_muon
from sepnet.kernels._calls import is_watched
from sepnet.kernels._library import Library, library
from sepnet.kernels._native_muon import Iterations, Update
from sepnet.kernels._processor import processor_has
from sepnet.kernels._tensors import is_plain
from sepnet.kernels._tracing import is_traced

__all__ = ["MOST_STEPS", "Iterations", "Update", "muon_step", "same_places", "why_torch_iterates"]

# Rounding on the Gram matrix grows from step to step: 3 in bf16 deviate by 1 to 3 %, where one singular value is most of a matrix
# by up to 15 %, 5 diverge.
MOST_STEPS = 3


def muon_step(updates: Sequence[Update], iterations: Iterations, *, momentum: float = 0.0, keep: float = 0.0) -> list[Update]:
    """keep * weight + rate * D in place of each weight; those that the kernels do not take are given back, and are as they were.

    D is the gradient made near orthogonal, as a matrix of (rows, all the rest); with a ``mean``, of gradient + momentum * (mean -
    gradient), after mean has become momentum * mean + (1 - momentum) * gradient.
    """
    taken = _which(updates) if 1 <= iterations.steps <= MOST_STEPS and not is_traced() and not is_watched() else []
    lib = library() if any(taken) else None
    if lib is None or why_torch_iterates(lib, iterations.dtype) is not None:
        return list(updates)
    ours = list(compress(updates, taken))
    _native_muon.muon_step(lib, ours, iterations, momentum, keep)
    torch.autograd.graph.increment_version([t for u in ours for t in (u.weight, u.mean) if t is not None])
    return [u for u, done in zip(updates, taken, strict=True) if not done]


def _which(updates: Sequence[Update]) -> list[bool]:
    """Whether each can be computed beside the others: its memory must not be that of one before it."""
    seen: set[int] = set()
    found = []
    for u in updates:
        places = {t.data_ptr() for t in (u.weight, u.mean) if t is not None} if _are_matrices(*u[:3]) else set()
        found.append(bool(places) and not places & seen)
        seen |= places
    return found


def why_torch_iterates(lib: Library, dtype: torch.dtype) -> str | None:
    """Why PyTorch's products are taken for iterations in a type, None where the kernels' are."""
    if lib.isa_key == b"baseline":
        return "not measured without vector instructions of x86"
    if dtype == torch.float32:
        return None
    if dtype != torch.bfloat16:
        return "the kernels iterate in float32 and bf16"
    if processor_has("amx_bf16") and not lib.has_tiles:  # which PyTorch has
        return "PyTorch's products are faster with AMX"
    return None if lib.isa_key.startswith(b"avx512_bf16") else "the kernels multiply bf16 with AVX512-BF16 only"


def same_places(*tensors: Tensor) -> bool:
    """Whether values at the same place in memory belong together: tensors of one shape, in the same order, without gaps."""
    first = tensors[0]
    order = _order(first.shape, first.stride())
    return order is not None and all(t.shape == first.shape and _order(t.shape, t.stride()) == order for t in tensors[1:])


@lru_cache(maxsize=1024)
def _order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions that are more than one wide, from the outermost on; None for a tensor with gaps."""
    dims = sorted((d for d, length in enumerate(shape) if length > 1), key=strides.__getitem__, reverse=True)
    size = 1
    for d in reversed(dims):
        if strides[d] != size:
            return None
        size *= shape[d]
    return tuple(dims)


def _are_matrices(weight: Tensor, *others: Tensor | None) -> bool:
    tensors = [weight, *(t for t in others if t is not None)]
    if not all(is_plain(t) and t.dtype == torch.float32 for t in tensors) or weight.ndim < 2 or weight.numel() == 0:
        return False
    order = _order(weight.shape, weight.stride())
    rows_first = order is not None and (not order or weight.shape[0] == 1 or order[0] == 0)
    return rows_first and same_places(*tensors)
