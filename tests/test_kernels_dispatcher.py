"""Depthwise convolutions that PyTorch's dispatcher calls: the same as those of the ``autograd.Function``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernel_tools import LIBRARY, channels_last, chosen, needs_library, threads, through_python
from sepnet.kernels import _dispatcher, _library, _lookup, depthwise_conv2d
from sepnet.kernels._processor import onednn_has

CONVOLUTION = None if LIBRARY is None else LIBRARY.convolution
HAS_ALL = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
pytestmark = [needs_library, pytest.mark.skipif(not HAS_ALL, reason="PyTorch before 2.13 has not got all that it takes")]
NODE = "ConvolutionOverrideableBackward0"


def leaves(dtype: torch.dtype, multiplier: int = 1, bias: bool = True, weight_dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(3, 5, 9, 8), (5 * multiplier, 1, 3, 3), *([(5 * multiplier,)] if bias else [])]
    dtypes = [dtype, weight_dtype, weight_dtype]
    x, *parameters = [torch.randn(s).to(t) for s, t in zip(shapes, dtypes, strict=False)]
    return [t.requires_grad_() for t in (channels_last(x), *parameters)]


def results(of: list[Tensor], node: str | None = None, **geometry: int) -> list[Tensor]:
    y = depthwise_conv2d(*of, **geometry)  # type: ignore[arg-type]
    assert node is None or y.grad_fn is None or y.grad_fn.name() == node
    torch.manual_seed(1)
    wanted = [t for t in of if t.requires_grad]
    return [y.detach(), *(torch.autograd.grad(y, wanted, torch.randn_like(y)) if wanted else ())]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# --- the same results ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [{"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2, "stride": 2}])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_as_by_a_function(dtype: torch.dtype, multiplier: int, geometry: dict[str, int]) -> None:
    for bias in (True, False):
        for weights in (torch.float32, torch.bfloat16, torch.float64):
            of = leaves(dtype, multiplier, bias, weights)
            got = results(of, NODE, **geometry)
            with through_python():
                assert_same(got, results(of, **geometry))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_pass_by_whom_it_was_chosen(dtype: torch.dtype, forward: bool, backward: bool) -> None:
    of = leaves(dtype)
    with chosen(forward=forward, backward=backward):
        got = [results(of, NODE, padding=1) for _ in range(2)][1]  # the first is told, the second found
        with through_python():
            assert_same(got, results(of, padding=1))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
def test_only_gradients_that_are_wanted(wanted: tuple[int, ...]) -> None:
    of = [t.requires_grad_(i in wanted) for i, t in enumerate(leaves(torch.float32))]
    got = results(of, padding=1)
    assert len(got) == 1 + len(wanted)
    with through_python():
        assert_same(got, results(of, padding=1))


def test_layouts_that_the_library_does_not_read() -> None:
    x, weight, bias = leaves(torch.float32)
    expected = depthwise_conv2d(x, weight, bias, padding=1)
    gradients = torch.autograd.grad(expected.sum(), (x, weight, bias))  # of one element, without strides
    turned = weight.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
    for maps, filters in ((x.detach().contiguous().requires_grad_(), weight), (x, turned), (x.detach()[:, :, ::2], weight)):
        y = depthwise_conv2d(maps, filters, bias, padding=1)
        assert y.is_contiguous(memory_format=torch.channels_last)
        if maps.shape == x.shape:
            torch.testing.assert_close(y, expected, rtol=0, atol=0)
            got = torch.autograd.grad(y.sum(), (maps, filters, bias))
            for one, other in zip(got, gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)
        else:
            torch.testing.assert_close(y, F.conv2d(maps, filters, bias, padding=1, groups=5), rtol=1e-5, atol=1e-5)


def test_gradients_have_the_strides_of_their_weights() -> None:
    """Of those without gaps, which autograd would copy otherwise; (6, 1, 3, 3) has two sets of them."""
    x = channels_last(torch.randn(2, 6, 5, 5))
    for strides in ((9, 9, 3, 1), (9, 1, 3, 1)):
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.empty_strided((6, 1, 3, 3), strides, dtype=dtype).normal_().requires_grad_()
            with chosen(forward=True, backward=False):
                (grad,) = torch.autograd.grad(depthwise_conv2d(x, weight).sum(), weight)
            assert grad.stride() == strides


@pytest.mark.parametrize("count", [2, 3])
def test_as_many_threads_as_pytorch_has(count: int) -> None:
    before, of = torch.get_num_threads(), leaves(torch.float32, 2)
    alone = results(of, NODE, padding=1)
    torch.set_num_threads(count)
    try:
        with threads(count):
            got = results(of, NODE, padding=1)
            with through_python():
                assert_same(got, results(of, padding=1))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(got, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_values_that_stand_negated_in_memory() -> None:
    of = [t.detach() for t in leaves(torch.float32)]
    for place in range(3):
        negated = [torch._neg_view(t) if i == place else t for i, t in enumerate(of)]
        expected = F.conv2d(*(-t if i == place else t for i, t in enumerate(of)), padding=1, groups=5)
        for path in (nullcontext, through_python):
            with path():
                torch.testing.assert_close(depthwise_conv2d(*negated, padding=1), expected, rtol=1e-5, atol=1e-5)


def test_hooks_of_saved_tensors_may_change_the_layout() -> None:
    of = leaves(torch.float32)
    expected = results(of, padding=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().contiguous(), lambda t: t):
        assert_same(results(of, NODE, padding=1), expected)


def test_autocast_and_an_empty_batch() -> None:
    x, weight, bias = leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, bias, padding=1)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert all(g.dtype == torch.float32 for g in gradients)
    empty = torch.empty(0, 5, 9, 8, requires_grad=True)
    y = depthwise_conv2d(empty, weight, bias, padding=1)
    assert y.shape == (0, 5, 9, 8)
    assert not torch.autograd.grad(y.sum(), weight)[0].any()


# --- what autograd sees ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [{"padding": 1}, {"stride": 2, "padding": 2, "dilation": 2}])
def test_second_derivative_is_that_of_pytorch(geometry: dict[str, int]) -> None:
    of = leaves(torch.float32, multiplier=2)

    def second(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().sum(), of, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), of)

    expected = second(F.conv2d(*of, groups=5, **geometry))
    for one, other in zip(second(depthwise_conv2d(*of, **geometry)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_second_derivative_with_weights_of_another_type_is_refused() -> None:
    x, weight = leaves(torch.bfloat16, bias=False)
    (first,) = torch.autograd.grad(depthwise_conv2d(x, weight, padding=1).square().sum(), x, create_graph=True)
    words = "should be the same" if onednn_has(torch.bfloat16) else "expected scalar type BFloat16 but found Float"  # PyTorch's
    with pytest.raises(RuntimeError, match=words):
        first.float().sum().backward()


def test_weights_that_were_changed_in_between_are_noticed() -> None:
    x, weight = leaves(torch.float32, bias=False)
    y = depthwise_conv2d(x, weight, padding=1)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_checkpoints_of_shapes_that_were_never_seen() -> None:
    """They count what is saved, the first time and the second."""
    _, weight = leaves(torch.float32, bias=False)
    for batch in (4, 4, 3):
        x = torch.randn(batch, 5, 11, 6, requires_grad=True)
        checkpoint(lambda a: depthwise_conv2d(a, weight, padding=1).sin(), x, use_reentrant=False).sum().backward()
        expected = torch.autograd.grad(F.conv2d(x, weight, padding=1, groups=5).sin().sum(), x)[0]
        torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-5)


def test_compiled_once_in_a_new_process() -> None:
    """What the first call finds out must not be what the graph was made for."""
    script = """
import torch
from torch._dynamo.testing import CompileCounter
from sepnet.kernels import depthwise_conv2d
x, weight, counter = torch.randn(2, 5, 9, 8), torch.randn(5, 1, 3, 3, requires_grad=True), CompileCounter()
compiled = torch.compile(lambda a: depthwise_conv2d(a, weight, padding=1), backend=counter)
for _ in range(3):
    compiled(x).sum().backward()
print(counter.frame_count)
"""
    assert in_a_process(script) == "1"


@pytest.mark.parametrize(
    ("x", "weight", "tries", "successes"),
    [
        (torch.randn(2, 6, 9, 8), torch.randn(6, 1, 3, 3), 4, 3),
        (torch.randn(2, 6, 9, 8), torch.randn(6, 1, 9, 8), 4, 3),  # what PyTorch serves is told too
        (torch.randn(2, 6, 9, 8), torch.randn(36, 1, 3, 3), 4, 3),
        (torch.randn(2, 6, 9, 8, dtype=torch.float64), torch.randn(6, 1, 3, 3, dtype=torch.float64), 0, 0),
        (torch.randn(2, 6, 9, 8, dtype=torch.float16), torch.randn(6, 1, 3, 3, dtype=torch.float16), 0, 0),
    ],
)
def test_no_call_is_refused_twice(x: Tensor, weight: Tensor, tries: int, successes: int) -> None:
    """It takes an exception, which takes longer than a small convolution."""
    asked, given = 0, 0

    def convolution(*of: object) -> Tensor:
        nonlocal asked, given
        asked += 1
        y: Tensor = CONVOLUTION(*of)
        given += 1
        return y

    _lookup.forget()
    with mock.patch.object(_library, "dispatched", convolution):
        for _ in range(3):
            y = depthwise_conv2d(x, weight, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1, groups=6), rtol=1e-2, atol=1e-2)
    assert (asked, given) == (tries, successes)


# --- wrong calls of the operator that PyTorch has --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": torch.randn(2, 6, 9, 8, dtype=torch.float64)}, "float32 or bfloat16"),
        ({"x": torch.randn(6, 9, 8)}, "is a depthwise convolution"),
        ({"weight": torch.randn(6, 3, 3, 3), "groups": 2}, "is a depthwise convolution"),
        ({"weight": torch.randn(6, 1, 9, 9)}, "has not been told"),
        ({"weight": torch.randn(60, 1, 3, 3)}, "has not been told"),
        ({"transposed": True}, "no transposed form"),
        ({"stride": (1,)}, "another length"),
        ({"stride": (0, 1)}, "has not been told"),
        ({"dilation": (9, 9)}, "has not been told"),
        ({"padding": (-1, 0)}, "has not been told"),
        ({"bias": torch.randn(5)}, "one value an output channel"),
        ({"bias": torch.randn(6, 1)}, "one value an output channel"),
    ],
)
def test_wrong_calls_are_refused_in_words(changed: dict[str, object], words: str) -> None:
    right: dict[str, object] = {"x": torch.randn(2, 6, 9, 8), "weight": torch.randn(6, 1, 3, 3), "bias": None}
    right |= {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "transposed": False, "output_padding": (0, 0), "groups": 6}
    told = depthwise_conv2d(right["x"], right["weight"], padding=1)  # type: ignore[arg-type]
    torch.testing.assert_close(CONVOLUTION(*right.values()), told, rtol=0, atol=0)
    for _ in range(3):
        with pytest.raises(RuntimeError, match=words):
            CONVOLUTION(*(right | changed).values())


def test_a_gradient_of_another_shape_is_refused() -> None:
    backward = torch.ops.aten.convolution_backward_overrideable
    x, weight = torch.randn(2, 6, 9, 8), torch.randn(6, 1, 3, 3)
    rest = (1, 1), (1, 1), (1, 1), False, (0, 0), 6, (True, True, False)
    assert backward(torch.randn(2, 6, 9, 8), x, weight, *rest)[2] is None
    for shape in ((2, 6, 9, 7), (2, 6, 9), (1, 6, 9, 8)):
        with pytest.raises(RuntimeError, match="not of the output's shape"):
            backward(torch.randn(shape), x, weight, *rest)


# --- the place that the kernels take ---------------------------------------------------------------------------------------


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    other = shutil.copy(_library._FILE, tmp_path / "other.so")
    assert (
        _dispatcher.register(ctypes.CDLL(str(other)))
        == "the place is taken, by another library or by sepnet itself, imported before"
    )
    assert results(leaves(torch.float32), NODE, padding=1)


def test_a_library_that_is_loaded_again_is_the_same() -> None:
    assert _library.Library(_library._FILE).convolution is CONVOLUTION


def test_without_what_it_takes_a_function_serves() -> None:
    nobody = mock.patch("torch._C._dispatch_has_kernel_for_dispatch_key", return_value=False)
    lacking = mock.patch.object(_dispatcher, "_FUNCTIONS", ("torch_has_no_such_function",))
    with nobody, lacking, mock.patch.object(_dispatcher, "_registered", {}):
        assert "from 2.13 on" in str(_dispatcher.register(LIBRARY.handle))
    assert _library.library() is LIBRARY
    with through_python():
        assert results(leaves(torch.float32), "DepthwiseConv2dBackward", padding=1)


def in_a_process(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    """In a process of its own, whose table is full afterwards."""
    script = """
import torch
from sepnet.kernels import calls_by, depthwise_conv2d, library
x, weight = torch.randn(1, 2, 40, 40), torch.randn(2, 1, 3, 3, requires_grad=True)
names = set()
for channels in range(1, 16400):
    y = depthwise_conv2d(x[:, :1].expand(1, channels, 40, 40)[:, :, :4, :4], weight[:1].expand(channels, 1, 3, 3))
    names.add((channels > 1 << 14, y.grad_fn.name()))
y = depthwise_conv2d(x[:, :, :4, :4], weight)
print(sorted(names), y.grad_fn.name(), "more kinds" in calls_by(library()))
"""
    assert in_a_process(script) == f"[(False, {NODE!r}), (True, 'DepthwiseConv2dBackward')] DepthwiseConv2dBackward True"


# --- memory ----------------------------------------------------------------------------------------------------------------


MEMORY = """
import ctypes
import threading
from pathlib import Path
import torch
from sepnet.kernels import depthwise_conv2d, library

if hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: what threads leave behind is taken by the next ones
x, weight, bias = (t.requires_grad_() for t in (torch.randn(8, 64, 32, 32), torch.randn(64, 1, 3, 3), torch.randn(64)))


def call():
    y = depthwise_conv2d(x, weight, bias, padding=1)  # also of a map that is not channels-last, of which there are copies
    torch.autograd.grad(y.sum(), (x, weight, bias))
    try:
        library().convolution(x, weight, bias, (0, 1), (1, 1), (1, 1), False, (0, 0), 64)
    except RuntimeError:
        return
    raise AssertionError("a stride of 0 is taken")


def in_a_thread():
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


for work in (call, in_a_thread):
    for _ in range(10):
        work()
    before = resident()
    for _ in range(100):
        work()
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_memory_is_given_back() -> None:
    """References that a call forgot would keep its maps; a thread that ends takes its workspace with it. In a process of its own:
    pages of other tests' memory come and go.
    """
    grown = [int(line) for line in in_a_process(MEMORY).splitlines()]
    assert len(grown) == 2
    assert max(grown) < 20 << 20  # a map is of 2 MiB, a workspace of half of one
