"""The pooled pointwise convolution in layers and networks: against PyTorch's operations, and where it must step aside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_tools import channels_last, needs_library
from sepnet.kernels import Normalisation, pooled_pointwise, pools, use
from sepnet.kernels._choice_pointwise import MOST_FEW, pooling_is_faster
from sepnet.kernels._library import Mode
from sepnet.models import create_model
from sepnet.nn.conv import PointwiseConv2d, pointwise
from sepnet.nn.joined import normalised_pointwise
from sepnet.nn.multiscale import MultiScaleUnit
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.separable import SeparableBlock
from sepnet.nn.units import SeparableUnit

pytestmark = needs_library

EPS = 1e-5


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


def layers(inputs: int = 3, outputs: int = 16) -> tuple[PointwiseConv2d, BatchNormReLU]:
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
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-4)


def gradients_of(name: str, mode: Mode, bf16: bool) -> dict[str, Tensor]:
    """Of a network's parameters, after a pass that is the same every time."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=3, input_size=16).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(8, 3, 16, 16))
    with use(mode), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(network(x).float(), torch.arange(8) % 3)
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("name", ["multiscale_concat", "multiscale_add", "mobilenet_units"])
def test_networks_train_with_it(calls: Calls, name: str) -> None:
    exact, ours = (gradients_of(name, mode, False) for mode in ("reference", "native"))
    assert calls.number() == 1
    half, reference = (gradients_of(name, mode, True) for mode in ("native", "reference"))
    assert calls.number() == 2
    for parameter, wanted in exact.items():
        size = wanted.norm() + 1e-6
        assert (ours[parameter] - wanted).norm() < 1e-3 * size, parameter
        lost = (reference[parameter] - wanted).norm()  # what bf16 costs PyTorch
        assert (half[parameter] - wanted).norm() < 1.5 * lost + 0.02 * size, parameter


def test_gradients_of_a_unit_agree_with_float64() -> None:
    torch.manual_seed(0)
    unit = MultiScaleUnit(3, 16, "concat").to(memory_format=torch.channels_last)
    exact = MultiScaleUnit(3, 16, "concat").double()
    exact.load_state_dict(unit.state_dict())
    x = channels_last(torch.randn(4, 3, 12, 12))
    unit(x).square().sum().backward()
    with use("reference"):
        exact(x.double()).square().sum().backward()
    for (name, ours), other in zip(unit.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), other.grad, rtol=2e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def evaluated(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    norm.eval()


def hook_on_conv(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    conv.register_forward_hook(lambda *_: None)


def hook_on_norm(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    norm.register_forward_pre_hook(lambda *_: None)


def no_pooling(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    norm.pool = False


def in_double(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    conv.double(), norm.double()


def parametrized(conv: PointwiseConv2d, norm: BatchNormReLU) -> None:
    nn.utils.parametrize.register_parametrization(conv, "weight", nn.Identity())


@pytest.mark.parametrize(
    "change", [evaluated, hook_on_conv, hook_on_norm, no_pooling, in_double, parametrized], ids=lambda f: f.__name__
)
def test_it_steps_aside(calls: Calls, change: Callable[[PointwiseConv2d, BatchNormReLU], None]) -> None:
    conv, norm = layers()
    change(conv, norm)
    other = copy.deepcopy(norm)
    x = X.to(conv.weight.dtype)
    y = normalised_pointwise(x, conv, norm)
    assert calls.number() == 0
    with use("reference"):
        torch.testing.assert_close(y, other(conv(x)), rtol=1e-4, atol=1e-5)


def test_a_global_hook_is_called(calls: Calls) -> None:
    seen: list[nn.Module] = []
    conv, norm = layers()
    x = X.clone(memory_format=torch.channels_last).requires_grad_()
    hook = nn.modules.module.register_module_full_backward_pre_hook(lambda module, _: seen.append(module))
    try:
        normalised_pointwise(x, conv, norm).sum().backward()
    finally:
        hook.remove()
    assert calls.number() == 0
    assert {conv, norm} <= set(seen)


class Counted(nn.Module):
    """A parametrization that says how often it was asked, as spectral_norm goes on by a step each time."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.number += 1
        return 2 * weight


@pytest.mark.parametrize("block", [SeparableUnit, SeparableBlock])
@pytest.mark.parametrize("size", [8, 56])
def test_a_parametrized_weight_is_computed_once(block: Callable[[int, int], nn.Module], size: int) -> None:
    module = block(3, 16).to(memory_format=torch.channels_last)
    counters = []
    for layer in [m for m in module.modules() if isinstance(m, nn.Conv2d)]:
        counters.append(Counted())
        nn.utils.parametrize.register_parametrization(layer, "weight", counters[-1], unsafe=True)
    before = [counter.number for counter in counters]
    module(channels_last(torch.randn(2, 3, size, size))).sum().backward()
    assert len(counters) >= 2
    assert [counter.number - old for counter, old in zip(counters, before, strict=True)] == [1] * len(counters)


@pytest.mark.parametrize("frozen", ["x", "conv.weight", "norm.weight", "norm.bias"])
def test_what_wants_no_gradient_gets_none(frozen: str) -> None:
    conv, norm = layers()
    x = X.clone(memory_format=torch.channels_last)
    leaves = {"x": x, "conv.weight": conv.weight, "norm.weight": norm.weight, "norm.bias": norm.bias}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != frozen)
    normalised_pointwise(x, conv, norm).square().sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


def test_without_gradients_and_without_averages(calls: Calls) -> None:
    (conv, norm), (_, other) = layers(), layers()
    with torch.no_grad():
        y = normalised_pointwise(X, conv, norm)
        with use("reference"):
            torch.testing.assert_close(y, other(conv(X)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, other.running_var)
    norm = BatchNormReLU(16, pool=True)
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    norm.eval()  # has no averages to use
    y = normalised_pointwise(X, conv, norm)
    with use("reference"):
        torch.testing.assert_close(y, norm(conv(X)), rtol=1e-4, atol=1e-5)
    assert calls.number() == 2


def test_types_are_pytorchs_to_refuse() -> None:
    conv, norm = layers()
    with pytest.raises(RuntimeError, match="type"):
        normalised_pointwise(X.bfloat16(), conv, norm)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError):
        normalised_pointwise(X.to(torch.int32), conv, norm)


@pytest.mark.parametrize(
    ("inputs", "outputs", "faster"), [(3, 64, True), (6, 32, True), (8, 16, True), (8, 15, False), (1, 8, False), (9, 64, False)]
)
def test_where_it_is_faster(inputs: int, outputs: int, faster: bool) -> None:
    assert pooling_is_faster(inputs, outputs) is faster


def test_other_inputs_are_pytorchs(calls: Calls) -> None:
    conv, norm = layers(MOST_FEW + 1, 32)
    normalised_pointwise(channels_last(torch.randn(2, MOST_FEW + 1, 4, 4)), conv, norm)
    for bias, stride in ((True, 1), (False, 2)):
        normalised_pointwise(X, pointwise(3, 16, bias=bias, stride=stride), layers()[1])
    gaps = pointwise(6, 16)
    gaps.weight = nn.Parameter(torch.randn(16, 12, 1, 1)[:, ::2])
    normalised_pointwise(channels_last(torch.randn(2, 6, 4, 4)), gaps, layers(6)[1])
    assert calls.number() == 0
    with pytest.raises(RuntimeError, match="channels"):
        normalised_pointwise(channels_last(torch.randn(2, 4, 4, 4)), *layers())
    norm = Normalisation(torch.ones(16), torch.zeros(16), None, EPS, True)
    weight = torch.ones(16, 3, 1, 1)
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
