"""A step of Muon (Jordan et al. 2024) by the kernels: momentum, iterations and update in one call.

Newton-Schulz iterations are products of matrices whose results are symmetric: the kernels compute one half of them. And nothing is
read for its norm alone, or converted, scaled and added one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import compress

import torch
from torch import Tensor

from sepnet.kernels import _native_muon
from sepnet.kernels._library import Library, library
from sepnet.kernels._native_muon import Iterations, Update
from sepnet.kernels._tensors import is_plain
from sepnet.kernels._tracing import is_traced

__all__ = ["MOST_STEPS", "Iterations", "Update", "muon_step", "same_places", "why_torch_iterates"]

MOST_STEPS = 3  # whose rounding on the Gram matrix grows from one to the next: 3 deviate by 1 to 3 %, 5 diverge


def muon_step(updates: Sequence[Update], iterations: Iterations, *, momentum: float = 0.0, keep: float = 0.0) -> list[Update]:
    """keep * weight + rate * D in place of each weight; those that the kernels do not take are given back, and are as they were.

    D is the gradient made near orthogonal, as a matrix of (rows, all the rest); with a ``mean``, of gradient + momentum * (mean -
    gradient), after mean has become momentum * mean + (1 - momentum) * gradient.
    """
    lib = library()
    if lib is None or iterations.steps > MOST_STEPS or is_traced() or why_torch_iterates(lib, iterations.dtype) is not None:
        return list(updates)
    taken = [_are_matrices(u.weight, u.gradient, u.mean) for u in updates]
    ours = list(compress(updates, taken))
    if ours:
        _native_muon.muon_step(lib, ours, iterations, momentum, keep)
        torch.autograd.graph.increment_version([t for u in ours for t in (u.weight, u.mean) if t is not None])
    return [u for u, done in zip(updates, taken, strict=True) if not done]


def why_torch_iterates(lib: Library, dtype: torch.dtype) -> str | None:
    """Why PyTorch's products are taken for iterations in a type, None where the kernels' are."""
    if lib.isa_key == b"baseline":
        return "not measured without vector instructions of x86"
    if dtype == torch.float32:
        return None
    if _multiplies_tiles():
        return "PyTorch's products are faster with AMX"
    return None if lib.isa_key == b"avx512_bf16" else "the kernels multiply bf16 with AVX512-BF16 only"


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


@cache
def _multiplies_tiles() -> bool:
    """Whether the processor has AMX, whose products are several times as fast as those of the kernels."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16"))
