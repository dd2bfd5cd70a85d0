"""Pointwise convolution of bf16 maps by AMX and by vectors against float64 and PyTorch; and who takes it."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from kernel_pointwise_tools import ALL, WITH_PRODUCTS, check_native, in_bf16, needs_tiles, second_derivatives, tensors
from kernel_tools import ISAS, LIBRARY, instruction_set, needs_library, threads
from sepnet.kernels import _choice_pointwise, _pointwise, pointwise_conv2d, use
from sepnet.kernels._choice_pointwise import Way, pointwise_way
from sepnet.kernels._native_pointwise import pointwise_backward, pointwise_forward
from sepnet.nn.conv import pointwise

pytestmark = needs_library

TILED = st.sampled_from([32, 64, 96, 128, 288, 544])


@in_bf16
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 4), TILED, st.integers(1, 20), st.integers(1, 20)),
    TILED,
    st.integers(1, 5),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(0, 99),
)
def test_blocks_agree_with_float64(
    isa: str, shape: tuple[int, int, int, int], outputs: int, count: int, want: tuple[bool, bool, bool], seed: int
) -> None:
    """Of weights rounded to bf16; the gradients of weight and bias are float32's."""
    with instruction_set(isa), threads(count):
        check_native(shape, outputs, want, seed, torch.bfloat16)


@in_bf16
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((2, 1056, 9, 31), 320),
        ((1, 1024, 3, 3), 32),
        ((3, 32, 40, 41), 1312),
        ((1, 32, 1, 1), 2048),
        ((8, 32, 33, 32), 64),
        ((2, 64, 18, 18), 4128),  # with five threads blocks of channels and shares of the pixels
        ((2, 4128, 18, 18), 64),
    ],
)
def test_more_blocks_than_are_packed_together(isa: str, count: int, shape: tuple[int, int, int, int], outputs: int) -> None:
    """Panels, steps of pixels, bands, and weights of which each thread takes a part."""
    with instruction_set(isa), threads(count):
        check_native(shape, outputs, dtype=torch.bfloat16)


@in_bf16
def test_blocks_let_what_is_no_number_through_to_its_own_pixel(isa: str) -> None:
    x, weight, _, _ = tensors((1, 32, 5, 7), 64)
    x[0, 3, 4, 6] = float("nan")
    with instruction_set(isa):
        y = pointwise_forward(LIBRARY, x.bfloat16(), weight, None)
    assert y[0, :, 4, 6].isnan().all()
    assert y.isnan().sum() == 64


@in_bf16
@pytest.mark.parametrize(("inputs", "outputs"), [(33, 32), (32, 40)])
def test_part_of_a_block_is_refused(isa: str, inputs: int, outputs: int) -> None:
    x, weight, _, _ = tensors((1, inputs, 5, 7), outputs)
    with instruction_set(isa), pytest.raises(ValueError, match="the kernels do not take 35 pixels"):
        pointwise_forward(LIBRARY, x.bfloat16(), weight, None)


@pytest.mark.skipif(not ISAS, reason="no library")
def test_bf16_without_products_is_refused() -> None:
    x, weight, _, _ = tensors((1, 32, 5, 7), 32)
    for isa in (isa for isa in ISAS if isa not in WITH_PRODUCTS):
        with instruction_set(isa), pytest.raises(ValueError, match="bfloat16"):
            pointwise_forward(LIBRARY, x.bfloat16(), weight, None)


@in_bf16
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_under_autocast(isa: str, input_dtype: torch.dtype, with_bias: bool) -> None:
    """As PyTorch's: rounded maps, gradients of the weights in float32 and of the input in its own type."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 9, 9, dtype=input_dtype, requires_grad=True)  # NCHW
    layer = pointwise(64, 96, bias=with_bias).to(memory_format=torch.channels_last)
    leaves = [x, *layer.parameters()]
    results = []
    for mode in ("native", "reference"):
        called = mock.Mock(wraps=pointwise_forward)
        with instruction_set(isa), use(mode), mock.patch.object(_pointwise, "pointwise_forward", called):  # type: ignore[arg-type]
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(x)
            assert called.called == (mode == "native")
            assert y.dtype == torch.bfloat16
            results.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
    for ours, theirs, leaf in zip(results[0], results[1], [None, *leaves], strict=True):
        assert ours.dtype == theirs.dtype
        assert leaf is None or ours.dtype == leaf.dtype
        assert leaf is None or leaf is x or ours.stride() == leaf.stride()
        assert (ours - theirs).double().norm() <= 0.01 * theirs.double().norm()


@pytest.mark.parametrize(
    ("dtype", "shape", "outputs", "taken"),
    [
        (torch.bfloat16, (128, 64, 8, 8), 96, True),
        (torch.bfloat16, (128, 64, 8, 8), 95, False),
        (torch.bfloat16, (128, 60, 8, 8), 96, False),
        (torch.float32, (128, 64, 8, 8), 96, False),
        (torch.bfloat16, (1, 32, 1, 1), 32, True),
        (torch.bfloat16, (0, 64, 8, 8), 96, False),
        (torch.bfloat16, (16, 512, 4, 4), 480, True),
        (torch.bfloat16, (16, 512, 4, 4), 512, False),
        (torch.bfloat16, (17, 512, 4, 4), 512, True),
    ],
)
def test_way_with_tiles_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...], outputs: int, taken: bool
) -> None:
    monkeypatch.setattr(_choice_pointwise, "instructions", lambda: "AVX512")
    monkeypatch.setattr(_choice_pointwise, "processor_has", lambda feature: feature == "amx_bf16")
    for bias in (False, True):
        assert (pointwise_way(dtype, shape, outputs, bias, in_bf16=True) is Way.KERNELS) == taken


@pytest.mark.parametrize(
    ("shape", "outputs", "taken"),
    [
        ((16, 512, 4, 4), 1024, False),
        ((32, 1024, 4, 4), 512, False),
        ((32, 1024, 4, 4), 480, True),
        ((33, 1024, 4, 4), 1024, True),
        ((1, 32, 1, 1), 32, True),
        ((33, 1024, 4, 4), 1000, False),
    ],
)
def test_way_with_vectors_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], outputs: int, taken: bool
) -> None:
    monkeypatch.setattr(_choice_pointwise, "instructions", lambda: "AVX512")
    monkeypatch.setattr(_choice_pointwise, "processor_has", lambda _: False)
    assert (pointwise_way(torch.bfloat16, shape, outputs, True, in_bf16=True) is Way.KERNELS) == taken


@in_bf16
def test_an_empty_batch(isa: str) -> None:
    x, weight = torch.randn(0, 32, 4, 4, requires_grad=True), torch.randn(64, 32, 1, 1, requires_grad=True)
    with instruction_set(isa), torch.autocast("cpu", torch.bfloat16):
        y = pointwise_conv2d(x, weight)
    assert y.shape == (0, 64, 4, 4)
    y.sum().backward()
    assert not weight.grad.any()  # type: ignore[union-attr]


@in_bf16
def test_second_derivatives_under_autocast(isa: str) -> None:
    x, weight, bias, _ = tensors((4, 64, 9, 9), 96)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    found = []
    for mode in ("native", "reference"):
        with instruction_set(isa), use(mode), torch.autocast("cpu", torch.bfloat16):  # type: ignore[arg-type]
            found.append(second_derivatives(*leaves))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()


@in_bf16
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, as it sets up the forward mode
@pytest.mark.parametrize("kind", ["weights in bf16", "no autocast", "forward mode"])
def test_what_the_kernels_leave_to_pytorch(isa: str, kind: str) -> None:
    x, weight, _, _ = tensors((4, 128, 4, 4), 128)
    module = pointwise(128, 128).to(memory_format=torch.channels_last)
    with instruction_set(isa), mock.patch.object(_pointwise, "pointwise_forward", side_effect=AssertionError("asked")):
        if kind == "weights in bf16":
            with mock.patch.object(F, "linear", wraps=F.linear) as product:
                assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
            assert product.called
        elif kind == "no autocast":
            with pytest.raises(RuntimeError, match="type"):
                pointwise_conv2d(x.bfloat16(), weight)
        else:
            with forward_ad.dual_level(), torch.autocast("cpu", torch.bfloat16):
                dual = pointwise_conv2d(forward_ad.make_dual(x, torch.ones_like(x)), weight)
                assert forward_ad.unpack_dual(dual).tangent is not None


def guarded(tensor: Tensor) -> Tensor:
    """A copy that ends where the next page of memory may not be read."""
    page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
    room = (size + page - 1) // page * page
    memory = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + room), page, 0) == 0
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=room - size)
    return flat.view(tensor.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).copy_(tensor)


@in_bf16
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for pages")
@pytest.mark.parametrize("pixels", [(1, 1), (31, 1), (33, 1), (7, 41)])
def test_nothing_is_read_beyond_the_last_pixel(isa: str, pixels: tuple[int, int]) -> None:
    """Which the sanitizers do not see with AMX: a tile is loaded by an instruction that they do not know."""
    x, weight, bias, grad = tensors((1, 96, *pixels), 64)
    maps = [guarded(t.bfloat16()) for t in (x, grad)]
    with instruction_set(isa), threads(2):
        got = pointwise_forward(LIBRARY, maps[0], weight, bias), *pointwise_backward(LIBRARY, maps[0], weight, maps[1], ALL)
        again = pointwise_forward(LIBRARY, x.bfloat16(), weight, bias)
    assert torch.equal(got[0], again)


@needs_tiles
def test_without_linux_permission_vectors_serve() -> None:
    """Which it does not give where a signal's stack is too small for the tiles' registers."""
    program = (
        "import ctypes\n"
        "class Stack(ctypes.Structure):\n"
        "    _fields_ = [('at', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]\n"
        "memory = ctypes.create_string_buffer(4096)\n"
        "stack = Stack(ctypes.addressof(memory), 0, 4096)\n"
        "assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0\n"
        "import torch\n"
        "from sepnet.kernels import kernels_in_use, pointwise_conv2d\n"
        "with torch.autocast('cpu', torch.bfloat16):\n"
        "    pointwise_conv2d(torch.randn(4, 32, 9, 9), torch.randn(64, 32, 1, 1))\n"
        "print(kernels_in_use())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEPNET_KERNELS")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["avx512_bf16_floats"]
