"""Whether tensors are real: under tracing and functional transforms they have no memory that a kernel could read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.compiler import is_dynamo_compiling

from sepnet.kernels._calls import is_watched

__all__ = ["has_modes", "is_ordinary", "is_traced", "is_written_down"]

# asked at every call, often of a few microseconds: by the shortest way
_tracing_state = torch._C._get_tracing_state
has_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
"""How many dispatch modes there are, who see PyTorch's operations; the one of ``_calls`` too."""
_transforms_active = torch._C._are_functorch_transforms_active


def is_written_down() -> bool:
    """Whether a graph is being made that must run without sepnet (torch.export, torch.jit.trace), or a transform is at work, or
    somebody wants to see every operation (make_fx, FlopCounterMode: dispatch modes), to whom a call into C is invisible.
    """
    if torch.compiler.is_exporting() or _transforms_active():
        return True
    if torch.compiler.is_compiling():  # which cannot read the rest, and has no need to
        return False
    return _tracing_state() is not None or _has_others()


def is_traced() -> bool:
    """Whether a graph is being made, by torch.compile or for keeps (torch.export counts as both)."""
    if is_dynamo_compiling():  # torch.export without it has dispatch modes
        return True
    if _tracing_state() is not None or _transforms_active():
        return True
    return _has_others()


def _has_others() -> bool:
    """Whether there are others than the one that sees the kernels' calls too."""
    modes = has_modes()
    return modes > 0 and (modes > 1 or not is_watched())


def is_ordinary() -> bool:
    """Whether a call now is nobody's business but its own: no graph is made, no mode looks on, and what is saved for the backward
    pass goes through no hooks (those of checkpointing count how often they are called).
    """
    if has_modes() or _transforms_active() or _tracing_state() is not None:
        return False
    return _saved_tensors_hooks(True) is None
