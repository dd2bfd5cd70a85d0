"""Averaged and left-out pixels: PyTorch's values, gradients of any order, channels-last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kernel_tools import channels_last, needs_library
from sepnet.kernels import _pixels, global_average, use
from sepnet.kernels._pixels import every_nth_pixel
from sepnet.nn import PoolHead
from sepnet.nn.conv import pointwise

SHAPES = [(2, 3, 4, 4), (1, 1, 1, 1), (3, 5, 7, 2), (2, 64, 5, 6)]


def sliced(x: Tensor, stride: int) -> Tensor:
    return x[:, :, ::stride, ::stride]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_those_of_pytorch(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    torch.testing.assert_close(global_average(x), x.mean((2, 3)))
    assert torch.equal(every_nth_pixel(x, 2), sliced(x, 2))
    for call in (global_average, lambda x: every_nth_pixel(x, 2), lambda x: every_nth_pixel(x, 3)):
        many = x.numel() > 1000  # whose Jacobians value by value take minutes: along a random direction
        assert torch.autograd.gradcheck(call, x, fast_mode=many)
        assert torch.autograd.gradgradcheck(call, x, fast_mode=many)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_channels_last(dtype: torch.dtype) -> None:
    x = channels_last(torch.randn(4, 16, 8, 6)).to(dtype).requires_grad_()
    for ours, torchs in ((global_average, lambda x: x.mean((2, 3))), (lambda x: every_nth_pixel(x, 2), lambda x: sliced(x, 2))):
        y = ours(x)
        grad = torch.randn_like(y)
        (got,) = torch.autograd.grad(y, x, grad)
        (expected,) = torch.autograd.grad(torchs(x), x, grad)
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, torchs(x))
        assert torch.equal(got, expected)


@pytest.fixture
def nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but PyTorch's operations may be called."""
    monkeypatch.setattr(_pixels, "_EveryNthPixel", None)
    monkeypatch.setattr(_pixels, "_GlobalAverage", None)


@pytest.mark.usefixtures("nothing_of_ours")
def test_what_is_left_to_pytorch() -> None:
    x = channels_last(torch.randn(4, 3, 6, 6)).requires_grad_()
    nchw = x.contiguous()
    assert torch.equal(global_average(nchw), nchw.mean((2, 3)))
    assert global_average(x[:0]).shape == (0, 3)
    with pytest.raises(IndexError):
        global_average(x[0])
    with use("reference"):
        assert torch.equal(global_average(x), x.mean((2, 3)))
        assert torch.equal(every_nth_pixel(x, 2), sliced(x, 2))
    torch.testing.assert_close(torch.vmap(global_average)(x.detach()[None]), x.mean((2, 3))[None])


@pytest.mark.usefixtures("nothing_of_ours")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_the_forward_mode_is_left_to_pytorch() -> None:
    x = channels_last(torch.randn(2, 3, 6, 6))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.requires_grad_(), 2 * x.detach())
        average, some = (forward_ad.unpack_dual(y).tangent for y in (global_average(dual), every_nth_pixel(dual, 2)))
    torch.testing.assert_close(average, 2 * x.mean((2, 3)))
    assert torch.equal(some, 2 * sliced(x, 2))


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 4, 4), (2, 3, 6, 5)])
def test_results_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    x = channels_last(torch.randn(shape)).requires_grad_()
    before = x.detach().clone()
    average, pixels = global_average(x), every_nth_pixel(x, 7)
    average.add_(1).relu_()
    pixels.mul_(2)
    (got,) = torch.autograd.grad(average.sum() + pixels.sum(), x)
    (wanted,) = torch.autograd.grad((x.mean((2, 3)) + 1).relu().sum() + 2 * sliced(x, 7).sum(), x)
    assert torch.equal(x, before)
    torch.testing.assert_close(got, wanted)


def test_large_maps_are_pytorchs(nothing_of_ours: None) -> None:
    large = channels_last(torch.randn(1, 2, 33, 32)).requires_grad_()
    assert torch.equal(global_average(large), large.mean((2, 3)))
    assert global_average(large.to(torch.float16)).dtype == torch.float16


def test_nobody_wants_gradients(nothing_of_ours: None) -> None:
    x = channels_last(torch.randn(2, 3, 6, 6))
    assert not global_average(x).requires_grad
    with torch.no_grad():
        assert not every_nth_pixel(x.requires_grad_(), 2).requires_grad


@needs_library
@pytest.mark.parametrize("call", [global_average, lambda x: every_nth_pixel(x, 2)])
def test_several_gradients_at_once(call: Callable[[Tensor], Tensor]) -> None:
    x = channels_last(torch.randn(2, 3, 4, 6)).requires_grad_()
    y = call(x)
    grads = torch.randn(5, *y.shape)
    (found,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    for got, grad in zip(found, grads, strict=True):
        torch.testing.assert_close(got, torch.autograd.grad(y, x, grad, retain_graph=True)[0])


class Ending(nn.Module):
    """A strided pointwise convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = pointwise(4, 8, stride=2), PoolHead(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x))
        return y


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_what_is_written_down_is_pytorchs() -> None:
    """And asks no tensor for a number, of which a tracer would warn."""
    module, x = Ending(), channels_last(torch.randn(2, 4, 6, 6))
    traced = torch.jit.trace(module, (x,))
    torch.testing.assert_close(traced(2 * x), module(2 * x))
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(program.module()(torch.cat([x, x])), module(torch.cat([x, x])))
