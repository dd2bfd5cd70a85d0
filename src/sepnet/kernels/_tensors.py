"""What the operations ask of a tensor before they hand it to the library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sepnet.kernels._library import Library, library
from sepnet.kernels._tracing import is_traced

__all__ = ["KINDS", "compute_dtype", "dense", "exact", "has_autocast", "is_plain", "is_trifle", "library_for", "wants_gradients"]

_TRIFLE = 1 << 16  # values
KINDS = (Tensor, torch.nn.Parameter)
_has_storage = torch._C._has_storage
has_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled


def is_plain(*tensors: Tensor | None) -> bool:
    """Tensors of PyTorch's own on the CPU, with values in memory: no subclass, which may stand for something else (FakeTensor,
    DTensor, ...), none of another layout (sparse, ...), none whose values stand negated in memory, none that a transform of
    ``torch.func`` has left behind. None is fine.
    """
    for x in tensors:  # noqa: SIM110 - a generator would be a function more
        if x is not None and not (type(x) in KINDS and x.is_cpu and _has_storage(x) and not x.is_neg()):
            return False
    return True


def library_for(*tensors: Tensor | None) -> Library | None:
    """The library, where it is in use and may read these: plain ones, of which no graph is being made."""
    return None if is_traced() or not is_plain(*tensors) else library()


def is_trifle(x: Tensor) -> bool:
    """Inference on about one image: PyTorch's operations are done before Python has found its way to a kernel."""
    return not torch.is_grad_enabled() and x.numel() <= _TRIFLE


def wants_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the result is to have an ``autograd.Function`` behind it, which is most of what a small map takes."""
    if forward_ad._current_level >= 0:  # a Function refuses the forward mode, which a kernel would not notice
        return True
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))


def dense(x: Tensor) -> Tensor:
    """``x`` in channels-last layout: itself, where it has it."""
    return x.contiguous(memory_format=torch.channels_last)


def exact(parameter: Tensor) -> Tensor:
    """The values in float32 and without gaps, as the library reads parameters; nothing to differentiate."""
    if parameter.dtype == torch.float32 and parameter.is_contiguous():
        return parameter
    return parameter.detach().float().contiguous()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that a convolution of ``x`` is computed in: autocast's, which leaves float64 alone, or its own."""
    dtype = x.dtype
    if not has_autocast() or dtype == torch.float64:  # whether any device has it is found out in half of the time
        return dtype
    kind = "cuda" if x.is_cuda else "cpu"
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
