"""Batch normalisation, pooling and ReLU in one pass, against float64: every instruction set, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_norm_tools import Exact, Slack, U, check, windows
from kernel_tools import (
    CHANNELS,
    LAYOUTS,
    LIBRARY,
    TYPES,
    channels_last,
    every_isa,
    instruction_set,
    needs_library,
    poisoned_memory,
    threads,
)
from sepnet.kernels import _native_norm, batch_norm_relu, use
from sepnet.nn import BatchNormReLU

pytestmark = needs_library

THOROUGH = settings(max_examples=60, deadline=None, derandomize=True)


class Problem(NamedTuple):
    """What is normalised; ``mean`` and ``spread`` are those of the numbers. Gamma is positive, negative and zero."""

    batch: int
    channels: int
    height: int
    width: int
    pool: bool
    relu: bool
    mean: float
    spread: float
    seed: int

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (of ``dtype``), gamma, beta, dL/dy (of ``dtype``)."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.channels, self.height, self.width)
        x = torch.randn(shape, generator=generator) * self.spread + self.mean
        gamma = torch.randn(self.channels, generator=generator)
        gamma[self.channels // 2 :: 5] = 0
        beta = torch.randn(self.channels, generator=generator)
        out = (*shape[:2], *((n // 2 for n in shape[2:]) if self.pool else shape[2:]))
        return channels_last(x.to(dtype)), gamma, beta, channels_last(torch.randn(out, generator=generator).to(dtype))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    pool = draw(st.booleans())
    side = st.one_of(st.integers(2, 9), st.integers(2, 40)) if pool else st.one_of(st.integers(1, 9), st.integers(1, 40))
    batch, height, width = draw(st.integers(1, 3)), draw(side), draw(side)
    if batch * height * width == 1:  # no spread to normalise by: PyTorch refuses it, and the kernels leave it to PyTorch
        batch = 2
    mean, spread = draw(st.sampled_from([(0.0, 1.0), (0.0, 1.0), (3.0, 0.5), (-100.0, 1.0), (1e-3, 1e-4), (0.0, 1e4)]))
    return Problem(batch, draw(CHANNELS), height, width, pool, draw(st.booleans()), mean, spread, draw(st.integers(0, 99)))


def check_native(problem: Problem, dtype: torch.dtype, eps: float = 1e-5) -> None:
    """Where rounding may decide (ReLU near zero, pooling between near values), the kernel's own choice must be defensible, and its
    gradient that of the choice.
    """
    pool, relu = problem.pool, problem.relu
    x, gamma, beta, grad = problem.tensors(dtype)
    with poisoned_memory():
        output, constants, argmax = _native_norm.norm_forward(LIBRARY, x, gamma, beta, None, eps, pool, relu)
        grads = _native_norm.norm_backward(LIBRARY, x, output if pool and relu else None, constants, argmax, grad, pool, relu)[:3]
    e = Exact.of(x, gamma, beta, grad, eps)
    slack = Slack(e)
    check("mean", constants[0], e.mean.flatten(), slack.mean.flatten())
    check("invstd", constants[1], 1 / e.std.flatten(), (slack.variance / e.std).flatten())

    def taken(values: Tensor) -> Tensor:
        """What the kernel's pooling took of them."""
        if argmax is None:
            return values
        kept = argmax.view(output.shape[0], *output.shape[2:], -1).permute(0, 3, 1, 2)
        return windows(values).gather(-1, kept.long()[..., None])[..., 0]

    leaf = e.x.clone().requires_grad_()
    gamma64, beta64 = gamma.double().requires_grad_(), beta.double().requires_grad_()
    y, near = Exact.of(leaf, gamma64, beta64, grad, eps).normalised(), slack.y()
    if pool:
        near = windows(near).amax(-1)
        assert bool((windows(y).amax(-1) - taken(y) <= 2 * near).all()), "pooling kept a value that is not the largest"
    y = taken(y)
    check("y", output, y.clamp_min(0) if relu else y, near)

    reaching = e.grad * (output > 0) if relu else e.grad
    (y * reaching).sum().backward()
    limits = slack.gradients(torch.autograd.grad((taken(leaf) * reaching).sum(), leaf)[0])
    exact = leaf.grad, gamma64.grad, beta64.grad
    for name, got, expected, limit in zip(("dx", "dgamma", "dbeta"), grads, exact, limits, strict=True):
        check(name, got, expected, limit)


@every_isa
@THOROUGH
@given(problem=problems(), dtype=st.sampled_from(TYPES), count=st.integers(1, 3))
def test_kernels_are_within_rounding_of_float64(isa: str, problem: Problem, dtype: torch.dtype, count: int) -> None:
    with instruction_set(isa), threads(count):
        check_native(problem, dtype)


@every_isa
@THOROUGH
@given(problem=problems(), dtype=st.sampled_from(TYPES), count=st.integers(1, 3))
def test_given_constants_are_applied(isa: str, problem: Problem, dtype: torch.dtype, count: int) -> None:
    x, scale, shift, _ = problem.tensors(dtype)
    with instruction_set(isa), threads(count), poisoned_memory():
        y = _native_norm.norm_apply(LIBRARY, x, scale, shift, problem.pool, problem.relu)
    scale, shift = scale.double()[:, None, None], shift.double()[:, None, None]
    exact, near = x.double() * scale + shift, 2 * U * ((x.double() * scale).abs() + shift.abs())
    if problem.pool:
        exact, near = windows(exact).amax(-1), windows(near).amax(-1)
    check("y", y, exact.clamp_min(0) if problem.relu else exact, near)


LARGE = {
    "many pixels": Problem(8, 5, 64, 63, False, True, 3.0, 0.5, 0),
    "many pixels, pooled": Problem(8, 5, 64, 63, True, True, 3.0, 0.5, 0),
    "many channels": Problem(2, 1030, 5, 5, True, True, -100.0, 1.0, 1),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("problem", LARGE.values(), ids=LARGE)
def test_maps_of_unusual_size(problem: Problem, dtype: torch.dtype) -> None:
    for count in (1, 2):
        with threads(count):
            check_native(problem, dtype)


@every_isa
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])
def test_same_threads_give_the_same_bits(isa: str, pool: bool) -> None:
    x, gamma, beta, grad = Problem(4, 33, 19, 18, pool, True, 0.0, 1.0, 0).tensors(torch.bfloat16)

    def once() -> tuple[Tensor, ...]:
        y, constants, argmax = _native_norm.norm_forward(LIBRARY, x, gamma, beta, None, 1e-5, pool, True)
        gradients = _native_norm.norm_backward(LIBRARY, x, y, constants, argmax, grad, pool, True)[:3]
        return y, constants, *gradients

    with instruction_set(isa), threads(3):
        runs = [once() for _ in range(8)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


# --- numbers that go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 16, 17])
@pytest.mark.parametrize(("mean", "outlier"), [(1e4, 0.0), (-3e5, 0.0), (0.0, 300.0)], ids=["1e4", "-3e5", "a first value far off"])
def test_variance_survives_cancellation(channels: int, mean: float, outlier: float) -> None:
    """mean(x**2) - mean(x)**2 in float32 would have no correct digit, and could be negative."""
    x = channels_last(torch.randn(8, channels, 16, 16) + mean)
    x[0, :, 0, 0] += outlier
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    _, constants, _ = _native_norm.norm_forward(LIBRARY, x, ones, zeros, None, 1e-5, False, False)
    variance, exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(constants[1].double(), (variance + 1e-5).rsqrt(), rtol=1e-3, atol=0)
    torch.testing.assert_close(constants[0].double(), exact, rtol=2 * U, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_constant_channels_give_beta(value: float) -> None:
    x = torch.full((2, 5, 6, 6), value, requires_grad=True)
    beta = torch.linspace(-1, 1, 5)
    y = batch_norm_relu(x, torch.ones(5), beta, None, None, training=True, relu=False)
    torch.testing.assert_close(y, beta[:, None, None].expand_as(y), rtol=0, atol=4 * U * (1 + abs(value) / 1e-5**0.5))
    y.square().sum().backward()
    assert x.grad.isfinite().all()


@every_isa
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])
def test_nan_spreads_over_its_channel_and_no_further(isa: str, dtype: torch.dtype, pool: bool) -> None:
    x = channels_last(torch.randn(2, 19, 6, 6, dtype=dtype))
    for position in ((0, 0), (0, 1), (3, 2), (5, 5)):
        bad = x.clone(memory_format=torch.channels_last)
        bad[1, 7, position[0], position[1]] = torch.nan
        bad.requires_grad_()
        mean, variance = torch.zeros(19), torch.ones(19)
        with instruction_set(isa):
            y = batch_norm_relu(bad, torch.ones(19), torch.zeros(19), mean, variance, training=True, pool=pool)
            applied = _native_norm.norm_apply(LIBRARY, bad.detach(), torch.ones(19), torch.zeros(19), pool, True)
        y.float().sum().backward()
        others = torch.arange(19) != 7
        for values in (y, bad.grad):
            assert values[:, 7].isnan().all()
            assert values[:, others].isfinite().all()
        assert mean.isnan().tolist() == variance.isnan().tolist() == [i == 7 for i in range(19)]
        expected = F.max_pool2d(bad.detach().relu(), 2) if pool else bad.detach().relu()
        torch.testing.assert_close(applied, expected, rtol=0, atol=0, equal_nan=True)


@every_isa
@pytest.mark.parametrize("gamma", [1.0, -1.0, 0.0])
def test_of_equal_values_pooling_keeps_the_first_as_pytorch_does(isa: str, gamma: float) -> None:
    x = channels_last(torch.randint(0, 2, (3, 17, 8, 10)).float())
    weight, bias = torch.full((17,), gamma), torch.ones(17)
    with instruction_set(isa):
        _, _, argmax = _native_norm.norm_forward(LIBRARY, x, weight, bias, None, 1e-5, True, True)
    _, index = F.max_pool2d(x * gamma, 2, return_indices=True)
    row, col = index // 10 % 2, index % 2
    assert argmax is not None
    assert torch.equal(argmax.view(3, 4, 5, 17).permute(0, 3, 1, 2).long(), row * 2 + col)


# --- the public function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_layout_gives_the_same(dtype: torch.dtype, pool: bool) -> None:
    x, gamma, beta, grad = Problem(3, 7, 9, 6, pool, True, 0.0, 1.0, 0).tensors(dtype)

    def run(layout: str, grad_layout: str) -> list[Tensor]:
        leaves = [LAYOUTS[layout](x).detach().requires_grad_(), gamma.clone().requires_grad_(), beta.clone().requires_grad_()]
        y = batch_norm_relu(*leaves, None, None, training=True, pool=pool)
        assert y.is_contiguous(memory_format=torch.channels_last)
        y.backward(LAYOUTS[grad_layout](grad))
        return [y, *(leaf.grad for leaf in leaves)]

    expected = run("channels_last", "channels_last")
    for layout in LAYOUTS:
        for grad_layout in LAYOUTS:
            assert all(torch.equal(a, b) for a, b in zip(expected, run(layout, grad_layout), strict=True)), (layout, grad_layout)


def test_parameters_and_averages_that_are_not_contiguous() -> None:
    x = torch.randn(2, 6, 5, 5)
    plain = [torch.randn(6), torch.randn(6), torch.randn(6), torch.rand(6) + 0.5]
    spread = [torch.stack([t, t + 9], 1)[:, 0] for t in plain]
    for training in (True, False):
        expected = batch_norm_relu(x, *plain, training=training)
        torch.testing.assert_close(batch_norm_relu(x, *spread, training=training), expected)
        torch.testing.assert_close(spread, plain)
    scalar = torch.tensor(2.0).expand(6)
    expected = batch_norm_relu(x, scalar.clone(), plain[1], None, None, training=True)
    torch.testing.assert_close(batch_norm_relu(x, scalar, plain[1], None, None, training=True), expected)


class AsWritten(nn.Module):
    """The same three layers, PyTorch's own."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(self.bn(x), 2))


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None], ids=str)
def test_running_averages_over_several_batches(momentum: float | None) -> None:
    ours, theirs = BatchNormReLU(5, pool=True), AsWritten(5, momentum=momentum)
    ours.momentum = momentum
    for _ in range(4):
        x = torch.randn(3, 5, 7, 6) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
        for name, value in theirs.bn.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.eval(), theirs.eval()
    with torch.no_grad():
        y = ours(x)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(ours(x), theirs(x))
    leaf = x.clone().requires_grad_()
    other = x.clone().requires_grad_()
    ours(leaf).sum().backward()
    theirs(other).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


def test_without_averages_the_batch_decides_in_evaluation_too() -> None:
    x = torch.randn(4, 3, 6, 6) + 5
    expected = batch_norm_relu(x, torch.ones(3), torch.zeros(3), None, None, training=True)
    assert torch.equal(batch_norm_relu(x, torch.ones(3), torch.zeros(3), None, None, training=False), expected)


NOT_TAKEN: dict[str, tuple[Tensor, Tensor | None, Tensor | None]] = {
    "no affine parameters": (torch.randn(2, 3, 6, 6), None, None),
    "float64": (torch.randn(2, 3, 6, 6).double(), torch.ones(3).double(), torch.zeros(3).double()),
    "bfloat16 parameters": (torch.randn(2, 3, 6, 6).bfloat16(), torch.ones(3).bfloat16(), torch.zeros(3).bfloat16()),
    "no image": (torch.randn(0, 3, 6, 6), torch.ones(3), torch.zeros(3)),
}


@pytest.mark.parametrize(("x", "weight", "bias"), NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_what_the_kernels_do_not_take_goes_to_the_reference(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    y = batch_norm_relu(x, weight, bias, None, None, training=True)
    with use("reference"):
        assert torch.equal(y, batch_norm_relu(x, weight, bias, None, None, training=True))


def test_one_value_a_channel_is_refused_as_pytorch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm_relu(torch.randn(1, 3, 1, 1), torch.ones(3), torch.zeros(3), None, None, training=True)


def test_the_result_without_relu_may_be_changed_in_place() -> None:
    """A residual connection adds to it."""
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = batch_norm_relu(x, torch.ones(3), torch.zeros(3), None, None, training=True, relu=False)
    y.add_(1)
    y.square().sum().backward()
    with use("reference"):
        other = x.detach().requires_grad_()
        y = batch_norm_relu(other, torch.ones(3), torch.zeros(3), None, None, training=True, relu=False)
        y.add_(1)
        y.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_shortcut_is_added_before_relu(dtype: torch.dtype, training: bool) -> None:
    """Against PyTorch: values, gradients of both inputs and of weight and bias, in each layout of the shortcut."""
    torch.manual_seed(0)
    slack = 1e-4 if dtype == torch.float32 else 0.03
    for layout in (torch.channels_last, torch.contiguous_format):
        leaves = [torch.randn(4, 21, 9, 7).to(dtype).contiguous(memory_format=m) for m in (torch.channels_last, layout)]
        leaves += [torch.rand(21) + 0.5, torch.randn(21)]
        mean, variance = torch.randn(21), torch.rand(21) + 0.5
        ours, theirs = [[t.clone().requires_grad_() for t in leaves] for _ in range(2)]
        averages = [(mean.clone(), variance.clone()) for _ in range(2)]
        y = batch_norm_relu(ours[0], *ours[2:], *averages[0], training=training, shortcut=ours[1])
        normalised = F.batch_norm(theirs[0].float(), *averages[1], *theirs[2:], training=training)
        exact = F.relu(normalised + theirs[1].float())
        grad = torch.randn_like(exact)
        y.backward(grad.to(dtype))
        exact.backward(grad)
        torch.testing.assert_close(y.float(), exact, rtol=slack, atol=slack)
        for mine, right in zip(ours, theirs, strict=True):
            similar = F.cosine_similarity(mine.grad.flatten().double(), right.grad.flatten().double(), dim=0)
            assert similar > 1 - slack
        for mine, right in zip(*averages, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        y = batch_norm_relu(leaves[0], *leaves[2:], mean, variance, training=False, shortcut=leaves[1])
        exact = F.relu(F.batch_norm(leaves[0].float(), mean, variance, *leaves[2:]) + leaves[1].float())
        torch.testing.assert_close(y.float(), exact, rtol=slack, atol=slack)


def test_shortcut_goes_with_relu_and_without_pooling() -> None:
    x, one = torch.randn(2, 3, 4, 4), torch.ones(3)
    for options in ({"pool": True}, {"relu": False}):
        with pytest.raises(ValueError, match="a shortcut wants relu=True and pool=False"):
            batch_norm_relu(x, one, one, None, None, training=True, shortcut=x, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pool", "with_shortcut"), [(False, False), (True, False), (False, True)])
def test_a_normalisation_takes_sums_for_its_statistics(dtype: torch.dtype, pool: bool, with_shortcut: bool) -> None:
    """Those that are handed in, not those of the map: here of another one."""
    torch.manual_seed(0)
    x, other, shortcut = (channels_last(torch.randn(4, 24, 10, 10)).to(dtype) for _ in range(3))
    pixels = other.double().permute(0, 2, 3, 1).flatten(0, 2) * 3 + 1
    rows = torch.stack([torch.zeros(24), pixels.sum(0), pixels.square().sum(0)]).double()
    gamma, beta, mean, var = torch.rand(24) + 0.5, torch.randn(24), torch.zeros(24), torch.ones(24)
    more = {"pool": pool, "shortcut": shortcut if with_shortcut else None}
    y = batch_norm_relu(x, gamma, beta, mean, var, training=True, momentum=1.0, sums=rows, **more)  # type: ignore[arg-type]
    torch.testing.assert_close(mean.double(), pixels.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), pixels.var(0), rtol=1e-5, atol=1e-6)
    biased = pixels.var(0, unbiased=False).float()
    with use("reference"):
        expected = batch_norm_relu(x.float(), gamma, beta, mean, biased, training=False, **more)  # type: ignore[arg-type]
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
