"""The compiled library: found, loaded and described; or why it cannot be, in which case PyTorch's operations serve.

Environment:
    SEPNET_KERNELS: ``native`` (an error if the library cannot be loaded), ``reference`` (PyTorch's operations), or unset: the
        library if there is one, with one warning if there is none.
    SEPNET_KERNELS_ISA: an instruction set to use instead of the best that the processor has.
"""

from __future__ import annotations

import ctypes
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from sepnet.errors import ConfigError, one_line
from sepnet.kernels import _dispatcher, _lookup

__all__ = [
    "Branch",
    "Depthwise",
    "Joined",
    "Library",
    "Mode",
    "Multiscale",
    "Muon",
    "Norm",
    "Running",
    "isa_names",
    "library",
    "reference_wanted",
    "stop_dispatching",
    "use",
    "why_not_native",
]

Mode = Literal["native", "reference"]

ABI = 12
MAX_BRANCHES = 4
MAX_KERNEL = 7
_WITH_BF16_PRODUCTS = (b"avx512_bf16_amx", b"avx512_bf16")
isa_names = ("avx512_bf16_amx", "avx512_bf16_floats", "avx512_bf16", "avx512", "avx2", "baseline")
_FILE = Path(__file__).with_name("_sepnet_kernels.so")


class Branch(ctypes.Structure):
    """``sepnet_branch`` of csrc/sepnet_kernels.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("kernel_h", "kernel_w", "pad_h", "pad_w", "dilation_h", "dilation_w")]


class Depthwise(ctypes.Structure):
    """``sepnet_depthwise`` of csrc/sepnet_kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "in_h", "in_w", "out_h", "out_w", "stride_h", "stride_w")),
        *((name, ctypes.c_int32) for name in ("branches", "interleaved", "dtype", "threads")),
        ("branch", Branch * MAX_BRANCHES),
    ]


class Norm(ctypes.Structure):
    """``sepnet_norm`` of csrc/sepnet_kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width")),
        *((name, ctypes.c_int32) for name in ("pool", "relu", "dtype", "threads")),
    ]


class Joined(ctypes.Structure):
    """``sepnet_joined`` of csrc/sepnet_kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("before", "after", "y", "sums")),
        *((name, ctypes.c_int32) for name in ("before_relu", "after_relu")),
    ]


class Pointwise(ctypes.Structure):
    """``sepnet_pointwise`` of csrc/sepnet_kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "in", "out")),
        *((name, ctypes.c_int32) for name in ("dtype", "threads")),
    ]


class Muon(ctypes.Structure):
    """``sepnet_muon`` of csrc/sepnet_kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "cols")),
        *((name, ctypes.c_int32) for name in ("steps", "dtype")),
        *((name, ctypes.c_double) for name in ("a", "b", "c", "momentum", "keep", "rate")),
        *((name, ctypes.c_void_p) for name in ("grad", "mean", "weight")),
    ]


class Multiscale(ctypes.Structure):
    """``sepnet_multiscale`` of csrc/sepnet_kernels.h."""

    _fields_ = [("channels", ctypes.c_int64), ("add", ctypes.c_int32), ("residual", ctypes.c_int32)]


class Running(ctypes.Structure):
    """``sepnet_running`` of csrc/sepnet_kernels.h."""

    _fields_ = [("mean", ctypes.c_void_p), ("var", ctypes.c_void_p), ("momentum", ctypes.c_double)]


_P = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "sepnet_abi": (ctypes.c_int, []),
    "sepnet_isa": (ctypes.c_char_p, []),
    "sepnet_select_isa": (ctypes.c_int, [ctypes.c_char_p]),
    "sepnet_set_parallel": (None, [_P, _P]),
    "sepnet_set_torch": (ctypes.c_int, [_P, ctypes.c_int64]),
    "sepnet_tell_way": (ctypes.c_int, [_P, ctypes.c_int, ctypes.c_int64]),
    "sepnet_forget_ways": (None, []),
    "sepnet_depthwise_workspace": (ctypes.c_int64, [_P, ctypes.c_int]),
    "sepnet_depthwise_forward": (ctypes.c_int, [_P] * 7),
    "sepnet_depthwise_backward": (ctypes.c_int, [_P] * 9),
    "sepnet_norm_workspace": (ctypes.c_int64, [_P]),
    "sepnet_norm_statistics": (ctypes.c_int, [*[_P] * 5, ctypes.c_double, *[_P] * 3]),
    "sepnet_norm_apply": (ctypes.c_int, [_P] * 7),
    "sepnet_norm_forward": (ctypes.c_int, [*[_P] * 6, ctypes.c_double, *[_P] * 5]),
    "sepnet_norm_sums": (ctypes.c_int, [_P] * 9),
    "sepnet_norm_gradients": (ctypes.c_int, [_P] * 5),
    "sepnet_norm_input_gradient": (ctypes.c_int, [_P] * 7),
    "sepnet_norm_backward": (ctypes.c_int, [_P] * 11),
    "sepnet_pooled_pointwise_workspace": (ctypes.c_int64, [_P, ctypes.c_int64, ctypes.c_int]),
    "sepnet_pooled_pointwise_forward": (ctypes.c_int, [_P, ctypes.c_int64, *[_P] * 4, ctypes.c_double, *[_P] * 6]),
    "sepnet_pooled_pointwise_backward": (ctypes.c_int, [_P, ctypes.c_int64, *[_P] * 11]),
    "sepnet_multiscale_filters": (ctypes.c_int, [_P] * 5),
    "sepnet_multiscale_gradients": (ctypes.c_int, [_P] * 7),
    "sepnet_pointwise_workspace": (ctypes.c_int64, [_P, ctypes.c_int]),
    "sepnet_pointwise_forward": (ctypes.c_int, [_P] * 7),
    "sepnet_pointwise_backward": (ctypes.c_int, [_P] * 9),
    "sepnet_muon_workspace": (ctypes.c_int64, [_P, ctypes.c_int64, ctypes.c_int]),
    "sepnet_muon_step": (ctypes.c_int, [_P, ctypes.c_int64, ctypes.c_int, _P]),
}


def _is_whole(path: Path) -> bool:
    """False for an ELF file that ends before its last part, the table of sections, does: an interrupted copy. The dynamic linker
    does not look, and the process that touches what is missing is killed.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return True  # of another kind, or too short for the linker to miss it
    order = "<" if header[5] == 1 else ">"
    (table,) = struct.unpack_from(order + "Q", header, 40)
    size, count = struct.unpack_from(order + "HH", header, 58)
    return path.stat().st_size >= int(table + size * count)


class Library:
    """The loaded library with its functions' types declared; ``threads`` says whose threads it works in, ``isa_key`` is the
    instruction set in use, on whose vectors the workspace depends, and ``convolution`` is the call by way of PyTorch's dispatcher,
    where that has been given the kernels.
    """

    def __init__(self, path: Path) -> None:
        if not _is_whole(path):
            raise OSError(f"{path.name} is cut short")
        lib = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        if lib.sepnet_abi() != ABI:
            raise OSError(
                f"{path.name} is of another version of sepnet (interface {lib.sepnet_abi()}, wanted {ABI}): install again"
            )
        self.handle = lib
        self.isa_key: bytes = lib.sepnet_isa()
        self.threads = "a pool of their own"
        _lookup.forget_with(lib.sepnet_forget_ways)
        registered = _dispatcher.register(lib)
        self.convolution: _dispatcher.Convolution | None = None if isinstance(registered, str) else registered
        self.why_no_dispatcher = registered if isinstance(registered, str) else ""
        team = _team_of_torch()
        if team is not None:
            lib.sepnet_set_parallel(*team)
            self.threads = "PyTorch's OpenMP team"

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self.isa_key.decode()

    @property
    def has_tiles(self) -> bool:
        """Whether it multiplies bf16 matrices by AMX."""
        return self.isa_key.endswith(b"_amx")

    @property
    def has_bf16_products(self) -> bool:
        """Whether it has pointwise convolutions of bf16 maps: by AMX, or by vectors, as AMD's are fast enough (csrc/dispatch.c)."""
        return self.isa_key in _WITH_BF16_PRODUCTS

    def select_isa(self, name: str) -> None:
        """Use another instruction set from now on.

        Raises:
            ConfigError: there is none of that name, or the processor lacks it.
        """
        if self.handle.sepnet_select_isa(name.encode()) != 0:
            raise ConfigError(f"instruction set {one_line(name)}: this processor has not got it; there are {', '.join(isa_names)}")
        self.isa_key = self.handle.sepnet_isa()


def _team_of_torch() -> tuple[int | None, int | None] | None:
    """Addresses of GOMP_parallel and omp_get_thread_num in the OpenMP runtime that torch runs on; None where torch uses another."""
    if "OpenMP" not in torch.__config__.parallel_info().split("ATen parallel backend:")[-1]:
        return None
    try:
        runtime = ctypes.CDLL(None)
        parallel, number = (ctypes.cast(f, ctypes.c_void_p).value for f in (runtime.GOMP_parallel, runtime.omp_get_thread_num))
        return parallel, number
    except (AttributeError, OSError):
        return None


@cache
def _load() -> Library | str:
    """The library, or why there is none."""
    if not _FILE.exists():
        return "the library was not built (no C compiler when sepnet was installed, or sepnet runs from a bare source tree)"
    try:
        lib = Library(_FILE)
    except (OSError, AttributeError) as error:
        return f"the library cannot be loaded ({one_line(error)})"
    isa = os.environ.get("SEPNET_KERNELS_ISA")
    if isa:
        lib.select_isa(isa)
    return lib


def _asked_for() -> Mode | None:
    value = os.environ.get("SEPNET_KERNELS", "")
    if value not in ("", "native", "reference"):
        raise ConfigError(f"SEPNET_KERNELS={one_line(value)}: choose native or reference")
    return value or None  # type: ignore[return-value]


def why_not_native() -> str | None:
    """Why PyTorch's operations serve instead of the kernels; None if the kernels serve."""
    if _override is not None:
        return None if _override == "native" else "asked for by sepnet.kernels.use"
    if _asked_for() == "reference":
        return "SEPNET_KERNELS=reference"
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@cache
def _choose() -> Library | None:
    global dispatched
    asked, dispatched = _asked_for(), None
    if asked == "reference":
        return None
    loaded = _load()
    if isinstance(loaded, Library):
        dispatched = loaded.convolution
        return loaded
    remedy = "install sepnet again where a C compiler is (pip install --force-reinstall --no-deps)"
    if asked == "native":
        raise ConfigError(f"SEPNET_KERNELS=native: {loaded}; {remedy}")
    warnings.warn(
        f"sepnet's native kernels are not in use: {loaded}. Training works, more slowly; {remedy}", RuntimeWarning, stacklevel=2
    )
    return None


_override: Mode | None = None
dispatched: _dispatcher.Convolution | None = None
"""The ``convolution`` of the library that is in use (``library``), without asking; None until that has been asked for."""


def library() -> Library | None:
    """The library if the kernels are to be used, else None."""
    if _override is None:
        return _choose()
    if _override == "reference":
        return None
    loaded = _load()
    if isinstance(loaded, str):
        raise ConfigError(f"native kernels: {loaded}")
    return loaded


def stop_dispatching(lib: Library) -> None:
    """From now on an ``autograd.Function`` calls this library."""
    global dispatched
    lib.convolution, lib.why_no_dispatcher, dispatched = None, "there were more kinds of convolutions than it remembers", None


def reference_wanted() -> bool:
    """Whether PyTorch's operations are asked for, on whatever device."""
    return _asked_at_start() == "reference" if _override is None else _override == "reference"


@cache
def _asked_at_start() -> Mode | None:
    return _asked_for()


@contextmanager
def use(mode: Mode) -> Iterator[None]:
    """Within the block, the kernels ("native") or PyTorch's operations ("reference") serve; for measurements and tests.

    Raises:
        ConfigError: "native" is asked for and the library cannot be loaded.
    """
    global _override, dispatched
    before = _override, dispatched
    _override = mode
    try:
        lib = library()
        dispatched = None if lib is None else lib.convolution
        yield
    finally:
        _override, dispatched = before
