"""Layers as their constructors did not foresee: other weights, one normalisation twice, tensors that a transform left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_tools import channels_last, needs_library
from sepnet.nn import BatchNormReLU, DepthwiseConv2d, depthwise
from sepnet.nn.conv import PointwiseConv2d
from sepnet.nn.joined import depthwise_between, normalised_pointwise
from sepnet.nn.pending import Pending

pytestmark = needs_library
SIZES = [8, 16]  # of maps: one whose passes are PyTorch's, one whose backward pass is ours


def layer(channels: int = 64, **changes: object) -> DepthwiseConv2d:
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1, "groups": channels, "bias": False} | changes
    return DepthwiseConv2d(channels, channels, **options)  # type: ignore[arg-type]


def images(size: int, channels: int = 64) -> Tensor:
    torch.manual_seed(1)
    return channels_last(torch.randn(4, channels, size, size))


def agrees_with_pytorch(conv: DepthwiseConv2d, x: Tensor) -> None:
    theirs, x, own = copy.deepcopy(conv), x.requires_grad_(), x.detach().clone().requires_grad_()
    expected = F.conv2d(own, theirs.weight, theirs.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    y = conv(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for output in (y, expected):
        output.square().sum().backward()
    torch.testing.assert_close(x.grad, own.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(conv.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [4, 64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 5), (1, 2, 4)], ids=str)
def test_a_kernel_of_another_size_is_taken_as_it_is(size: int, channels: int, shape: tuple[int, int, int]) -> None:
    conv = layer(channels)
    conv.weight = nn.Parameter(torch.randn(channels, *shape))
    agrees_with_pytorch(conv, images(size, channels))


@pytest.mark.parametrize("size", SIZES)
def test_twice_as_many_filters_as_channels(size: int) -> None:
    conv = layer()
    conv.weight = nn.Parameter(torch.randn(128, 1, 3, 3))
    agrees_with_pytorch(conv, images(size))


@pytest.mark.parametrize("size", SIZES)
def test_fewer_groups_than_channels_are_pytorchs(size: int) -> None:
    agrees_with_pytorch(layer(groups=16), images(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wrong", [torch.zeros(32, 1, 3, 3), torch.zeros(3, 1, 3, 3)], ids=["32", "3"])
def test_too_few_filters_are_refused(size: int, wrong: Tensor) -> None:
    conv = layer()
    conv.weight = nn.Parameter(wrong)
    with pytest.raises((ValueError, RuntimeError)):
        conv(images(size))


@pytest.mark.parametrize("size", SIZES)
def test_a_bias_of_another_length_is_refused(size: int) -> None:
    conv = layer(bias=True)
    conv.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises((ValueError, RuntimeError)):
        conv(images(size))


def test_a_kernel_of_another_size_is_not_joined() -> None:
    conv, norm = layer(padding=2), BatchNormReLU(64)
    conv.weight = nn.Parameter(torch.randn(64, 1, 7, 7))
    x = images(16)
    y = depthwise_between(Pending(x, norm), conv)
    torch.testing.assert_close(y, conv(copy.deepcopy(norm)(x)), rtol=1e-4, atol=1e-4)
    assert y.shape[2:] == (14, 14)


def test_strides_may_be_lists() -> None:
    conv = layer()
    conv.stride, conv.padding, conv.dilation = [2, 1], [2, 2], [2, 2]  # type: ignore[assignment]
    agrees_with_pytorch(conv, images(16))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_normalisation_on_both_sides_counts_two_batches(momentum: float | None) -> None:
    conv, norm, x = layer(), BatchNormReLU(64), images(16)
    norm.momentum = momentum
    apart = copy.deepcopy(norm)
    torch.testing.assert_close(depthwise_between(Pending(x, norm), conv, norm), apart(conv(apart(x))))
    torch.testing.assert_close(norm.state_dict(), apart.state_dict())
    assert norm.num_batches_tracked == 2


def test_a_pointwise_layer_may_be_wrapped() -> None:
    conv, norm, x = PointwiseConv2d(3, 32, 1, bias=False), BatchNormReLU(32, pool=True), images(16, 3)
    expected = copy.deepcopy(norm)(conv(x))
    torch.testing.assert_close(normalised_pointwise(x, nn.Sequential(conv), norm), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [depthwise(64, 5), BatchNormReLU(64)], ids=["depthwise", "norm"])
def test_tensors_that_a_transform_left_behind(module: nn.Module) -> None:
    left: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        left.append(x * 1.0)
        return x.sum()

    x = images(32)
    torch.func.grad(watched)(x)
    torch.testing.assert_close(copy.deepcopy(module)(left[0]), copy.deepcopy(module)(x), rtol=1e-4, atol=1e-4)
