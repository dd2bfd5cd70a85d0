"""Batch normalisation, pooling and ReLU in one pass, against float64: every instruction set, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_tools import (
    CHANNELS,
    LAYOUTS,
    LIBRARY,
    ROUNDING,
    SMALLEST,
    TYPES,
    channels_last,
    every_isa,
    instruction_set,
    needs_library,
    poisoned_memory,
    threads,
)
from sepnet.kernels import _native, batch_norm_relu, use
from sepnet.nn import BatchNormReLU

pytestmark = needs_library

THOROUGH = settings(max_examples=60, deadline=None, derandomize=True)
U = ROUNDING[torch.float32]


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


# --- float64 ---------------------------------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """x, gamma, beta, dL/dy and the statistics in float64, a channel's values broadcast against the map."""

    x: Tensor
    gamma: Tensor
    beta: Tensor
    grad: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor, gamma: Tensor, beta: Tensor, grad: Tensor, eps: float) -> Exact:
        x = x.double()
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return cls(x, gamma.double()[:, None, None], beta.double()[:, None, None], grad.double(), mean, (variance + eps).sqrt())

    def normalised(self) -> Tensor:
        return (self.x - self.mean) / self.std * self.gamma + self.beta


def average(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True)


class Slack:
    """How far float32 may lead from the exact results.

    Statistics are sums over lines of up to 4,096 float32 terms, x - x0 and its square, x0 being the channel's first value. A sum of
    n terms is off by about sqrt(n) * u times their magnitudes (Higham and Mary 2019, A new approach to probabilistic rounding error
    analysis), 64 u here. The variance is mean((x - x0)**2) - mean(x - x0)**2: relative to it the error grows by ``spread``.
    """

    def __init__(self, e: Exact) -> None:
        self.e = e
        away = e.x - e.x[:1, :, :1, :1]
        self.mean = U * e.mean.abs() + 64 * U * average(away.abs())
        self.variance = 64 * U * average(away**2) / e.std**2  # relative; the inverse deviation's is half of it

    def y(self) -> Tensor:
        """Of y = x * scale + shift: both constants are rounded, and mean * scale is subtracted from x * scale."""
        e = self.e
        products = (e.x - e.mean).abs() * (self.variance + 4 * U) + 2 * U * (e.x.abs() + e.mean.abs()) + self.mean
        return products * e.gamma.abs() / e.std + 4 * U * e.beta.abs()

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of dL/dx, dL/dgamma and dL/dbeta; ``grad``: what passed ReLU and pooling, at x's size."""
        e, count = self.e, grad.numel() // grad.shape[1]
        standard = ((e.x - e.mean) / e.std).abs()
        of_grad, of_product = average(grad.abs()), average(grad.abs() * standard)
        share = 64 * U + 3 * self.variance
        moved = self.mean / e.std
        products = (grad.abs() + of_grad + standard * of_product) * share + moved * (of_product + standard * of_grad)
        of_gamma = count * (of_product * share + moved * of_grad)
        return products * e.gamma.abs() / e.std, of_gamma.flatten(), (count * 64 * U * of_grad).flatten()


def check(name: str, got: Tensor, exact: Tensor, slack: Tensor) -> None:
    limit = slack + ROUNDING[got.dtype] * (exact.abs() + slack) + SMALLEST
    error = (got.double() - exact).abs()
    assert got.shape == exact.shape, name
    assert bool((error <= limit).all()), f"{name}: off by {float((error / limit).max()):.3g} times what rounding allows"


def windows(y: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H // 2, W // 2, 4); what an odd size leaves over is in no window."""
    return y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)


def check_native(problem: Problem, dtype: torch.dtype, eps: float = 1e-5) -> None:
    """Where rounding may decide (ReLU near zero, pooling between near values), the kernel's own choice must be defensible, and its
    gradient that of the choice.
    """
    pool, relu = problem.pool, problem.relu
    x, gamma, beta, grad = problem.tensors(dtype)
    with poisoned_memory():
        output, statistics = _native.norm_forward(LIBRARY, x, gamma, beta, None, 0.1, eps, pool, relu)
        grads = _native.norm_backward(LIBRARY, x, output if pool and relu else None, statistics, gamma, beta, grad, pool, relu)
    e = Exact.of(x, gamma, beta, grad, eps)
    slack = Slack(e)
    check("mean", statistics.mean, e.mean.flatten(), slack.mean.flatten())
    check("invstd", statistics.invstd, 1 / e.std.flatten(), (slack.variance / e.std).flatten())

    leaf = e.x.clone().requires_grad_()
    gamma64, beta64 = gamma.double().requires_grad_(), beta.double().requires_grad_()
    y = Exact.of(leaf, gamma64, beta64, grad, eps).normalised()
    near = slack.y()
    if pool:
        assert statistics.argmax is not None
        kept = statistics.argmax.view(*output.shape[:1], *output.shape[2:], -1).permute(0, 3, 1, 2).long()[..., None]
        near = windows(near).amax(-1)
        y, best = windows(y).gather(-1, kept)[..., 0], windows(y).amax(-1)
        assert bool((best - y <= 2 * near).all()), "pooling kept a value that is not the largest"
    passed = output > 0 if relu else torch.ones_like(output, dtype=torch.bool)
    check("y", output, y.clamp_min(0) if relu else y, near)
    (y * passed * e.grad).sum().backward()

    reaching = torch.autograd.grad((y_of(leaf, pool, kept if pool else None) * passed * e.grad).sum(), leaf)[0]
    limits = slack.gradients(reaching)
    for name, got, exact, limit in zip(
        ("dx", "dgamma", "dbeta"), grads, (leaf.grad, gamma64.grad, beta64.grad), limits, strict=True
    ):
        check(name, got, exact, limit)


def y_of(x: Tensor, pool: bool, kept: Tensor | None) -> Tensor:
    """What pooling took of x."""
    return windows(x).gather(-1, kept)[..., 0] if pool and kept is not None else x


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
        y = _native.norm_apply(LIBRARY, x, scale, shift, problem.pool, problem.relu)
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
        y, statistics = _native.norm_forward(LIBRARY, x, gamma, beta, None, 0.1, 1e-5, pool, True)
        gradients = _native.norm_backward(LIBRARY, x, y, statistics, gamma, beta, grad, pool, True)
        return y, statistics.mean, statistics.invstd, *gradients

    with instruction_set(isa), threads(3):
        runs = [once() for _ in range(8)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


# --- numbers that go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 16, 17])
@pytest.mark.parametrize(("mean", "outlier"), [(1e4, 0.0), (-3e5, 0.0), (0.0, 30.0)], ids=["1e4", "-3e5", "a first value far off"])
def test_variance_survives_cancellation(channels: int, mean: float, outlier: float) -> None:
    """mean(x**2) - mean(x)**2 in float32 would have no correct digit, and could be negative."""
    x = channels_last(torch.randn(8, channels, 16, 16) + mean)
    x[0, :, 0, 0] += outlier
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    _, statistics = _native.norm_forward(LIBRARY, x, ones, zeros, None, 0.1, 1e-5, False, False)
    variance, exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics.invstd.double(), (variance + 1e-5).rsqrt(), rtol=1e-3, atol=0)
    torch.testing.assert_close(statistics.mean.double(), exact, rtol=2 * U, atol=1e-5)


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
            applied = _native.norm_apply(LIBRARY, bad.detach(), torch.ones(19), torch.zeros(19), pool, True)
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
        _, statistics = _native.norm_forward(LIBRARY, x, weight, bias, None, 0.1, 1e-5, True, True)
    _, index = F.max_pool2d(x * gamma, 2, return_indices=True)
    row, col = index // 10 % 2, index % 2
    assert statistics.argmax is not None
    assert torch.equal(statistics.argmax.view(3, 4, 5, 17).permute(0, 3, 1, 2).long(), row * 2 + col)


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


@pytest.mark.parametrize("case", ["no affine parameters", "float64", "bfloat16 parameters", "no pixel", "five dimensions less one"])
def test_what_the_kernels_do_not_take_goes_to_the_reference(case: str) -> None:
    x = torch.randn(0 if case == "no pixel" else 2, 3, 6, 6)
    parameters: list[Tensor | None] = [torch.ones(3), torch.zeros(3)]
    if case == "no affine parameters":
        parameters = [None, None]
    elif case == "float64":
        x, parameters = x.double(), [torch.ones(3).double(), torch.zeros(3).double()]
    elif case == "bfloat16 parameters":
        x, parameters = x.bfloat16(), [torch.ones(3).bfloat16(), torch.zeros(3).bfloat16()]
    elif case == "five dimensions less one":
        x = x[:, :, 0, 0].view(2, 3, 1, 1).expand(2, 3, 2, 2)
    y = batch_norm_relu(x, *parameters, None, None, training=True)
    with use("reference"):
        torch.testing.assert_close(y, batch_norm_relu(x, *parameters, None, None, training=True))


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
