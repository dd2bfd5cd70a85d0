"""Devices, precision and processes, through lightning-fabric (torchrun starts the processes)."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from functools import cache
from typing import Any, Literal

import torch

from sepnet.errors import ConfigError, one_line
from sepnet.kernels import processor_has

try:
    from lightning_fabric import Fabric
except ImportError:  # the full `lightning` package carries it under another name
    from lightning.fabric import Fabric  # type: ignore[no-redef]

__all__ = ["Fabric", "check_device", "keep_large_buffers", "make_fabric", "prefers_bf16"]

# parameters of glibc's mallopt (malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@cache
def prefers_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is fast there: the instructions are present (CPU: AVX512-BF16 or AMX; CUDA: compute 8.0 on)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return processor_has("avx512_bf16") or processor_has("amx_bf16")
    return False


def make_fabric(device: str = "auto", amp: Literal["auto", "bf16", "off"] = "auto") -> Fabric:
    """A launched Fabric for ``device`` ("auto", "cpu", "cuda", "cuda:1", "mps"); under torchrun, one of its processes.

    Raises:
        ConfigError: the device is not there, or the name is not one of these.
    """
    accelerator, devices = _accelerator(device)
    settings: dict[str, Any] = {"accelerator": accelerator, "devices": devices}
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and "LOCAL_RANK" in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        settings.update(devices=local, num_nodes=world // local, strategy="ddp")
    target = torch.device("cuda" if accelerator == "cuda" else accelerator)
    bf16 = amp == "bf16" or (amp == "auto" and prefers_bf16(target))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it prints the precision on every call
    fabric = Fabric(precision="bf16-mixed" if bf16 else "32-true", **settings)
    fabric.launch()
    return fabric


def keep_large_buffers() -> bool:
    """Tell glibc to keep freed buffers instead of giving them back after every step; True where that was possible.

    By default each buffer above 32 MB is mapped and unmapped at every use, and its pages fault in again each time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    accepted = [mallopt(parameter, value) for parameter, value in wanted]
    return accepted == [1] * len(wanted)


def check_device(device: str) -> None:
    """Raises ConfigError: the device is not there, or its name is not one that ``make_fabric`` knows."""
    _accelerator(device)


def _accelerator(device: str) -> tuple[str, Any]:
    kind, _, index = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise ConfigError(f"--device {one_line(device)}: choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: this machine has no CUDA device that torch can use; choose cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: this machine has none; choose cpu")
    return kind, [int(index)] if index else 1
