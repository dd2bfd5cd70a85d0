"""The Triton kernels against float64; run by test_kernels_triton.py, or on their own:

TRITON_INTERPRET=1 python -m pytest tests/triton_cases.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="triton is not installed (it comes with PyTorch for CUDA)")

from triton.runtime import interpreter

from sepnet.kernels import _gpu, _triton_depthwise, _triton_norm, batch_norm_relu, depthwise_conv2d, use
from sepnet.kernels._geometry import Geometry, Pair
from sepnet.kernels._triton_depthwise import Tile

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
# of the largest value: sums of up to some hundred products in float32, then half a unit of the last place of what is stored; a
# whole one for bfloat16 in the interpreter, which cuts off instead of rounding
SLACK = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8 if HAS_GPU else 2.0**-7, torch.float16: 2.0**-10}


@pytest.fixture(autouse=True)
def interpreter_with_numpy_2_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter makes a loop's bounds integers in a way that NumPy refuses from 2.4 on."""
    original: Callable[..., None] = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each loops over several tiles of a small map."""
    monkeypatch.setattr(_triton_depthwise, "_PROGRAMS", 6)
    monkeypatch.setattr(_triton_norm, "_PROGRAMS", 6)


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """The same on every device."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def check(found: Tensor | None, exact: Tensor | None, dtype: torch.dtype, factor: float = 1.0) -> None:
    assert found is not None
    assert exact is not None
    assert found.shape == exact.shape
    limit = factor * SLACK[dtype] * max(1.0, float(exact.detach().abs().max()))
    assert float((found.detach().double() - exact.detach()).abs().max()) <= limit


def exactly(*tensors: Tensor | None) -> list[Any]:
    """Leaves of their own, in float64."""
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


# --- depthwise convolution -------------------------------------------------------------------------------------------------

THREE = (3, 3)
CONVOLUTIONS: list[tuple[tuple[int, int, int, int], Pair, Pair, Pair, Pair]] = [
    # (B, C, H, W), kernel, stride, padding, dilation
    ((2, 3, 6, 5), THREE, (1, 1), (1, 1), (1, 1)),
    ((2, 33, 5, 7), THREE, (2, 2), (1, 1), (1, 1)),
    ((1, 100, 2, 3), THREE, (1, 1), (1, 1), (1, 1)),
    ((3, 5, 1, 1), THREE, (1, 1), (1, 1), (1, 1)),
    ((5, 8, 2, 2), THREE, (2, 2), (1, 1), (1, 1)),
    ((1, 4, 6, 6), THREE, (2, 2), (5, 5), (5, 5)),
    ((1, 6, 6, 5), THREE, (1, 1), (2, 4), (2, 4)),
    ((1, 4, 4, 4), THREE, (1, 1), (7, 7), (7, 7)),  # corners see nothing but padding
    ((1, 4, 3, 4), THREE, (1, 1), (4, 3), (1, 1)),  # padding beyond the filter
    ((1, 5, 6, 9), (5, 2), (2, 1), (2, 0), (1, 1)),
    ((2, 7, 4, 5), (1, 1), (1, 2), (0, 0), (1, 1)),
    ((1, 3, 6, 6), (1, 4), (2, 2), (0, 1), (1, 2)),
    ((1, 2, 4, 5), (5, 5), (1, 1), (2, 2), (1, 1)),
    ((1, 2, 2, 3), (7, 7), (1, 2), (3, 3), (1, 1)),
    ((1, 2, 6, 6), (6, 3), (2, 2), (0, 1), (1, 1)),
]


def check_depthwise(
    shape: tuple[int, int, int, int], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, dtype: torch.dtype, bias: bool
) -> None:
    geometry = Geometry(stride, (kernel,), (padding,), (dilation,), False)
    x = values(*shape, dtype=dtype).requires_grad_()
    weight = values(shape[1], 1, *kernel, seed=1).contiguous().requires_grad_()
    shift = values(shape[1], seed=2).requires_grad_() if bias else None
    x64, weight64, shift64 = exactly(x, weight, shift)
    exact = F.conv2d(x64, weight64, shift64, stride, padding, dilation, shape[1])
    grad = values(*exact.shape, dtype=dtype, seed=3)
    exact.backward(grad.double())
    y = _gpu.triton_depthwise(x, weight, shift, geometry)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(grad)
    check(y, exact, dtype)
    check(x.grad, x64.grad, dtype)
    check(weight.grad, weight64.grad, torch.float32)
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()
    if shift is not None:
        check(shift.grad, shift64.grad, torch.float32)


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), CONVOLUTIONS)
def test_depthwise(shape: tuple[int, int, int, int], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    check_depthwise(shape, kernel, stride, padding, dilation, torch.float32, bias=shape[1] % 2 == 1)


@pytest.mark.parametrize(("dtype", "stride"), [(torch.bfloat16, (1, 1)), (torch.float16, (2, 2))])
def test_depthwise_half(dtype: torch.dtype, stride: Pair) -> None:
    check_depthwise((1, 16, 4, 5), THREE, stride, (1, 1), (1, 1), dtype, bias=True)


@pytest.mark.parametrize("tile", [Tile(1, 1, 1, 1), Tile(3, 4, 2, 2)])
def test_any_tile_gives_the_same(tile: Tile) -> None:
    geometry = Geometry((2, 2), (THREE,), ((1, 1),), ((1, 1),), False)
    x, weight = values(1, 6, 5, 7), values(6, 1, *THREE, seed=1).contiguous()
    taps = weight.flatten(1).t().contiguous()
    x64, weight64, _ = exactly(x, weight, None)
    exact = F.conv2d(x64, weight64, None, 2, 1, 1, 6)
    grad = values(*exact.shape, seed=3)
    exact.backward(grad.double())
    check(_triton_depthwise.depthwise_forward(x, taps, None, geometry, tile), exact, torch.float32)
    check(_triton_depthwise.depthwise_input_gradient(grad, taps, (5, 7), geometry, tile), x64.grad, torch.float32)
    check(_triton_depthwise.depthwise_weight_gradient(x, grad, weight, geometry, tile), weight64.grad, torch.float32)


def test_gradient_has_the_weights_type_and_strides() -> None:
    geometry = Geometry((1, 1), (THREE,), ((1, 1),), ((1, 1),), False)
    x = values(1, 4, 2, 2)
    plain = values(4, 1, 3, 3, seed=1).contiguous()
    odd = plain.transpose(2, 3).contiguous().transpose(2, 3)
    for weight in (plain, plain.to(memory_format=torch.channels_last), odd, plain.bfloat16()):
        leaf = weight.detach().requires_grad_()
        _gpu.triton_depthwise(x, leaf, None, geometry).square().sum().backward()
        x64, exact, _ = exactly(x, weight, None)
        F.conv2d(x64, exact, None, 1, 1, 1, 4).square().sum().backward()
        assert leaf.grad is not None
        assert (leaf.grad.dtype, leaf.grad.stride()) == (leaf.dtype, leaf.stride())
        check(leaf.grad, exact.grad, weight.dtype, 4)


# --- batch normalisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adds", "relu"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(2, 3, 7, 6), (3, 33, 5, 4), (4, 100, 1, 1)])
def test_norm(shape: tuple[int, int, int, int], adds: bool, relu: bool) -> None:
    check_norm(shape, adds, relu, torch.float32)


@pytest.mark.parametrize("dtype", TYPES[1:])
@pytest.mark.parametrize("adds", [False, True])
def test_norm_half(dtype: torch.dtype, adds: bool) -> None:
    check_norm((2, 8, 6, 5), adds, True, dtype)


def check_norm(shape: tuple[int, int, int, int], adds: bool, relu: bool, dtype: torch.dtype, mean: float = 0.0) -> None:
    channels = shape[1]
    x = (values(*shape, dtype=dtype) + mean).requires_grad_()
    gamma, beta = values(channels, seed=1).requires_grad_(), values(channels, seed=2).requires_grad_()
    shortcut = values(*shape, dtype=dtype, seed=3).requires_grad_() if adds else None
    averages = (values(channels, seed=4), values(channels, seed=5).abs())
    averages64 = [t.double() for t in averages]
    leaves = (x, gamma, beta, shortcut)
    exact_leaves = exactly(*leaves)
    exact = F.batch_norm(exact_leaves[0], *averages64, exact_leaves[1], exact_leaves[2], True, 0.1, 1e-5)
    exact = exact if shortcut is None else exact + exact_leaves[3]
    y = _gpu.triton_norm(x, gamma, beta, averages, momentum=0.1, eps=1e-5, relu=relu, shortcut=shortcut)
    assert y.dtype == dtype
    # near zero rounding may decide what the ReLU cuts: the reference cuts what the kernel has cut
    kept = (y.detach() > 0).double() if relu else torch.ones_like(exact)
    grad = values(*shape, dtype=dtype, seed=6)
    y.backward(grad)
    (exact * kept).backward(grad.double())
    factor = 8 * (1 + abs(mean))
    check(y, exact.relu() if relu else exact, dtype, factor)
    for found, truth in zip(averages, averages64, strict=True):
        check(found, truth, torch.float32)
    for leaf, exact_leaf in zip(leaves, exact_leaves, strict=True):
        if leaf is not None:
            check(leaf.grad, exact_leaf.grad, leaf.dtype, factor)


@pytest.mark.parametrize("mean", [100.0, -3000.0])
def test_a_mean_far_from_zero_costs_the_variance_nothing(mean: float) -> None:
    check_norm((4, 5, 9, 8), False, True, torch.float32, mean)
    x = values(4, 5, 9, 8) + mean
    averages = (torch.zeros(5, device=DEVICE), torch.zeros(5, device=DEVICE))
    ones, zeros = torch.ones(5, device=DEVICE), torch.zeros(5, device=DEVICE)
    _gpu.triton_norm(x, ones, zeros, averages, momentum=1.0, eps=1e-5, relu=True)
    exact = x.double().var((0, 2, 3))
    assert float((averages[1].double() / exact - 1).abs().max()) < 3e-6


def test_without_running_averages() -> None:
    x, ones, zeros = values(2, 3, 4, 4), torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    y = _gpu.triton_norm(x, ones, zeros, None, momentum=0.0, eps=1e-5, relu=False)
    check(y, F.batch_norm(x.double(), None, None, training=True), torch.float32)


def test_not_a_number_stays() -> None:
    x, ones, zeros = values(2, 3, 4, 4), torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    x[0, 1, 0, 0] = torch.nan
    y = _gpu.triton_norm(x, ones, zeros, None, momentum=0.0, eps=1e-5, relu=True)
    assert y[:, 1].isnan().all()
    assert not y[:, ::2].isnan().any()


# --- both ------------------------------------------------------------------------------------------------------------------


def test_a_second_derivative_is_refused() -> None:
    geometry = Geometry((1, 1), (THREE,), ((1, 1),), ((1, 1),), False)
    x = values(2, 4, 3, 3).requires_grad_()
    ones, zeros = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    weight = values(4, 1, 3, 3, seed=1).contiguous()
    for y in (
        _gpu.triton_depthwise(x, weight, None, geometry),
        _gpu.triton_norm(x, ones, zeros, None, momentum=0.0, eps=1e-5, relu=True),
    ):
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def test_sums_are_the_same_each_time() -> None:
    geometry = Geometry((1, 1), (THREE,), ((1, 1),), ((1, 1),), False)
    x, grad, weight = values(2, 6, 4, 4), values(2, 6, 4, 4, seed=1), values(6, 1, 3, 3, seed=2).contiguous()
    first, second = (_triton_depthwise.depthwise_weight_gradient(x, grad, weight, geometry) for _ in range(2))
    assert torch.equal(first, second)


@needs_gpu
@pytest.mark.parametrize("pool", [False, True])
def test_the_public_functions_under_autocast_and_in_a_graph(pool: bool) -> None:
    """As a network calls them; a replay of the captured graph does what the eager calls did."""
    weight = values(16, 1, 3, 3, seed=1).contiguous().requires_grad_()
    gamma, beta = values(16, seed=2).requires_grad_(), values(16, seed=3).requires_grad_()
    averages = (torch.zeros(16, device=DEVICE), torch.ones(16, device=DEVICE))
    x = values(8, 16, 32, 32)

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            y = depthwise_conv2d(x, weight, stride=1, padding=1)
            assert y.dtype == torch.bfloat16
            z = batch_norm_relu(y, gamma, beta, *averages, training=True, pool=pool)
        z.float().square().mean().backward()
        return z.detach()

    def gradients() -> list[Tensor]:
        return [t.grad.clone() for t in (weight, gamma, beta) if t.grad is not None]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            weight.grad = gamma.grad = beta.grad = None
            eager = step()
    torch.cuda.synchronize()
    wanted = gradients()
    weight.grad = gamma.grad = beta.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, eager)
    for found, before in zip(gradients(), wanted, strict=True):
        torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-6)
    with use("reference"):
        torch.testing.assert_close(step(), eager, rtol=0.03, atol=0.03)
