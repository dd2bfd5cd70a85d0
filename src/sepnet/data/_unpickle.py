"""Reading the Python pickles that CIFAR-10 and CIFAR-100 are distributed as, without running what a pickle may ask for.

A pickle is a small program; its GLOBAL instructions fetch any importable function, and REDUCE calls it. These files need four such
names: three that rebuild a numpy array, and the text codec that Python 2 bytes travel through. Each is answered by a stand-in of
this module that accepts what the files hold and nothing else; no name is ever imported.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sepnet.errors import DataError, UnsafeFileError, one_line

__all__ = ["read_pickle"]

MAX_BYTES = 2**28


class _RefusedError(Exception):
    """The pickle asks for something that no CIFAR file needs."""


class _Callable:
    """A function that a pickle may call but not alter (BUILD would write into a plain function's ``__dict__``)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("a change to a function")


class _Uint8:
    """Stands for numpy.dtype("uint8"); its state (byte order, alignment) says nothing more about it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for a numpy array until the pickle has been read."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = np.zeros((0,), np.uint8)

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise _RefusedError("an array in an unknown form")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Uint8) or not isinstance(data, bytes):
            raise _RefusedError("an array that is not uint8")
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(data):
            raise ValueError(f"{len(data)} bytes for an array of shape {shape}")
        self.value = np.frombuffer(bytearray(data), np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _dtype(code: object, *flags: object) -> _Uint8:
    if code not in ("u1", b"u1", "|u1", b"|u1"):
        raise _RefusedError(f"an array of type {code!r}")
    return _Uint8()


def _reconstruct(subtype: object, *args: object) -> _Array:
    if subtype is not _NDARRAY:
        raise _RefusedError("an unknown kind of array")
    return _Array()


_NDARRAY = object()
_ALLOWED: dict[tuple[str, str], object] = {
    ("_codecs", "encode"): _Callable(_encode),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Callable(_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _Callable(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Callable(_reconstruct),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: object) -> object:
        raise _RefusedError("an object of another file")


def read_pickle(path: Path) -> tuple[dict[str, Any], bytes]:
    """The dictionary in a CIFAR pickle, keys as text, values of bytes, numbers, lists and uint8 arrays; and the file's bytes.

    Raises:
        UnsafeFileError: the file asks for anything else, or is over 256 MB.
        DataError: it is no pickle, cut short, or not a dictionary.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{one_line(path)} cannot be read: {one_line(error.strerror or error)}") from None
    if len(content) > MAX_BYTES:
        raise UnsafeFileError(f"{one_line(path)} is larger than {MAX_BYTES} bytes, which no CIFAR batch is; nothing was read")
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _RefusedError as error:
        raise UnsafeFileError(f"{one_line(path)} asks for {one_line(error)}, which no CIFAR file needs: refused") from None
    except Exception as error:  # a damaged pickle fails in any way that one of its instructions can
        raise DataError(f"{one_line(path)} is no readable pickle ({type(error).__name__}); unpack the archive again") from None
    if not isinstance(value, dict):
        raise DataError(f"{one_line(path)} holds a {type(value).__name__}, not the dictionary of a CIFAR batch")
    return {_text(key): item.value if isinstance(item, _Array) else item for key, item in value.items()}, content


def _text(key: object) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
