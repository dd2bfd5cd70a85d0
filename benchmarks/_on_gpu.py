"""What the benchmarks for a GPU share."""

from __future__ import annotations

import sys
from importlib import metadata

import torch

from sepnet.kernels._gpu import why_not_triton

__all__ = ["demand_gpu", "versions"]


def demand_gpu(script: str) -> None:
    """End with status 2 and one line, unless there is a CUDA device on which Triton's kernels serve."""
    reason = why_not_triton(torch.device("cuda", 0)) if torch.cuda.is_available() else "this machine has no CUDA device"
    if reason is not None:
        print(f"{script}: {reason}", file=sys.stderr)
        raise SystemExit(2)


def versions() -> dict[str, str]:
    """Of what makes the GPU's code, as far as it is there."""
    try:
        found = {"triton": metadata.version("triton")}
    except metadata.PackageNotFoundError:
        found = {}
    return found | ({"CUDA": torch.version.cuda} if torch.version.cuda else {})
