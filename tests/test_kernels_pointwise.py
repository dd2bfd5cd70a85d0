"""Pointwise convolution by the kernels against float64: every instruction set, forward and backward; and who takes it."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernel_pointwise_tools import ALL, check_native, second_derivatives, tensors, without_products
from kernel_tools import (
    LIBRARY,
    channels_last,
    every_isa,
    instruction_set,
    needs_library,
    threads,
)
from sepnet.kernels import _choice_pointwise, _pointwise, pointwise_conv2d, use
from sepnet.kernels._choice_pointwise import Way, pointwise_way
from sepnet.kernels._native_pointwise import pointwise_backward, pointwise_forward
from sepnet.nn import BatchNormReLU, SeparableBlock, depthwise
from sepnet.nn.conv import pointwise

pytestmark = needs_library

CHANNELS = st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 132, 257, 258, 259, 300]))


@every_isa
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 4), CHANNELS, st.integers(1, 12), st.integers(1, 12)),
    CHANNELS,
    st.integers(1, 5),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(0, 99),
)
def test_agrees_with_float64(
    isa: str, shape: tuple[int, int, int, int], outputs: int, count: int, want: tuple[bool, bool, bool], seed: int
) -> None:
    with instruction_set(isa), threads(count):
        check_native(shape, outputs, want, seed)


@every_isa
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("shape", "outputs"), [((2, 513, 9, 31), 300), ((1, 1024, 3, 3), 40), ((3, 20, 40, 41), 1300), ((1, 2, 1, 1), 2000)]
)
def test_more_than_a_block_of_everything(isa: str, count: int, shape: tuple[int, int, int, int], outputs: int) -> None:
    with instruction_set(isa), threads(count):
        check_native(shape, outputs)


@every_isa
def test_the_same_threads_give_the_same_bits(isa: str) -> None:
    x, weight, bias, grad = tensors((2, 70, 30, 31), 150)
    with instruction_set(isa), threads(3):
        runs = [(pointwise_forward(LIBRARY, x, weight, bias), *pointwise_backward(LIBRARY, x, weight, grad, ALL)) for _ in range(3)]
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)


def test_a_long_sum_keeps_its_digits() -> None:
    """A hundred thousand pixels of one value: summed one after the other in float32 the gradients would be off by a thousandth."""
    x = channels_last(torch.full((1, 32, 400, 300), 0.1))
    grad = channels_last(torch.full((1, 32, 400, 300), 0.1))
    with threads(1):
        _, grad_weight, grad_bias = pointwise_backward(LIBRARY, x, torch.zeros(32, 32, 1, 1), grad, (False, True, True))
    assert grad_weight is not None
    assert grad_bias is not None
    one = float(torch.tensor(0.1).double())
    assert grad_weight.double().sub(120_000 * one**2).abs().max() < 120_000 * one**2 * 2e-5
    assert grad_bias.double().sub(120_000 * one).abs().max() < 120_000 * one * 1e-7


def test_a_gradient_of_another_shape_is_refused() -> None:
    x, weight, _, grad = tensors((2, 32, 4, 4), 40)
    with pytest.raises(ValueError, match=r"the gradient is \(2, 40, 4, 3\)"):
        pointwise_backward(LIBRARY, x, weight, channels_last(grad[..., :3]), ALL)


# --- who takes it --------------------------------------------------------------------------------------------------------------

LARGE = (16, 64, 16, 16)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    """The choice is that for a processor with AVX2; the mock is the kernels' forward pass."""
    monkeypatch.setattr(_choice_pointwise, "instructions", lambda: "AVX2")
    called = mock.Mock(side_effect=pointwise_forward)
    monkeypatch.setattr(_pointwise, "pointwise_forward", called)
    with instruction_set(without_products):
        yield called


@pytest.mark.parametrize(
    ("processor", "dtype", "shape", "outputs", "way"),
    [
        ("AVX2", torch.float32, LARGE, 64, Way.KERNELS),
        ("AVX2", torch.float32, (8, 64, 8, 8), 256, Way.KERNELS),
        ("AVX2", torch.float32, (7, 64, 8, 8), 512, Way.CONVOLUTION),  # 448 pixels
        ("AVX2", torch.float32, (8, 64, 8, 8), 255, Way.CONVOLUTION),  # less than 2**23 multiplications
        ("AVX2", torch.float32, (128, 31, 32, 32), 64, Way.CONVOLUTION),
        ("AVX2", torch.float32, (128, 64, 32, 32), 31, Way.CONVOLUTION),
        ("AVX2", torch.bfloat16, LARGE, 64, Way.CONVOLUTION),
        ("AVX2", torch.bfloat16, (8, 64, 16, 16), 64, Way.CONVOLUTION),
        ("AVX2", torch.bfloat16, (128, 64, 4, 4), 64, Way.PRODUCT),
        ("AVX2", torch.float64, LARGE, 64, Way.CONVOLUTION),
        ("AVX2", torch.float32, (8, 1024, 7, 7), 512, Way.KERNELS),
        ("AVX2", torch.float32, (8, 1024, 7, 7), 511, Way.CONVOLUTION),
        ("AVX2", torch.float32, (16, 1024, 4, 4), 512, Way.PRODUCT),
        ("AVX2", torch.float32, (17, 1024, 4, 4), 512, Way.KERNELS),
        ("AVX2", torch.float64, (8, 1024, 7, 7), 512, Way.CONVOLUTION),
        ("AVX512", torch.float32, (8, 1024, 7, 7), 512, Way.CONVOLUTION),
        ("AVX512", torch.float32, LARGE, 64, Way.CONVOLUTION),
        ("AVX512", torch.bfloat16, (128, 64, 4, 4), 64, Way.PRODUCT),
        ("AVX512", torch.bfloat16, (128, 64, 5, 4), 64, Way.CONVOLUTION),
        ("AVX512", torch.bfloat16, (8, 64, 16, 16), 64, Way.PRODUCT),
        ("AVX512", torch.bfloat16, (9, 64, 16, 16), 64, Way.CONVOLUTION),
        ("AVX512", torch.bfloat16, (128, 512, 8, 8), 1024, Way.PRODUCT),
        ("AVX512", torch.bfloat16, (129, 512, 8, 8), 1024, Way.CONVOLUTION),
        ("AVX512", torch.bfloat16, (128, 512, 8, 8), 511, Way.CONVOLUTION),
        ("AVX512", torch.bfloat16, (128, 511, 8, 8), 512, Way.CONVOLUTION),
        ("AVX512", torch.float32, (8, 64, 16, 16), 64, Way.CONVOLUTION),
        ("DEFAULT", torch.float32, LARGE, 64, Way.CONVOLUTION),
        ("AVX512 AMX", torch.float32, (8, 64, 16, 16), 64, Way.CONVOLUTION),
        ("AVX512 AMX", torch.bfloat16, (8, 16, 16, 16), 32, Way.PRODUCT),
        ("AVX512 AMX", torch.bfloat16, (9, 32, 16, 16), 64, Way.CONVOLUTION),
        ("AVX512 AMX", torch.bfloat16, (512, 32, 4, 4), 64, Way.PRODUCT),
        ("AVX512 AMX", torch.bfloat16, (128, 127, 16, 16), 256, Way.CONVOLUTION),
        ("AVX512 AMX", torch.bfloat16, (128, 128, 16, 16), 256, Way.PRODUCT),
        ("AVX512 AMX", torch.bfloat16, (128, 512, 8, 8), 1024, Way.PRODUCT),
        ("AVX512 AMX", torch.bfloat16, (128, 512, 9, 8), 1024, Way.CONVOLUTION),
        ("AVX512 AMX", torch.bfloat16, (128, 511, 9, 8), 1024, Way.PRODUCT),
    ],
)
def test_way(
    monkeypatch: pytest.MonkeyPatch, processor: str, dtype: torch.dtype, shape: tuple[int, ...], outputs: int, way: Way
) -> None:
    name, _, tiles = processor.partition(" ")
    monkeypatch.setattr(_choice_pointwise, "instructions", lambda: name)
    monkeypatch.setattr(_choice_pointwise, "processor_has", lambda feature: feature == "amx_bf16" and bool(tiles))
    monkeypatch.setattr(_choice_pointwise, "onednn_has", lambda dtype: dtype == torch.float32 or name == "AVX512")
    assert pointwise_way(dtype, shape, outputs, bias=False, in_bf16=False) is way


def test_way_with_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient is another pass over the map beside a product."""
    monkeypatch.setattr(_choice_pointwise, "instructions", lambda: "AVX512")
    monkeypatch.setattr(_choice_pointwise, "processor_has", lambda feature: feature == "amx_bf16")
    monkeypatch.setattr(_choice_pointwise, "onednn_has", lambda _: True)
    assert pointwise_way(torch.bfloat16, (128, 128, 16, 16), 128, bias=False, in_bf16=False) is Way.PRODUCT
    assert pointwise_way(torch.bfloat16, (128, 128, 16, 16), 128, bias=True, in_bf16=False) is Way.CONVOLUTION
    assert pointwise_way(torch.bfloat16, (128, 64, 4, 4), 64, bias=True, in_bf16=False) is Way.PRODUCT


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer(avx2: mock.Mock, stride: int, with_bias: bool) -> None:
    """Output and all gradients are those of PyTorch's convolution; the weight's gradient lies in memory as the weight does."""
    x = torch.randn(16, 64, 33, 32, requires_grad=True)  # NCHW
    layer = pointwise(64, 48, stride=stride, bias=with_bias).to(memory_format=torch.channels_last)
    y = layer(x)
    assert avx2.called
    grad = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    got = torch.autograd.grad(y, leaves, grad)
    assert got[1].stride() == layer.weight.stride()
    exact = F.conv2d(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double(), stride)
    wanted = torch.autograd.grad(exact, leaves, grad.double())
    for one, other in zip((y, *got), (exact, *wanted), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", ["input", "weight", "all"])
def test_what_wants_no_gradient_gets_none(avx2: mock.Mock, frozen: str) -> None:
    x = channels_last(torch.randn(LARGE)).requires_grad_(frozen == "weight")
    weight = torch.randn(64, 64, 1, 1, requires_grad=frozen == "input")
    y = pointwise_conv2d(x, weight)
    assert avx2.called
    assert y.requires_grad == (frozen != "all")
    if y.requires_grad:
        y.sum().backward()
        assert (x.grad is not None, weight.grad is not None) == (frozen == "weight", frozen == "input")


def test_a_gradient_of_one_number_for_all(avx2: mock.Mock) -> None:
    x = channels_last(torch.randn(LARGE)).requires_grad_()
    weight = torch.randn(64, 64, 1, 1)
    y = pointwise_conv2d(x, weight)
    (got,) = torch.autograd.grad(y.sum(), x)  # of a number expanded to all: strides of 0
    torch.testing.assert_close(got, weight.sum(0).expand(LARGE), rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_pytorchs(avx2: mock.Mock) -> None:
    x, weight, bias, _ = tensors(LARGE, 64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    ours = second_derivatives(*leaves)
    assert avx2.called
    with use("reference"):
        theirs = second_derivatives(*leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_a_stack_of_gradients(avx2: mock.Mock) -> None:
    """Of which ``torch.autograd.grad`` makes one of its own kind (vmap)."""
    x, weight, _, grad = tensors(LARGE, 64)
    x.requires_grad_()
    (got,) = torch.autograd.grad(pointwise_conv2d(x, weight), x, torch.stack([grad, 2 * grad]), is_grads_batched=True)
    assert avx2.called
    wanted = F.conv2d(grad, weight.transpose(0, 1))
    torch.testing.assert_close(got, torch.stack([wanted, 2 * wanted]), rtol=1e-4, atol=1e-4)


def test_a_gradient_that_stands_negated_in_memory(avx2: mock.Mock) -> None:
    x, weight, _, grad = tensors(LARGE, 64)
    x.requires_grad_()
    (got,) = torch.autograd.grad(pointwise_conv2d(x, weight), x, torch._neg_view(grad))
    assert avx2.called
    torch.testing.assert_close(got, -F.conv2d(grad, weight.transpose(0, 1)), rtol=1e-4, atol=1e-4)


def test_saved_tensors_may_come_back_in_another_layout(avx2: mock.Mock) -> None:
    """As from a hook that writes them to a file, or torch.autograd.graph.save_on_cpu: of all functions of the kernels."""
    x = channels_last(torch.randn(LARGE)).requires_grad_()
    net = torch.nn.Sequential(depthwise(64, 3), BatchNormReLU(64, pool=True), pointwise(64, 256), SeparableBlock(256, 96))
    net = net.to(memory_format=torch.channels_last)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()]))

    wanted = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(memory_format=torch.contiguous_format), lambda t: t):
        got = gradients()
    assert avx2.called
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pytorchs_default_type_and_device_do_not_matter(avx2: mock.Mock, dtype: torch.dtype) -> None:
    x, weight, bias, grad = tensors(LARGE, 64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    wanted = torch.autograd.grad(F.conv2d(x, weight, bias), leaves, grad)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            y = _pointwise._by_kernels(LIBRARY, x, weight, bias)
            got = torch.autograd.grad(y, leaves, grad)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


def test_what_the_library_does_not_take_is_pytorchs(avx2: mock.Mock) -> None:
    x, weight = channels_last(torch.randn(LARGE)), torch.randn(64, 64, 1, 1)
    gaps = torch.randn(64, 128, 1, 1)[:, ::2]
    torch.testing.assert_close(pointwise_conv2d(x, gaps), F.conv2d(x, gaps))
    with use("reference"):
        pointwise_conv2d(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert pointwise_conv2d(x, weight).dtype == torch.bfloat16
    assert not avx2.called
    for wrong, bias in ((weight[:, :32], None), (weight, torch.randn(63)), (weight.double(), None)):
        with pytest.raises(RuntimeError):
            pointwise_conv2d(x, wrong, bias)
    assert not avx2.called
    torch.testing.assert_close(pointwise_conv2d(x, weight), F.conv2d(x, weight), rtol=1e-4, atol=1e-4)
    assert avx2.called
