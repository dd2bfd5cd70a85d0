"""Learning rates of an optimiser whose step is recorded: where a replay can read them anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["rates_as_tensors"]


@contextmanager
def rates_as_tensors(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """Give the optimiser its learning rates as tensors, one a group, and only while its step is recorded: its state and its
    checkpoints keep plain numbers.
    """
    groups: list[dict[str, Any]] = optimizer.param_groups
    before: list[dict[str, Any]] = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in groups]
    try:
        for group, rate in zip(groups, rates, strict=True):
            group |= {"lr": rate} | ({"capturable": True} if rate.is_cuda and "capturable" in group else {})
        yield
    finally:
        for group, old in zip(groups, before, strict=True):
            group |= old
