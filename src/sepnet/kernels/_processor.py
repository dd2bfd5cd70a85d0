"""What this processor computes with, as far as the choice of a way depends on it."""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path

import torch

__all__ = ["instructions", "is_intel_with_bf16", "is_zen5", "multiplies_pairs", "onednn_has", "processor_has"]

_FIRST_LINES = 32  # of what Linux tells of its processors, one after the other: all of the first one's


def onednn_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this type here. PyTorch's own way instead is slow in bf16, its weight gradient 3 % off."""
    return torch._C._has_mkldnn and (dtype == torch.float32 or _onednn_has_bf16())


@cache
def _onednn_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def instructions() -> str:
    """As PyTorch names them: "AVX512", "AVX2", ..."""
    return torch.backends.cpu.get_cpu_capability()


@cache
def _has_avx512_bf16() -> bool:
    return instructions() == "AVX512" and processor_has("avx512_bf16")


@cache
def multiplies_pairs() -> bool:
    """Whether there is an instruction for sums of two products of bf16 values, which the depthwise kernels use: Intel's takes too
    long (measured on a Xeon 6)."""
    return _has_avx512_bf16() and not _is_intel()


@cache
def is_intel_with_bf16() -> bool:
    """One of Intel's with AVX512-BF16: Sapphire Rapids and what came after it, and Cooper Lake."""
    return _has_avx512_bf16() and _is_intel()


@cache
def _is_intel() -> bool:
    """As the kernels find it out (csrc/processor.c)."""
    try:
        with Path("/proc/cpuinfo").open() as told:
            return any("GenuineIntel" in line for line in islice(told, _FIRST_LINES))
    except OSError:
        return False


@cache
def is_zen5() -> bool:
    """AMD's generation Zen 5 or a later one, whose vectors of 512 bits are computed at once: the first ones with both of these."""
    return multiplies_pairs() and processor_has("avx512_vp2intersect")


@cache
def processor_has(name: str) -> bool:
    """Whether the CPU has instructions that PyTorch calls so ("avx512_bf16", "amx_bf16", ...); False where it does not tell."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get(name))
