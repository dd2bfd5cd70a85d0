"""A pointwise convolution of few channels, normalised and pooled in one: every instruction set against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernel_norm_tools import windows
from kernel_tools import (
    LIBRARY,
    ROUNDING,
    TYPES,
    channels_last,
    every_isa,
    instruction_set,
    multiplies_halves,
    needs_library,
    poisoned_memory,
    threads,
)
from sepnet.kernels._native_norm import _SCALE
from sepnet.kernels._native_pooled import MOST_FEW, Pooled, pooled_pointwise_backward, pooled_pointwise_forward

pytestmark = needs_library

CUT = 4  # what ``kept`` says where ReLU cut
EPS = 1e-5
BOTH = (True, True)


class Problem(NamedTuple):
    """What is convolved, normalised and pooled."""

    shape: tuple[int, int, int, int]
    outputs: int
    relu: bool
    mean: float
    seed: int

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, weight, gamma, beta and dL/dy."""
        g = torch.Generator().manual_seed(self.seed)
        batch, inputs, height, width = self.shape
        x = torch.randn(self.shape, generator=g) * torch.linspace(0.3, 2, inputs)[:, None, None] + self.mean
        weight = torch.randn((self.outputs, inputs, 1, 1), generator=g)
        gamma, beta = 3 * torch.rand(self.outputs, generator=g) - 1.5, torch.randn(self.outputs, generator=g)
        grad = torch.randn((batch, self.outputs, height // 2, width // 2), generator=g)
        return channels_last(x.to(dtype)), weight, gamma, beta, channels_last(grad.to(dtype))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    side = st.one_of(st.integers(2, 9), st.integers(2, 30), st.sampled_from([65, 131]))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, MOST_FEW)), draw(side), draw(side)
    outputs = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 127, 128])))
    return Problem(shape, outputs, draw(st.booleans()), draw(st.sampled_from([0.0, 0.5, -100.0])), draw(st.integers(0, 99)))


def near(name: str, got: Tensor, exact: Tensor, size: Tensor | float, dtype: torch.dtype) -> None:
    """``size``: of what was added up; one part in 100,000 of it may be lost, and what the type rounds off."""
    assert got.shape == exact.shape, name
    limit = 1e-5 * size + ROUNDING[dtype] * (exact.abs() + 1e-5 * size)
    error = (got.double() - exact).abs()
    assert bool((error <= limit).all()), f"{name} is off by {float((error / limit).max()):.3g} times what rounding allows"


def exact_dx(u_grad: Tensor, weight: Tensor, pooled: Pooled, dtype: torch.dtype) -> Tensor:
    """By the exact gradient of the convolution's result. Where the processor multiplies pairs of bfloat16 the weights, times the
    normalisation's scale, are rounded to it.
    """
    seen = weight.flatten(1).double()
    if dtype == torch.bfloat16 and multiplies_halves(LIBRARY.isa):
        scale = pooled.constants[_SCALE][:, None]
        scaled = weight.flatten(1) * scale
        seen = torch.where(scaled == 0, seen, scaled.bfloat16().double() / scale.double())
    return torch.einsum("bnhw,nk->bkhw", u_grad, seen)


def check_native(problem: Problem, dtype: torch.dtype) -> None:
    """The kernel's own choice of pixels must be defensible, and its gradients those of the choice."""
    x, weight, gamma, beta, grad = problem.tensors(dtype)
    with poisoned_memory():
        y, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, problem.relu)
        (grad_x, grad_weight, _), affine = pooled_pointwise_backward(LIBRARY, x, weight, pooled, grad, problem.relu, BOTH)
    assert grad_x is not None
    assert grad_weight is not None
    leaves = [t.double().requires_grad_() for t in (x, weight, gamma, beta)]
    u = F.conv2d(leaves[0], leaves[1])
    u.retain_grad()
    normal = F.batch_norm(u, None, None, leaves[2], leaves[3], True, 0.1, EPS)
    kept = pooled.kept.view(y.shape[0], *y.shape[2:], -1).permute(0, 3, 1, 2)
    assert int(kept.max()) <= (CUT if problem.relu else 3)
    values = windows(normal)
    taken = values.gather(-1, kept.clamp_max(3).long()[..., None])[..., 0]
    size = 1 + float(normal.detach().abs().max())
    best = values.amax(-1)
    assert bool((best - taken <= 1e-5 * size)[kept < CUT].all()), "a pixel was kept that is not the largest"
    assert bool((best <= 1e-5 * size)[kept == CUT].all()), "ReLU cut what is above zero"
    near("y", y, best.clamp_min(0) if problem.relu else best, size, dtype)

    reaching = grad.double() * (kept < CUT)
    (taken * reaching).sum().backward()
    assert u.grad is not None
    u_grad, u = u.grad, u.detach()
    scale = (gamma.double() / (u.var((0, 2, 3), correction=0) + EPS).sqrt()).abs()[:, None, None]
    through = float((reaching.abs() * scale).amax() * weight.abs().sum())
    added = reaching.abs().sum((0, 2, 3))
    spread = float((x.double() - x.double().mean((0, 2, 3), keepdim=True)).abs().max())
    exact = [leaf.grad for leaf in leaves]
    assert all(t is not None for t in exact)
    near("dx", grad_x, exact_dx(u_grad, weight, pooled, dtype), through, dtype)
    near("dweight", grad_weight, exact[1], spread * (added * scale.flatten() + 1e-3)[:, None, None, None] * size, torch.float32)
    near("dgamma", affine[0], exact[2], size * (added + 1e-3), torch.float32)
    near("dbeta", affine[1], exact[3], added + 1e-3, torch.float32)


@every_isa
@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems(), dtype=st.sampled_from(TYPES), count=st.integers(1, 3))
def test_agrees_with_float64(isa: str, problem: Problem, dtype: torch.dtype, count: int) -> None:
    with instruction_set(isa), threads(count):
        check_native(problem, dtype)


@every_isa
def test_a_large_mean_costs_no_digits(isa: str) -> None:
    with instruction_set(isa):
        check_native(Problem((4, 6, 32, 32), 32, True, 1000.0, 0), torch.float32)


def outlier(x: Tensor, weight: Tensor) -> None:
    """The value that all others are compared with."""
    x[0, :, 0, 0] = 3000.0


def alike(x: Tensor, weight: Tensor) -> None:
    """Channels that are much alike, and filters that see their differences only."""
    x[:, 1:] = 100 * x[:, :1] + 30 * x[:, 1:]
    x[:, :1] *= 100
    weight.copy_(weight.round() + 0.0)
    weight[:, 0] = -weight[:, 1:].sum(1)


@every_isa
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("change", [outlier, alike], ids=lambda f: f.__name__)
def test_statistics_keep_their_digits(isa: str, count: int, change: Callable[[Tensor, Tensor], None]) -> None:
    x, weight, gamma, beta, _ = Problem((8, 3, 32, 32), 8, True, 0.0, 0).tensors(torch.float32)
    change(x, weight)
    with instruction_set(isa), threads(count):
        _, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
    u = F.conv2d(x.double(), weight.double())
    near("mean", pooled.constants[0], u.mean((0, 2, 3)), 10.0, torch.float32)
    exact = (u.var((0, 2, 3), correction=0) + EPS).rsqrt()
    near("1 / sigma", pooled.constants[1], exact, 10 * exact, torch.float32)


@every_isa
def test_the_first_of_equals_is_kept(isa: str) -> None:
    """As in ``F.max_pool2d``; a channel whose gamma is 0 has nothing but equals."""
    x = channels_last(torch.randint(0, 2, (4, 3, 12, 12), generator=torch.Generator().manual_seed(0)).float())
    weight = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 1]])[:, :, None, None]
    gamma, beta = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([2.0, 2.0, 1.0])
    with instruction_set(isa):
        y, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
    normal = F.batch_norm(F.conv2d(x, weight), None, None, gamma, beta, True, 0.1, EPS)
    first = (windows(normal) == windows(normal).amax(-1, keepdim=True)).byte().argmax(-1)
    assert torch.equal(pooled.kept.view(4, 6, 6, 3).permute(0, 3, 1, 2).long(), first)
    assert bool((y[:, 2] == 1).all())


@every_isa
def test_the_same_threads_give_the_same_bits(isa: str) -> None:
    x, weight, gamma, beta, grad = Problem((8, 6, 30, 31), 33, True, 0.0, 0).tensors(torch.float32)
    runs = []
    with instruction_set(isa), threads(3):
        for _ in range(3):
            y, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
            (grad_x, grad_weight, _), affine = pooled_pointwise_backward(LIBRARY, x, weight, pooled, grad, True, BOTH)
            runs.append((y, pooled.kept, grad_x, grad_weight, affine))
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


@every_isa
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_seen(isa: str, dtype: torch.dtype, bad: float) -> None:
    x, weight, gamma, beta, _ = Problem((2, 3, 6, 6), 8, True, 0.0, 0).tensors(dtype)
    x[1, 2, 5, 5] = bad
    with instruction_set(isa):
        y, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
    assert y.isnan().all()
    assert int(pooled.kept.max()) <= CUT


@pytest.mark.parametrize("want", [(True, False), (False, True), (False, False)])
def test_only_what_is_wanted(want: tuple[bool, bool]) -> None:
    x, weight, gamma, beta, grad = Problem((2, 3, 7, 6), 8, True, 0.0, 0).tensors(torch.bfloat16)
    _, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
    all_of_it, affine = pooled_pointwise_backward(LIBRARY, x, weight, pooled, grad, True, BOTH)
    some, again = pooled_pointwise_backward(LIBRARY, x, weight, pooled, grad, True, want)
    assert torch.equal(affine, again)
    for got, wanted, exact in zip(some, want, all_of_it, strict=False):
        assert (got is not None) == wanted
        assert got is None or torch.equal(got, exact)


def test_a_gradient_of_another_shape_is_refused() -> None:
    x, weight, gamma, beta, grad = Problem((2, 3, 6, 6), 8, True, 0.0, 0).tensors(torch.float32)
    _, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
    with pytest.raises(ValueError, match=r"the gradient is \(2, 8, 3, 2\), the output of \(2, 3, 6, 6\) is \(2, 8, 3, 3\)"):
        pooled_pointwise_backward(LIBRARY, x, weight, pooled, channels_last(grad[..., :2]), True, BOTH)


def test_the_library_takes_as_many_channels_as_the_rule_says() -> None:
    x, weight, gamma, beta, _ = Problem((2, MOST_FEW, 4, 4), 16, True, 0.0, 0).tensors(torch.float32)
    pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
    x, weight, gamma, beta, _ = Problem((2, MOST_FEW + 1, 4, 4), 32, True, 0.0, 0).tensors(torch.float32)
    with pytest.raises(ValueError, match="do not pool"):
        pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
