"""A pointwise convolution of few channels, normalised and pooled in one: against float64, and where it must step aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_tools import (
    LIBRARY,
    ROUNDING,
    TYPES,
    channels_last,
    every_isa,
    instruction_set,
    needs_library,
    poisoned_memory,
    threads,
)
from sepnet.kernels import Normalisation, pooled_pointwise, pools, use
from sepnet.kernels._library import Mode
from sepnet.kernels._native_pooled import MAX_FEW, pooled_pointwise_backward, pooled_pointwise_forward
from sepnet.models import create_model
from sepnet.nn.conv import PointwiseConv2d, pointwise
from sepnet.nn.joined import normalised_pointwise
from sepnet.nn.multiscale import MultiScaleUnit
from sepnet.nn.norm import BatchNormReLU

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
        gamma, beta = torch.rand(self.outputs, generator=g) + 0.5, torch.randn(self.outputs, generator=g)
        grad = torch.randn((batch, self.outputs, height // 2, width // 2), generator=g)
        return channels_last(x.to(dtype)), weight, gamma, beta, channels_last(grad.to(dtype))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    side = st.one_of(st.integers(2, 9), st.integers(2, 30), st.sampled_from([65, 131]))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, MAX_FEW)), draw(side), draw(side)
    outputs = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 127, 128])))
    return Problem(shape, outputs, draw(st.booleans()), draw(st.sampled_from([0.0, 0.5, -100.0])), draw(st.integers(0, 99)))


def windows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H // 2, W // 2, 4)."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return x[..., :height, :width].unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)


def near(name: str, got: Tensor, exact: Tensor, size: Tensor | float, dtype: torch.dtype) -> None:
    """``size``: of what was added up; one part in 100,000 of it may be lost, and what the type rounds off."""
    assert got.shape == exact.shape, name
    limit = 1e-5 * size + ROUNDING[dtype] * (exact.abs() + 1e-5 * size)
    error = (got.double() - exact).abs()
    assert bool((error <= limit).all()), f"{name} is off by {float((error / limit).max()):.3g} times what rounding allows"


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
    u = u.detach()
    scale = (gamma.double() / (u.var((0, 2, 3), correction=0) + EPS).sqrt()).abs()[:, None, None]
    through = float((reaching.abs() * scale).amax() * weight.abs().sum())
    added = reaching.abs().sum((0, 2, 3))
    spread = float((x.double() - x.double().mean((0, 2, 3), keepdim=True)).abs().max())
    exact = [leaf.grad for leaf in leaves]
    assert all(t is not None for t in exact)
    near("dx", grad_x, exact[0], through, dtype)
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


@every_isa
@pytest.mark.parametrize("count", [1, 2])
def test_an_outlier_costs_the_others_no_digits(isa: str, count: int) -> None:
    x, weight, gamma, beta, _ = Problem((8, 3, 32, 32), 8, True, 0.0, 0).tensors(torch.float32)
    x[0, :, 0, 0] = 3000.0
    with instruction_set(isa), threads(count):
        _, pooled = pooled_pointwise_forward(LIBRARY, x, weight, gamma, beta, None, EPS, True)
    u = F.conv2d(x.double(), weight.double())
    near("mean", pooled.constants[0], u.mean((0, 2, 3)), 10.0, torch.float32)  # in the outlier's run, of 64 pixels, it does
    exact = (u.var((0, 2, 3), correction=0) + EPS).rsqrt()
    near("1 / sigma", pooled.constants[1], exact, exact, torch.float32)


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_seen(bad: float) -> None:
    x, weight, gamma, beta, _ = Problem((2, 3, 6, 6), 8, True, 0.0, 0).tensors(torch.float32)
    x[1, 2, 5, 5] = bad
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


# --- in a network --------------------------------------------------------------------------------------------------------------


class Calls(NamedTuple):
    """How often the one operation ran."""

    number: Callable[[], int]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen: list[Tensor] = []

    def counted(x: Tensor, weight: Tensor, norm: Normalisation) -> Tensor:
        seen.append(x)
        return pooled_pointwise(x, weight, norm)

    monkeypatch.setattr("sepnet.nn.joined.pooled_pointwise", counted)
    return Calls(lambda: len(seen))


def layers(inputs: int = 3, outputs: int = 8) -> tuple[PointwiseConv2d, BatchNormReLU]:
    torch.manual_seed(0)
    norm = BatchNormReLU(outputs, pool=True)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return pointwise(inputs, outputs), norm


X = channels_last(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_layers_agree_with_the_reference(calls: Calls, momentum: float | None) -> None:
    results = []
    for mode in ("native", "reference"):
        conv, norm = layers()
        norm.momentum = momentum
        x = X.clone(memory_format=torch.channels_last).requires_grad_()
        with use(mode):  # type: ignore[arg-type]
            for _ in range(2):
                y = normalised_pointwise(x, conv, norm)
            y.square().sum().backward()
        results.append((y, x.grad, conv.weight.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    assert calls.number() == 2
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def gradients_of(name: str, mode: Mode, bf16: bool) -> list[Tensor]:
    """Of a network's parameters, after a pass that is the same every time."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=3, input_size=16).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(8, 3, 16, 16))
    with use(mode), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(network(x).float(), torch.arange(8) % 3)
    return list(torch.autograd.grad(loss, list(network.parameters())))


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest distance of two gradients, of the other's length."""
    return max(float((a - b).norm() / (b.norm() + 1e-6)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["multiscale_concat", "multiscale_add", "mobilenet_units"])
def test_networks_train_with_it(calls: Calls, name: str) -> None:
    exact, ours = (gradients_of(name, mode, False) for mode in ("reference", "native"))
    assert calls.number() == 1
    assert apart(ours, exact) < 0.02
    half, reference = (gradients_of(name, mode, True) for mode in ("native", "reference"))
    assert calls.number() == 2
    assert apart(half, exact) < 1.2 * apart(reference, exact)  # bf16 costs no more digits than it costs PyTorch


def test_gradients_of_a_unit_agree_with_float64() -> None:
    torch.manual_seed(0)
    unit = MultiScaleUnit(3, 8, "concat").to(memory_format=torch.channels_last)
    exact = MultiScaleUnit(3, 8, "concat").double()
    exact.load_state_dict(unit.state_dict())
    x = channels_last(torch.randn(4, 3, 12, 12))
    unit(x).square().sum().backward()
    with use("reference"):
        exact(x.double()).square().sum().backward()
    for (name, ours), other in zip(unit.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), other.grad, rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def no_grad_eval(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    norm.eval()


def hook_on_conv(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    conv.register_forward_hook(lambda *_: None)


def hook_on_norm(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    norm.register_forward_pre_hook(lambda *_: None)


def no_pooling(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    norm.pool = False


def half_weights(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    conv.double(), norm.double()


@pytest.mark.parametrize("change", [no_grad_eval, hook_on_conv, hook_on_norm, no_pooling, half_weights], ids=lambda f: f.__name__)
def test_it_steps_aside(calls: Calls, change: Callable[[PointwiseConv2d, BatchNormReLU], None]) -> None:
    conv, norm = layers()
    change(conv, norm)
    x = X.to(conv.weight.dtype)
    y = normalised_pointwise(x, conv, norm)
    assert calls.number() == 0
    torch.testing.assert_close(y, norm(conv(x)) if not norm.training else y)
    assert y.shape == (4, 8, *((8, 8) if not norm.pool else (4, 4)))


def test_other_inputs_are_pytorchs(calls: Calls) -> None:
    conv, norm = layers(MAX_FEW + 1)
    normalised_pointwise(channels_last(torch.randn(2, MAX_FEW + 1, 4, 4)), conv, norm)
    for bias, stride in ((True, 1), (False, 2)):
        normalised_pointwise(X, pointwise(3, 8, bias=bias, stride=stride), layers()[1])
    gaps = pointwise(6, 8)
    gaps.weight = nn.Parameter(torch.randn(8, 12, 1, 1)[:, ::2])
    normalised_pointwise(channels_last(torch.randn(2, 6, 4, 4)), gaps, layers(6)[1])
    assert calls.number() == 0
    with pytest.raises(RuntimeError, match="channels"):
        normalised_pointwise(channels_last(torch.randn(2, 4, 4, 4)), *layers())
    norm = Normalisation(torch.ones(8), torch.zeros(8), None, EPS, True)
    weight = torch.ones(8, 3, 1, 1)
    assert pools(X, weight, norm)
    assert not pools(X[..., :1], weight, norm)
    assert not pools(X[:0], weight, norm)
    assert not pools(X.double(), weight, norm)


def test_an_nchw_input_and_a_view(calls: Calls) -> None:
    for x in (X.contiguous(), X[:, :, 1:7, :6], X[::2]):
        (conv, norm), other = layers(), layers()
        with use("reference"):
            exact = normalised_pointwise(x, *other)
        torch.testing.assert_close(normalised_pointwise(x, conv, norm), exact, rtol=1e-4, atol=1e-5)
    assert calls.number() == 3


def test_saved_tensors_may_come_back_in_another_layout() -> None:
    gradients = []
    for pack in (lambda t: t, lambda t: t.contiguous()):
        conv, norm = layers()
        x = X.clone(memory_format=torch.channels_last).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            normalised_pointwise(x, conv, norm).square().sum().backward()
        gradients.append((x.grad, conv.weight.grad))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_second_derivative_is_refused() -> None:
    conv, norm = layers()
    x = X.clone(memory_format=torch.channels_last).requires_grad_()
    (got,) = torch.autograd.grad(normalised_pointwise(x, conv, norm).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        got.sum().backward()
