"""Pointwise convolution that takes over what normalisations do at its sides: against the same apart, and who takes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernel_pointwise_tools import by_kernels, in_bf16, in_both, tensors, without_products
from kernel_tools import LIBRARY, channels_last, instruction_set, needs_library, poisoned_memory, threads
from sepnet.kernels import _native_norm, joins_pointwise, summed_pointwise, use
from sepnet.kernels._native import Side
from sepnet.kernels._native_pointwise import (
    pointwise_backward,
    pointwise_backward_joined,
    pointwise_forward,
    pointwise_forward_joined,
)
from sepnet.models import create_model
from sepnet.nn.conv import PointwiseConv2d, pointwise
from sepnet.nn.joined import pointwise_before, separable_before
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.pending import Pending, settle
from sepnet.nn.residual import Bottleneck
from sepnet.nn.separable import DilatedSeparableBlock, SeparableBlock

pytestmark = needs_library
CHANNELS = st.one_of(st.integers(1, 70), st.sampled_from([96, 128, 258, 288, 530, 1056]))
SHAPES = st.tuples(st.integers(2, 4), CHANNELS, st.integers(1, 20), st.integers(1, 20))
SEVERAL = settings(max_examples=80, deadline=None, derandomize=True)


def sized(shape: tuple[int, int, int, int], outputs: int, dtype: torch.dtype) -> tuple[tuple[int, int, int, int], int]:
    """With the channels that there are kernels for: of bf16 by the block."""
    block = 32 if dtype == torch.bfloat16 else 1
    batch, inputs, *size = shape
    return (batch, -(-inputs // block) * block, *size), -(-outputs // block) * block  # type: ignore[return-value]


def side_of(x: Tensor, relu: bool) -> Side:
    generator = torch.Generator().manual_seed(1)
    gamma, beta = (torch.randn(x.shape[1], generator=generator) for _ in range(2))
    return Side(_native_norm.norm_statistics(LIBRARY, x, None, gamma, beta, None, 1e-5), relu)


def moments(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance, from the rows that ``norm_statistics`` takes."""
    shifted = rows[1] / count
    return rows[0] + shifted, rows[2] / count - shifted**2


def check_moments(rows: Tensor, y: Tensor) -> None:
    pixels = y.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean, variance = moments(rows, len(pixels))
    exact, spread = pixels.mean(0), pixels.var(0, unbiased=False)
    assert torch.equal(rows[0], pixels[0])
    assert ((mean - exact).abs() <= 1e-5 * (spread.sqrt() + (rows[0] - exact).abs())).all()
    assert ((variance - spread).abs() <= 1e-5 * (spread + (rows[0] - exact) ** 2)).all()


@in_both
@SEVERAL
@given(SHAPES, CHANNELS, st.booleans(), st.integers(1, 5), st.integers(0, 99))
def test_forward_is_the_same_as_apart(
    isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int], outputs: int, relu: bool, count: int, seed: int
) -> None:
    """To the bit, whether the normalisation is applied on the way or before; and the sums are those of the result."""
    x, weight, bias, _ = tensors(*sized(shape, outputs, dtype), seed)
    x, bias = x.to(dtype), 10 * bias
    with instruction_set(isa), threads(count), poisoned_memory():
        side = side_of(x, relu)
        z = _native_norm.norm_apply_constants(LIBRARY, x, side)
        apart = pointwise_forward(LIBRARY, z, weight, bias)
        y, rows = pointwise_forward_joined(LIBRARY, x, weight, bias, side, True)
        alone, no_rows = pointwise_forward_joined(LIBRARY, x, weight, bias, side, False)
        summed, same_rows = pointwise_forward_joined(LIBRARY, z, weight, bias, None, True)
    assert all(torch.equal(apart, other) for other in (y, alone, summed))
    assert no_rows is None
    assert rows is not None
    assert same_rows is not None
    assert torch.equal(rows, same_rows)
    check_moments(rows, y)


@in_both
@SEVERAL
@given(st.data(), SHAPES, CHANNELS, st.booleans(), st.integers(1, 5))
def test_backward_is_the_same_as_apart(
    isa: str, dtype: torch.dtype, data: st.DataObject, shape: tuple[int, int, int, int], outputs: int, relu: bool, count: int
) -> None:
    want = data.draw(st.tuples(*[st.booleans()] * 3))
    shape, outputs = sized(shape, outputs, dtype)
    x, weight, _, grad = tensors(shape, outputs, data.draw(st.integers(0, 99)))
    x, grad = x.to(dtype), grad.to(dtype)
    with instruction_set(isa), threads(count), poisoned_memory():
        side = side_of(x, relu)
        z = _native_norm.norm_apply_constants(LIBRARY, x, side)
        apart = pointwise_backward(LIBRARY, z, weight, grad, want)
        joined, sums = pointwise_backward_joined(LIBRARY, x, weight, grad, want, side)
        for mine, theirs in zip(joined, apart, strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)
        grad_z = joined[0]
        if grad_z is None:
            return
        exact = _native_norm.norm_sums(LIBRARY, x, grad_z, side)
        reach = torch.stack([torch.ones(shape[1]), 1 + (x.float() - side.constants[0].view(1, -1, 1, 1)).abs().amax((0, 2, 3))])
    assert ((sums - exact).abs() <= 1e-6 * reach * (1 + grad_z.float().abs().sum((0, 2, 3)))).all()


@in_both
def test_large_mean_costs_the_variance_no_digits(isa: str, dtype: torch.dtype) -> None:
    """Sums are taken about values of the channels' own, in each part of the pixels."""
    x, weight, _, _ = tensors((16, 64, 24, 24), 96)
    bias = torch.full((96,), 3e4)
    weight = weight * 1e3  # so that bf16, whose steps are 128 there, has something to tell
    with instruction_set(isa), threads(3):
        y, rows = pointwise_forward_joined(LIBRARY, x.to(dtype), weight, bias, None, True)
    assert rows is not None
    pixels = y.permute(0, 2, 3, 1).flatten(0, 2).double()
    torch.testing.assert_close(moments(rows, len(pixels))[1], pixels.var(0, unbiased=False), rtol=1e-4, atol=0)


@in_both
def test_what_is_no_number_reaches_its_channels_statistics(isa: str, dtype: torch.dtype) -> None:
    x, weight, _, _ = tensors((2, 32, 5, 7), 64)
    x[0, 3, 4, 6] = float("nan")
    with instruction_set(isa):
        y, rows = pointwise_forward_joined(LIBRARY, x.to(dtype), weight, None, None, True)
    assert rows is not None
    assert y[0, :, 4, 6].isnan().all()
    assert rows[1:].isnan().all()


# --- layers -----------------------------------------------------------------------------------------------------------------


def watch(module: nn.Module) -> None:
    """So that each layer is called by itself."""
    for child in module.modules():
        if not isinstance(child, SeparableBlock | DilatedSeparableBlock | Bottleneck):
            child.register_forward_hook(lambda *_: None)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "separable": lambda: SeparableBlock(64, 96),
    "strided, with biases": lambda: SeparableBlock(64, 96, stride=2, bias=True),
    "dilated": lambda: DilatedSeparableBlock(64, 96, rate=1),
    "residual": lambda: Bottleneck(128, 128, nn.Conv2d(64, 64, 3, padding=1)),
    "residual, strided": lambda: Bottleneck(64, 128, nn.Conv2d(32, 32, 3, 2, 1)),
}


@in_both
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_compute_the_same_joined_and_apart(isa: str, dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    joined = BLOCKS[kind]().to(memory_format=torch.channels_last).train()
    apart = copy.deepcopy(joined)
    watch(apart)
    width = 128 if kind == "residual" else 64
    x = channels_last(torch.randn(16 if dtype == torch.float32 else 4, width, 18, 17))
    grad = None
    found = []
    for layer in (joined, apart):
        own = x.clone(memory_format=torch.channels_last).requires_grad_()
        with threads(2), by_kernels(isa, dtype):
            y = layer(own)
            grad = torch.randn_like(y) if grad is None else grad
            y.backward(grad)
        buffers = {key: b.float() for key, b in layer.named_buffers()}
        found.append({"y": y.detach(), "dx": own.grad, **{key: p.grad for key, p in layer.named_parameters()}, **buffers})
    assert found[0].keys() == found[1].keys()
    for key, mine in found[0].items():
        theirs = found[1][key]
        assert mine.dtype == theirs.dtype
        without = ("dw", "pw", "conv2") if dtype == torch.float32 else ("dw", "pw")
        if "bias" in key and key.startswith(without):  # normalisation makes that gradient zero
            continue
        error = float((mine.float() - theirs.float()).norm() / (theirs.float().norm() + 1e-6))
        assert error < (0.02 if dtype == torch.bfloat16 else 1e-4), f"{key} is off by {error:.3g} of its size"


@in_bf16
@pytest.mark.parametrize("name", ["separable_cnn", "dilated_separable", "dsrnet50_printed", "mobilenet_v1", "multiscale_concat"])
def test_networks_compute_as_exactly_joined_as_apart(isa: str, name: str) -> None:
    """Rounding to bf16 turns the gradients of a network that has learnt nothing by up to 70 degrees: joined no more than apart."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=10, input_size=32).to(memory_format=torch.channels_last).train()
    x = channels_last(torch.randn(32, 3, 32, 32))
    gradients, losses = {}, {}
    for way in ("joined", "apart", "float32"):
        own = copy.deepcopy(network)
        for module in own.modules():
            if isinstance(module, PointwiseConv2d) and way == "apart":
                module.register_forward_hook(lambda *_: None)
        with instruction_set(isa):
            with torch.autocast("cpu", torch.bfloat16, enabled=way != "float32"):
                loss = F.cross_entropy(own(x).float(), torch.arange(32) % 10)
            loss.backward()
        losses[way] = loss.item()
        gradients[way] = torch.cat([p.grad.flatten() for p in own.parameters()])
    joined, apart = (F.cosine_similarity(gradients[way], gradients["float32"], dim=0) for way in ("joined", "apart"))
    assert joined > apart - 0.03
    assert losses["joined"] == pytest.approx(losses["apart"], abs=0.02)


def kind_of(y: Tensor) -> str:
    return type(y.grad_fn).__name__.removesuffix("Backward")


def made(block: SeparableBlock, x: Tensor) -> Pending:
    return separable_before(x, block.dw, block.bn1, block.pw, block.bn2)


@in_both
def test_steps_aside_where_it_cannot_serve(isa: str, dtype: torch.dtype) -> None:
    x = channels_last(torch.randn(8, 64, 18, 18)).requires_grad_()
    block = SeparableBlock(64, 96).to(memory_format=torch.channels_last)

    def served() -> bool:
        with by_kernels(isa, dtype):
            pending = made(block, x)
        whole = kind_of(pending.x) == "_JoinedSeparable"
        assert not whole or pending.sums is not None
        return whole

    assert served()
    with use("reference"):
        assert not served()
    for watched in (block.dw, block.bn1, block.pw, block.bn2):
        handle = watched.register_forward_hook(lambda *_: None)
        assert not served()
        handle.remove()
    block.bn2.eval()
    assert not served()
    block.bn2.train()
    assert served()
    others = [pointwise(64, 96, stride=2), pointwise(64, 30), nn.Conv2d(64, 96, 1)]
    if dtype == torch.bfloat16:
        others.append(pointwise(64, 96).bfloat16())
    for other in others:
        block.pw = other
        assert not served()
    block.pw = pointwise(64, 96)
    assert served()
    block.bn1.running_mean = None
    assert served()


@in_bf16
def test_bf16_is_joined_by_what_multiplies_it(isa: str) -> None:
    x, block = channels_last(torch.randn(8, 64, 18, 18)), SeparableBlock(64, 96)
    for name, autocast, outputs, joined in [
        (isa, True, 96, True),
        (isa, True, 90, False),
        (isa, False, 96, False),
        (without_products, True, 96, False),
    ]:
        weight = torch.randn(outputs, 64, 1, 1)
        with instruction_set(name), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            taken = joins_pointwise(x.bfloat16(), block.dw.geometry, weight, None)
        assert taken == joined


@in_bf16
def test_sums_are_left_out_where_somebody_could_change_the_map(isa: str) -> None:
    """A hook before the normalisation may put another map in the place of the one that was summed."""
    conv, norm = pointwise(64, 96).to(memory_format=torch.channels_last), BatchNormReLU(96)
    x = channels_last(torch.randn(16, 64, 10, 10))
    with by_kernels(isa, torch.bfloat16):
        assert pointwise_before(x, conv, norm).sums is not None
        norm.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0] + 1,))
        pending = pointwise_before(x, conv, norm)
        assert pending.sums is None
        before = norm.running_mean.clone()
        settle(pending)
        expected = 0.9 * before + 0.1 * (2 * conv(x).float() + 1).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-2, atol=1e-2)


@in_both
def test_hooks_of_saved_tensors_may_change_the_layout(isa: str, dtype: torch.dtype) -> None:
    block = SeparableBlock(64, 96).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(8, 64, 18, 18)).requires_grad_()

    def gradients() -> tuple[Tensor, ...]:
        y = made(block, x).x
        return torch.autograd.grad(y.float().square().sum(), (x, *block.pw.parameters(), *block.dw.parameters()))

    with by_kernels(isa, dtype):
        expected, asked = gradients(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (len(asked), t.detach().contiguous()), lambda t: asked.append(t) or t[1]
        ):
            assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    joined = [t for _, t in asked if t.shape == block.pw.weight.shape]
    assert len(joined) == 1  # each is asked for once: checkpointing counts


@in_both
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(isa: str, dtype: torch.dtype, reentrant: bool) -> None:
    block = SeparableBlock(64, 96).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(8, 64, 18, 18)).requires_grad_()
    found = []
    for run in (block, lambda t: checkpoint(block, t, use_reentrant=reentrant)):
        block.zero_grad()
        x.grad = None
        with by_kernels(isa, dtype):  # of what is computed again, too
            run(x).float().square().sum().backward()
        found.append((x.grad, block.pw.weight.grad, block.bn1.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@in_both
def test_second_derivatives(isa: str, dtype: torch.dtype) -> None:
    """Of the whole they are refused; of a pointwise convolution with sums they are those without."""
    x = channels_last(torch.randn(16, 64, 10, 10)).requires_grad_()
    block = SeparableBlock(64, 96).to(memory_format=torch.channels_last)
    with by_kernels(isa, dtype):
        y = made(block, x).x
        (first,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.float().square().sum().backward()
        found = []
        for summed in (True, False):
            z, sums = summed_pointwise(x, block.pw.weight, None) if summed else (block.pw(x), None)
            assert (sums is not None) == (summed and dtype == torch.bfloat16)
            (first,) = torch.autograd.grad(z.float().square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.float().square().sum(), block.pw.weight)[0])
    torch.testing.assert_close(*found)


class Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@in_both
@pytest.mark.parametrize("summed", [True, False])
def test_whoever_has_the_result_may_give_no_gradient_back(isa: str, dtype: torch.dtype, summed: bool) -> None:
    x = channels_last(torch.randn(16, 64, 10, 10)).requires_grad_()
    block = SeparableBlock(64, 96).to(memory_format=torch.channels_last)
    with by_kernels(isa, dtype):
        y = summed_pointwise(x, block.pw.weight, None)[0] if summed else made(block, x).x
        Stop.apply(y).sum().backward()
    assert x.grad is None or not x.grad.any()
    assert block.pw.weight.grad is None or not block.pw.weight.grad.any()


@in_both
def test_frozen_parts_have_no_gradients(isa: str, dtype: torch.dtype) -> None:
    block = SeparableBlock(64, 96).to(memory_format=torch.channels_last)
    block.pw.requires_grad_(False)
    block.bn1.requires_grad_(False)
    x = channels_last(torch.randn(16, 64, 10, 10))
    with by_kernels(isa, dtype):
        block(x).float().sum().backward()
    assert block.pw.weight.grad is None
    assert block.bn1.weight.grad is None
    assert block.dw.weight.grad is not None


@in_both
def test_same_threads_give_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    def once() -> list[Tensor]:
        torch.manual_seed(0)
        block = SeparableBlock(64, 96).to(memory_format=torch.channels_last)
        x = channels_last(torch.randn(16, 64, 18, 18)).requires_grad_()
        block(x).float().square().sum().backward()
        return [x.grad, *(p.grad for p in block.parameters()), *block.buffers()]

    with by_kernels(isa, dtype), threads(3):
        runs = [once() for _ in range(5)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
