"""Which gradients of a depthwise convolution there are, and that nothing is read that is not one."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from kernel_tools import always_native, channels_last, needs_library
from sepnet.kernels import depthwise_conv2d

pytestmark = needs_library


@pytest.mark.parametrize("wanted", [(), ("x",), ("weight",), ("bias",)], ids=str)
def test_gradients_are_kept_exactly_where_they_are_wanted(wanted: tuple[str, ...]) -> None:
    tensors = {"x": torch.randn(2, 8, 9, 9), "weight": torch.randn(8, 1, 3, 3), "bias": torch.randn(8)}
    expected = F.conv2d(*tensors.values(), padding=1, groups=8)
    for name in wanted:
        tensors[name].requires_grad_()
    with always_native():
        y = depthwise_conv2d(*tensors.values(), padding=1)
    torch.testing.assert_close(y.detach(), expected)
    assert (y.grad_fn is None) == (not wanted)
    if wanted:
        y.sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == list(wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, as it sets up the forward mode
def test_forward_mode_is_refused_not_ignored() -> None:
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    with always_native(), forward_ad.dual_level(), pytest.raises(RuntimeError):
        depthwise_conv2d(forward_ad.make_dual(x, torch.randn_like(x)), weight, padding=1)


@pytest.mark.parametrize("shape", [(2, 8, 8, 9), (1, 8, 9, 9), (2, 4, 9, 9)], ids=str)
def test_a_gradient_of_another_shape_is_not_read(shape: tuple[int, ...]) -> None:
    geometry = [1, 1], [3, 3], [1, 1], [1, 1], False
    with always_native(), pytest.raises(ValueError, match="the gradient is"):
        torch.ops.sepnet.depthwise_conv2d_backward(
            channels_last(torch.randn(shape)), channels_last(torch.randn(2, 8, 9, 9)), torch.randn(8, 1, 3, 3), *geometry
        )
