"""Averaged and left-out pixels: PyTorch's values, gradients of any order, channels-last."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_tools import channels_last, needs_library
from sepnet.kernels import _pixels, global_average, use
from sepnet.kernels._pixels import every_nth_pixel

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
        assert torch.autograd.gradcheck(call, x)
        assert torch.autograd.gradgradcheck(call, x)


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
    x = channels_last(torch.randn(4, 3, 6, 6))
    nchw = x.contiguous()
    assert torch.equal(global_average(nchw), nchw.mean((2, 3)))
    assert global_average(x[:0]).shape == (0, 3)
    with pytest.raises(IndexError):
        global_average(x[0])
    with use("reference"):
        assert torch.equal(global_average(x), x.mean((2, 3)))
        assert torch.equal(every_nth_pixel(x, 2), sliced(x, 2))
    torch.testing.assert_close(torch.vmap(global_average)(x[None]), x.mean((2, 3))[None])
