"""The depthwise kernels against float64: every instruction set, geometry, type and memory layout, forward and backward."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernel_tools import (
    ISAS,
    LAYOUTS,
    LIBRARY,
    TYPES,
    Problem,
    always_native,
    every_isa,
    instruction_set,
    limits,
    needs_library,
    poisoned_memory,
    problems,
    same_sized_problems,
    threads,
)
from sepnet.kernels import _native, depthwise_branches, depthwise_conv2d, use
from sepnet.kernels._geometry import Geometry

pytestmark = needs_library

THOROUGH = settings(max_examples=60, deadline=None, derandomize=True)
ALL = (True, True, True)


def single(kernel: int, *, padding: int = 0, dilation: int = 1, stride: int = 1) -> Geometry:
    return Geometry((stride, stride), ((kernel, kernel),), ((padding, padding),), ((dilation, dilation),), False)


# --- the kernels themselves ------------------------------------------------------------------------------------------------


def check_native(problem: Problem, dtype: torch.dtype) -> None:
    x, weight, bias, grad = problem.tensors(dtype)
    limit = limits(x, weight, bias, grad, problem.geometry)
    with poisoned_memory():
        y = _native.depthwise_forward(LIBRARY, x, weight, bias, problem.geometry)
        grad_x, grad_weight, grad_bias = _native.depthwise_backward(LIBRARY, x, weight, grad, problem.geometry, ALL)
    assert y.dtype == grad_x.dtype == dtype
    assert grad_weight.dtype == grad_bias.dtype == torch.float32
    limit.check("y", y)
    limit.check("grad_x", grad_x)
    limit.check("grad_weight", grad_weight)
    limit.check("grad_bias", grad_bias)


@every_isa
@settings(THOROUGH, max_examples=120)
@given(problem=st.one_of(problems(), same_sized_problems()), dtype=st.sampled_from(TYPES), count=st.integers(1, 3))
def test_kernels_are_within_rounding_of_float64(isa: str, problem: Problem, dtype: torch.dtype, count: int) -> None:
    with instruction_set(isa), threads(count):
        check_native(problem, dtype)


def scales(*kernels: int, stride: int = 1) -> Geometry:
    """Branches of one input."""
    halves = tuple((k // 2, k // 2) for k in kernels)
    return Geometry((stride, stride), tuple((k, k) for k in kernels), halves, ((1, 1),) * len(kernels), False)


LARGE = {
    "planes beyond the cache are cut into bands": Problem(single(3, padding=1), 1, 3, (190, 200), 0, True),
    "bands with dilation and stride": Problem(single(5, padding=7, dilation=4, stride=2), 1, 2, (260, 150), 1, True),
    "bands of two scales": Problem(
        Geometry((1, 1), ((3, 3), (5, 5)), ((1, 1), (2, 2)), ((1, 1), (1, 1)), False), 1, 2, (140, 140), 2, True
    ),
    "many rows in one plane": Problem(single(7, padding=3), 2, 17, (70, 12), 3, True),
    "one row": Problem(single(3, padding=1), 1, 16, (1, 500), 4, True),
    "one column": Problem(single(3, padding=1), 1, 16, (500, 1), 5, True),
    "taps far outside the map": Problem(single(3, padding=90, dilation=90), 1, 5, (6, 7), 6, True),
    "nothing but padding": Problem(single(2, padding=8, dilation=15), 1, 5, (1, 2), 7, True),
    "stride larger than the map": Problem(single(3, padding=2, stride=9), 2, 5, (4, 5), 8, True),
    "many channels": Problem(single(3, padding=1), 1, 515, (3, 3), 9, True),
    "pixels that no tap sees, in bands": Problem(single(3, padding=2, dilation=2, stride=2), 1, 40, (150, 161), 23, True),
    "pixels that no tap sees, in slabs": Problem(single(3, padding=2, dilation=2, stride=2), 2, 2050, (9, 10), 24, True),
    "few pixels seen, not the first": Problem(single(3, padding=3, dilation=4, stride=4), 2, 33, (23, 18), 25, True),
    "no pixel seen": Problem(single(2, padding=1, dilation=4, stride=4), 2, 9, (3, 3), 26, True),
    "one tap a stride": Problem(single(1, stride=2), 3, 20, (9, 8), 27, True),
    "rows and columns seen differ": Problem(Geometry((2, 3), ((3, 3),), ((2, 4),), ((4, 3),), False), 2, 20, (21, 17), 28, True),
    "two filters that see the same pixels": Problem(
        Geometry((2, 2), ((3, 3), (3, 3)), ((2, 2), (4, 4)), ((2, 2), (4, 4)), False), 2, 20, (13, 12), 29, True
    ),
    "two filters that see different pixels": Problem(
        Geometry((2, 2), ((3, 3), (2, 2)), ((2, 2), (1, 1)), ((2, 2), (2, 2)), False), 2, 20, (13, 12), 30, True
    ),
    "images that share vectors": Problem(single(5, padding=2), 23, 1, (9, 11), 11, True),
    "images that share vectors, stride and dilation": Problem(single(3, padding=2, dilation=2, stride=2), 8, 3, (10, 7), 12, True),
    "images that share vectors, two scales": Problem(
        Geometry((1, 1), ((3, 3), (5, 5)), ((1, 1), (2, 2)), ((1, 1), (1, 1)), False), 13, 2, (8, 8), 13, True
    ),
    "images that share vectors, channel multiplier": Problem(
        Geometry((1, 1), ((3, 3), (3, 3)), ((1, 1), (1, 1)), ((1, 1), (1, 1)), True), 9, 4, (6, 5), 14, True
    ),
    "images that share vectors, in bands": Problem(single(3, padding=1), 8, 3, (190, 200), 15, True),
    "slabs of channels": Problem(single(3, padding=1), 1, 1030, (14, 14), 16, True),
    "slabs in bands, with stride": Problem(single(5, padding=2, stride=2), 1, 260, (31, 30), 17, True),
    "slabs of planes that are mostly border": Problem(single(3, padding=5, dilation=5), 1, 520, (8, 9), 18, True),
    "slabs of two scales": Problem(
        Geometry((1, 1), ((3, 3), (5, 5)), ((1, 1), (2, 2)), ((1, 1), (1, 1)), False), 1, 264, (20, 21), 19, True
    ),
    "slabs, channel multiplier": Problem(
        Geometry((1, 1), ((3, 3), (3, 3)), ((1, 1), (1, 1)), ((1, 1), (1, 1)), True), 1, 268, (18, 17), 20, True
    ),
    "the largest filter in tiles of all widths, with stride": Problem(single(7, padding=3, stride=2), 1, 40, (46, 60), 21, True),
    "the largest filter in tiles of all widths": Problem(single(7, padding=3), 1, 40, (23, 31), 22, True),
    # the branches' gradients lie side by side where channels fill vectors, whatever becomes of the rest of a line
    **{
        f"{channels} channels of {len(kernels)} scales": Problem(scales(*kernels), 2, channels, (7, 9), channels, True)
        for channels in (8, 16, 24, 32, 40, 48, 56, 80, 112)
        for kernels in ((3, 5), (1, 3, 7), (5, 3, 1, 1))
    },
    "three scales side by side, in bands": Problem(scales(3, 5, 3), 1, 48, (90, 91), 31, True),
    "two scales side by side, with stride, in bands": Problem(scales(3, 5, stride=2), 1, 40, (120, 121), 32, True),
    "more rows seen than are worth keeping": Problem(single(3, padding=40, dilation=40), 1, 32, (90, 200), 33, True),
    "a large batch": Problem(single(3, padding=1), 300, 3, (4, 4), 10, True),
}


@every_isa
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("problem", LARGE.values(), ids=LARGE)
def test_maps_of_unusual_size_exactly(isa: str, problem: Problem, dtype: torch.dtype) -> None:
    for count in (1, 2, 4):
        with instruction_set(isa), threads(count):
            check_native(problem, dtype)


@every_isa
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_same_threads_give_the_same_bits(isa: str, count: int, dtype: torch.dtype) -> None:
    problem = Problem(single(5, padding=2), 3, 33, (17, 19), 0, False)
    x, weight, bias, grad = problem.tensors(dtype)
    with instruction_set(isa), threads(count):
        runs = [
            (
                _native.depthwise_forward(LIBRARY, x, weight, bias, problem.geometry),
                *_native.depthwise_backward(LIBRARY, x, weight, grad, problem.geometry, ALL),
            )
            for _ in range(8)
        ]
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))


@every_isa
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "side"), [(32, 36), (40, 40), (96, 36), (224, 64), (288, 56)], ids=str)
@pytest.mark.parametrize(
    "geometry",
    [
        single(3, padding=1),
        single(5, padding=2, stride=2),
        single(3, padding=2, stride=2, dilation=2),  # which sees a quarter of the pixels: the others' gradient is written too
        single(3, padding=2, stride=3, dilation=3),  # a ninth, from the second on
    ],
    ids=["3x3", "5x5, stride 2", "3x3, stride 2, dilation 2", "3x3, stride 3, dilation 3"],
)
def test_large_maps_have_the_bits_of_small_ones(isa: str, dtype: torch.dtype, channels: int, side: int, geometry: Geometry) -> None:
    """They are written past the caches, whole lines at a time; but not, with AVX2 from planes, those of more than 1 KB a pixel,
    where only zeros are, on Intel those without gaps, pixels that are no whole lines, and each image alone. The last two sizes are
    cut into slabs where there are planes.
    """
    check_large_map(isa, dtype, channels, side, geometry, 8 << 20)


@needs_library
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_very_large_maps_have_the_bits_of_small_ones(dtype: torch.dtype) -> None:
    """They are past the caches on Intel too."""
    check_large_map(LIBRARY.isa, dtype, 96, 64, single(3, padding=1), 64 << 20)


def check_large_map(isa: str, dtype: torch.dtype, channels: int, side: int, geometry: Geometry, least: int) -> None:
    size = side * geometry.stride[0]
    images = least // (channels * side * side * dtype.itemsize) + 1
    torch.manual_seed(0)
    x = torch.randn(images, channels, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, 1, *geometry.kernels[0]), torch.randn(channels)
    with instruction_set(isa), threads(2), poisoned_memory():
        y = _native.depthwise_forward(LIBRARY, x, weight, bias, geometry)
        grad_x, *_ = _native.depthwise_backward(LIBRARY, x, weight, y, geometry, ALL)
        for i in range(0, images, 3):
            alone = _native.depthwise_forward(LIBRARY, x[i : i + 1], weight, bias, geometry)
            assert torch.equal(y[i], alone[0])
            assert torch.equal(grad_x[i], _native.depthwise_backward(LIBRARY, x[i : i + 1], weight, alone, geometry, ALL)[0][0])
    assert torch.isfinite(y).all()
    assert torch.isfinite(grad_x).all()


@pytest.mark.parametrize("wanted", [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)], ids=str)
def test_a_gradient_is_the_same_with_and_without_the_others(wanted: tuple[bool, bool, bool]) -> None:
    problem = Problem(single(3, padding=1, stride=2), 2, 9, (9, 8), 0, False)
    x, weight, _, grad = problem.tensors(torch.float32)
    every = _native.depthwise_backward(LIBRARY, x, weight, grad, problem.geometry, ALL)
    some = _native.depthwise_backward(LIBRARY, x, weight, grad, problem.geometry, wanted)
    for want, expected, got in zip(wanted, every, some, strict=True):
        assert torch.equal(got, expected) if want else got is None


def test_bfloat16_is_rounded_to_nearest_even_and_keeps_nan_and_infinity() -> None:
    half = 2.0**-8  # of the last place of 1
    values = [1, 1 + half, 1 + 3 * half, 1 + half + half**2, -1 - half, 3e38, 3.4e38, torch.inf, torch.nan, 0]
    odd_nan = torch.tensor([0x7FFFFFFF, -1, 0x7FC00001], dtype=torch.int32).view(torch.float32)  # carry into the sign
    weight = torch.cat([torch.tensor(values), odd_nan, torch.tensor(values)]).view(-1, 1, 1, 1)
    x = torch.ones(1, len(weight), 1, 1, dtype=torch.bfloat16)
    expected = weight.view(-1).to(torch.bfloat16)
    for isa in ISAS:
        with instruction_set(isa):
            y = _native.depthwise_forward(LIBRARY, x, weight, None, single(1)).view(-1)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


# --- through autograd ------------------------------------------------------------------------------------------------------


def run(problem: Problem, dtype: torch.dtype, layout: str, grad_layout: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Output and gradients of x, weights (as one) and bias, by the public functions."""
    g = problem.geometry
    x, weight, bias, grad = problem.tensors(dtype)
    x = LAYOUTS[layout](x).detach().requires_grad_()
    if len(g.kernels) > 1 and not g.interleaved:
        sizes = [problem.channels * h * w for h, w in g.kernels]
        leaves = [part.view(-1, 1, *kernel).requires_grad_() for part, kernel in zip(weight.split(sizes), g.kernels, strict=True)]
        bias = None
        y = depthwise_branches(x, leaves, stride=g.stride, paddings=g.paddings, dilations=g.dilations)
    else:
        leaves = [weight.requires_grad_()]
        bias.requires_grad_()
        y = depthwise_conv2d(x, weight, bias, stride=g.stride, padding=g.paddings[0], dilation=g.dilations[0])
    y.backward(LAYOUTS[grad_layout](grad))
    grad_weight = torch.cat([leaf.grad.reshape(-1) for leaf in leaves])
    assert all(leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype for leaf in leaves)
    return y, x.grad, grad_weight.view_as(weight), None if bias is None else bias.grad


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "chosen path"])
@THOROUGH
@given(
    problem=problems(),
    dtype=st.sampled_from(TYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    grad_layout=st.sampled_from(list(LAYOUTS)),
)
def test_autograd_in_every_layout(native: bool, problem: Problem, dtype: torch.dtype, layout: str, grad_layout: str) -> None:
    with always_native() if native else nullcontext():
        y, grad_x, grad_weight, grad_bias = run(problem, dtype, layout, grad_layout)
    x, weight, bias, grad = problem.tensors(dtype)
    branches = grad_bias is None
    limit = limits(x, weight, torch.zeros_like(bias) if branches else bias, grad, problem.geometry)
    assert y.dtype == grad_x.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    limit.check("y", y)
    limit.check("grad_x", grad_x)
    limit.check("grad_weight", grad_weight, stored_as=None if native else dtype)  # PyTorch's backward pass knows one type only
    if not branches:
        limit.check("grad_bias", grad_bias, stored_as=None if native else dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_expanded_inputs_and_gradients(dtype: torch.dtype) -> None:
    problem = Problem(single(3, padding=1, dilation=1, stride=2), 3, 6, (7, 5), 0, True)
    x, weight, bias, grad = problem.tensors(dtype)
    x, grad = x[:1, :1].expand_as(x).detach(), grad[:1, :, :1, :1].expand_as(grad)
    limit = limits(x, weight, bias, grad, problem.geometry)
    leaf = x.detach().requires_grad_()
    weight.requires_grad_()
    y = depthwise_conv2d(leaf, weight, bias, stride=2, padding=1)
    y.backward(grad)
    limit.check("y", y)
    limit.check("grad_x", leaf.grad)
    limit.check("grad_weight", weight.grad, stored_as=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_types_take_the_reference(dtype: torch.dtype) -> None:
    x, weight, *_ = Problem(single(3, padding=1), 2, 4, (5, 5), 0, True).tensors(torch.float32)
    y = depthwise_conv2d(x.to(dtype), weight.to(dtype), padding=1)
    with use("reference"):
        assert torch.equal(y, depthwise_conv2d(x.to(dtype), weight.to(dtype), padding=1))
    assert y.dtype == dtype


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("wanted", [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)], ids=str)
def test_branches_give_the_gradients_that_are_wanted(wanted: tuple[bool, bool, bool], autocast: bool) -> None:
    """In the types of their tensors, once; as by PyTorch's operations."""
    leaves = [torch.randn(2, 5, 9, 8), torch.randn(5, 1, 3, 3).bfloat16(), torch.randn(5, 1, 5, 5)]
    leaves = [leaf.requires_grad_(want) for leaf, want in zip(leaves, wanted, strict=True)]

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = depthwise_branches(leaves[0], leaves[1:], paddings=[1, 2], dilations=[1, 1])
        assert y.requires_grad == any(wanted)
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        return [y.detach(), *(torch.autograd.grad(y, asked, torch.ones_like(y), retain_graph=True) if asked else ())]

    got = gradients()
    with use("reference"):
        expected = gradients()
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        error = float((one - other).abs().max() / other.abs().max())
        # PyTorch's way rounds each branch's weights, and adds the branches' gradients, in bf16
        assert error < (2e-2 if autocast else 1e-2 if one.dtype == torch.bfloat16 else 1e-5)


@needs_library
def test_branches_have_no_second_derivative() -> None:
    x, weights = torch.randn(2, 5, 9, 8, requires_grad=True), [torch.randn(5, 1, k, k, requires_grad=True) for k in (3, 5)]
    y = depthwise_branches(x, weights, paddings=[1, 2], dilations=[1, 1])
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_image_of_one_channel_with_stride_and_dilation(dtype: torch.dtype) -> None:
    """Where oneDNN 3.12 gives bfloat16 values that nobody wrote: hence memory with large ones in it."""
    for seed in range(30):
        torch.manual_seed(seed)
        left_behind = [torch.full((n,), 1e30) for n in (64, 128, 256, 512, 1024)]
        x, weight = torch.randn(1, 1, 12, 10).to(dtype), torch.randn(1, 1, 5, 4).to(dtype)
        del left_behind
        geometry = {"stride": 2, "padding": (3, 0), "dilation": (1, 3)}
        expected = F.conv2d(x.float(), weight.float(), **geometry)  # type: ignore[arg-type]
        torch.testing.assert_close(depthwise_conv2d(x, weight, **geometry).float(), expected, rtol=1e-2, atol=5e-2)  # type: ignore[arg-type]


def test_more_branches_and_larger_kernels_than_the_library_takes() -> None:
    x = torch.randn(2, 3, 12, 12)
    five = [torch.randn(3, 1, 3, 3) for _ in range(5)]
    alone = torch.cat([depthwise_conv2d(x, weight, padding=1) for weight in five], 1)
    torch.testing.assert_close(depthwise_branches(x, five, paddings=[1] * 5, dilations=[1] * 5), alone)
    large = torch.randn(3, 1, 9, 9)
    torch.testing.assert_close(depthwise_conv2d(x, large, padding=4), torch.nn.functional.conv2d(x, large, padding=4, groups=3))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_weight_gradients_in_bf16_add_up_many_pixels(size: int) -> None:
    """By whichever way is taken here: PyTorch's, where no instruction multiplies bf16, is 3 % off after 8,192 pixels."""
    pixels, channels = 8192, 32
    x, grad = (torch.randn(pixels // size**2, channels, size, size).bfloat16() for _ in range(2))
    weight = torch.randn(channels, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x.contiguous(memory_format=torch.channels_last), weight, padding=1)
    (got,) = torch.autograd.grad(y, weight, grad.to(memory_format=torch.channels_last))
    exact = torch.nn.grad.conv2d_weight(x.double(), weight.shape, grad.double(), padding=1, groups=channels)
    assert (got - exact).abs().max() < 0.01 * exact.abs().max()
