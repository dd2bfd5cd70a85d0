"""The depthwise convolution by way of PyTorch's dispatcher: a differentiable call that Python has no part in.

``aten::convolution_overrideable`` is there for processors that PyTorch does not know: it has a derivative,
``aten::convolution_backward_overrideable``, and no kernels of its own. Those of csrc/torch_operator.c take that place for the CPU.
By an ``autograd.Function`` a call takes 10 microseconds more, and several times that with cold caches, as does its backward pass:
as much as a small map takes. Whoever takes the place after us serves from then on; PyTorch warns of that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from sepnet.kernels._geometry import Geometry, Pair

__all__ = ["Arguments", "Convolution", "arguments", "register"]

Arguments = tuple[Pair, Pair, Pair, bool, Pair, int]
"""Stride, padding, dilation, transposed, output_padding and groups."""
Convolution = Callable[..., Tensor]
"""Given input, weight, bias or None, and the arguments."""

_OPERATORS = {
    "aten::convolution_overrideable": "sepnet_convolution_forward",
    "aten::convolution_backward_overrideable": "sepnet_convolution_backward",
}
# in the order of sepnet_torch of csrc/torch_abi.h; all of them are there from PyTorch 2.13 on
_FUNCTIONS = (
    "aoti_torch_delete_tensor_object",
    "aoti_torch_new_uninitialized_tensor",
    "aoti_torch_empty_strided",
    "aoti_torch_copy_",
    "aoti_torch_get_dim",
    "aoti_torch_get_sizes",
    "aoti_torch_get_strides",
    "aoti_torch_get_dtype",
    "aoti_torch_get_data_ptr",
    "torch_get_const_data_ptr",
    "torch_list_size",
    "torch_list_get_item",
    "torch_delete_list",
    "torch_delete_stable_ivalue",
    "aoti_torch_cpu_convolution",
    "aoti_torch_cpu_convolution_backward",
    "torch_get_num_threads",
    "torch_exception_get_what_without_backtrace",
    "aoti_torch_check",
)
_INTERFACE = ctypes.c_uint64(2 << 56 | 13 << 48)  # the version of PyTorch whose conventions torch_operator.c follows


def arguments(geometry: Geometry, channels: int) -> Arguments:
    """Of one filter bank."""
    return geometry.stride, geometry.paddings[0], geometry.dilations[0], False, (0, 0), channels


_registered: dict[int, Convolution] = {}  # of a library, by its handle: one that is loaded again is the same


def register(library: ctypes.CDLL) -> Convolution | str:
    """Hand the kernels to PyTorch, for the life of the process; or why that is not possible."""
    if library._handle in _registered:
        return _registered[library._handle]
    try:
        torch_library = ctypes.CDLL(torch._C.__file__)  # whose dependencies are searched, libtorch_cpu among them
        functions = [ctypes.cast(getattr(torch_library, name), ctypes.c_void_p) for name in _FUNCTIONS]
        implement, namespace = torch_library.torch_library_impl, torch_library.aoti_torch_library_init_impl
        taken = any(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") for name in _OPERATORS)
    except (AttributeError, OSError, RuntimeError):
        return f"PyTorch {torch.__version__} lacks what it takes, which is there from 2.13 on"
    if taken:
        return "the place is taken, by another library or by sepnet itself, imported before"
    if library.sepnet_set_torch((ctypes.c_void_p * len(functions))(*functions), len(functions)) != 0:
        return "the library was built for other functions of PyTorch's"
    handle = ctypes.c_void_p()  # never deleted: the kernels would go with it
    failed = namespace(b"aten", b"CPU", b"sepnet", ctypes.c_uint32(0), ctypes.byref(handle))
    for name, function in _OPERATORS.items():
        failed = failed or implement(handle, name.encode(), getattr(library, function), _INTERFACE)
    if failed:
        return "PyTorch refuses the kernels"
    # what is called by OpOverload: a frame of Python's less
    convolution: Convolution = torch.ops.aten.convolution_overrideable.default._op
    return _registered.setdefault(library._handle, convolution)
