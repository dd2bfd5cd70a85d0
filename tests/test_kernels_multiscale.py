"""The branches of Wang et al.'s unit as one convolution: the layers' own sum in float64, and who takes them."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernel_tools import channels_last, needs_library
from sepnet.kernels import multiscale_branches, use
from sepnet.nn import multiscale
from sepnet.nn.multiscale import Merge, MultiScaleUnit

pytestmark = needs_library

EVERY_UNIT = [(add, residual) for add in (False, True) for residual in (False, True)]


def filters(channels: int) -> list[Tensor]:
    """The first as a channels-last network has it."""
    layers = [torch.randn(channels, 1, 3, 3) for _ in range(3)]
    layers[0] = layers[0].contiguous(memory_format=torch.channels_last)
    return [w.requires_grad_() for w in layers]


def layer_by_layer(x: Tensor, small: Tensor, first: Tensor, second: Tensor, add: bool, residual: bool) -> Tensor:
    c = x.shape[1]
    a = F.conv2d(x, small, padding=1, groups=c)
    b = F.conv2d(F.conv2d(F.pad(x, (2, 2, 2, 2)), first, groups=c), second, groups=c)
    if add:
        return x + a + b if residual else a + b
    return torch.cat([x + a, x + b] if residual else [a, b], 1)


@pytest.mark.parametrize(("add", "residual"), EVERY_UNIT)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 3, 7, 6), (2, 37, 9, 5)])
def test_agrees_with_the_layers_in_float64(add: bool, residual: bool, shape: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    leaves = [channels_last(torch.randn(shape)).requires_grad_(), *filters(shape[1])]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    y = multiscale_branches(*leaves, add=add, residual=residual)
    expected = layer_by_layer(*doubles, add=add, residual=residual)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, grad)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for got, want, leaf in zip(found, torch.autograd.grad(expected, doubles, grad.double()), leaves, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
        assert got.stride() == leaf.stride()


@pytest.mark.parametrize("frozen", range(3))
@pytest.mark.parametrize("add", [False, True])
def test_frozen_filters(frozen: int, add: bool) -> None:
    x, layers = channels_last(torch.randn(2, 5, 6, 6)), filters(5)
    y = multiscale_branches(x, *layers, add=add, residual=True)
    everything = torch.autograd.grad(y.square().sum(), layers)
    layers[frozen].requires_grad_(False)
    multiscale_branches(x, *layers, add=add, residual=True).square().sum().backward()
    assert layers[frozen].grad is None
    for i in {0, 1, 2} - {frozen}:
        assert torch.equal(layers[i].grad, everything[i])


def test_a_second_derivative_is_refused() -> None:
    layers = filters(4)
    y = multiscale_branches(channels_last(torch.randn(2, 4, 6, 6)), *layers, add=False, residual=True)
    (first,) = torch.autograd.grad(y.square().sum(), layers[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("x", "others"),
    [((8, 4, 6, 6), (5, 1, 3, 3)), ((8, 4, 6, 6), (4, 1, 1, 3)), ((4, 6, 6), (4, 1, 3, 3)), ((), (4, 1, 3, 3))],
)
def test_what_does_not_go_together_is_refused(x: tuple[int, ...], others: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiscale_branches wants"):
        multiscale_branches(torch.randn(x), *filters(4)[:2], torch.randn(others), add=False, residual=True)


def test_an_empty_batch() -> None:
    layers = filters(4)
    y = multiscale_branches(torch.randn(0, 4, 6, 6), *layers, add=False, residual=True)
    assert y.shape == (0, 8, 6, 6)
    y.sum().backward()
    assert not layers[1].grad.any()


@pytest.mark.parametrize("kind", ["bf16", "gaps"])
@pytest.mark.parametrize("merge", ["concat", "add"])
def test_filters_of_another_type_or_with_gaps(merge: Merge, kind: str) -> None:
    """Give the same, and get gradients of their own type, as a unit's layers do one by one."""
    torch.manual_seed(0)
    unit = MultiScaleUnit(16, 16, merge)
    x = channels_last(torch.randn(4, 16, 16, 16))
    with use("reference"):
        expected = unit.merged(x)
        wanted = torch.autograd.grad(expected.square().sum(), unit.dw_large1.weight)[0]
    if kind == "bf16":
        unit, x = unit.bfloat16(), x.bfloat16()
    else:
        unit.dw_large1.weight = nn.Parameter(torch.stack([unit.dw_large1.weight.detach()] * 2, -1)[..., 0])
    with mock.patch.object(multiscale, "multiscale_branches", side_effect=multiscale_branches) as call:
        y = unit.merged(x)
    assert call.called
    (found,) = torch.autograd.grad(y.float().square().sum(), unit.dw_large1.weight)
    assert found.dtype == unit.dw_large1.weight.dtype
    limits = {"rtol": 0.05, "atol": 0.1} if kind == "bf16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(y.float(), expected, **limits)
    assert (found.float() - wanted).norm() < (0.02 if kind == "bf16" else 1e-5) * wanted.norm()


def test_a_filter_that_stands_for_something_else_is_pytorchs() -> None:
    class Other(Tensor):
        pass

    unit = MultiScaleUnit(16, 16, "add")
    unit.dw_small.weight = nn.Parameter(unit.dw_small.weight.detach().as_subclass(Other))
    with mock.patch.object(multiscale, "multiscale_branches", None):
        assert unit.merged(channels_last(torch.randn(8, 16, 16, 16))).shape == (8, 16, 16, 16)


@pytest.mark.parametrize("how", ["strided", "float64", "checkpoint"])
def test_saved_filters_may_come_back_in_another_form(how: str) -> None:
    torch.manual_seed(0)
    x, layers = channels_last(torch.randn(2, 5, 6, 6)), filters(5)

    def run() -> Tensor:
        return multiscale_branches(x, *layers, add=True, residual=True)

    expected = torch.autograd.grad(run().square().sum(), layers)
    if how == "checkpoint":
        y = checkpoint(run, use_reentrant=False)
    else:
        back = (lambda t: t.double()) if how == "float64" else (lambda t: torch.stack([t, t], -1)[..., 0])
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: back(t) if t.shape[2:] == (3, 3) else t):
            y = run()
    for got, want in zip(torch.autograd.grad(y.square().sum(), layers), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_a_parametrized_filter_is_computed_once() -> None:
    unit = MultiScaleUnit(8, 8, "concat")
    calls = []

    class Counted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(weight)
            return 2 * weight

    nn.utils.parametrize.register_parametrization(unit.dw_large1, "weight", Counted())
    for x in (torch.randn(8, 8, 16, 16), torch.randn(8, 8, 16, 16, dtype=torch.float64)):
        calls.clear()
        unit.to(x.dtype).merged(channels_last(x))
        assert len(calls) == 1
