"""The depthwise convolution between two normalisations: against the same in float64, and where it must step aside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_tools import WHOLE_VECTORS, channels_last, every_isa, instruction_set, needs_library, same_sized, threads
from sepnet.kernels import Geometry, joined_depthwise, joins, use
from sepnet.models import create_model
from sepnet.nn.joined import depthwise_between
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.pending import Pending
from sepnet.nn.separable import SeparableBlock

pytestmark = needs_library
SIDES = st.sampled_from([(True, True), (True, False), (False, True)])
THOROUGH = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Geometry, tuple[int, int]]:
    kernel, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    padding, reach = draw(st.integers(0, 5)), dilation * (kernel - 1) + 1
    least = max(1, reach - 2 * padding)
    size = draw(st.integers(least, least + 12)), draw(st.integers(least, least + 12))
    stride = draw(st.integers(1, 3))
    return Geometry((stride, stride), ((kernel, kernel),), ((padding, padding),), ((dilation, dilation),), False), size


def layers(channels: int, geometry: Geometry, bias: bool) -> tuple[BatchNormReLU, nn.Conv2d, BatchNormReLU]:
    conv = nn.Conv2d(
        channels, channels, geometry.kernels[0], geometry.stride, geometry.paddings[0], geometry.dilations[0], channels, bias=bias
    )
    norms = BatchNormReLU(channels), BatchNormReLU(channels)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norms[0], conv, norms[1]


def in_double(x: Tensor, before: BatchNormReLU | None, conv: nn.Conv2d, after: BatchNormReLU | None) -> Tensor:
    """The definition, by PyTorch."""

    def of(norm: BatchNormReLU, y: Tensor) -> Tensor:
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, 0.1, norm.eps)
        return y.relu() if norm.relu else y

    z = x if before is None else of(before, x)
    y = F.conv2d(z, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y if after is None else of(after, y)


def close(name: str, got: Tensor, exact: Tensor) -> None:
    """In the mean square: single values may fall on the other side of a ReLU's edge."""
    error, size = (float(t.square().mean().sqrt()) for t in (got.double() - exact, exact))
    assert error <= 1e-3 * size + 1e-4, f"{name} is off by {error:.3g}, of {size:.3g}"


class Run(NamedTuple):
    """A pass forth and back, ours and in float64: what came out, by name."""

    ours: dict[str, Tensor]
    exact: dict[str, Tensor]


def run(x: Tensor, geometry: Geometry, sides: tuple[bool, bool], relus: tuple[bool, bool], bias: bool) -> Run:
    before, conv, after = modules = layers(x.shape[1], geometry, bias)
    for norm, relu in zip((before, after), relus, strict=True):
        norm.relu = relu
    exact = [copy.deepcopy(module).double() for module in modules]
    ends = [norm.normalisation() if there else None for norm, there in zip((before, after), sides, strict=True)]
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    y = joined_depthwise(x, ends[0], conv.weight, conv.bias, geometry, ends[1])
    x64 = x.detach().double().requires_grad_()
    y64 = in_double(x64, exact[0] if sides[0] else None, exact[1], exact[2] if sides[1] else None)
    grad = torch.randn_like(y)
    y.backward(grad)
    y64.backward(grad.double())
    return Run(_results(x, y, modules), _results(x64, y64, exact))


def _results(x: Tensor, y: Tensor, modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    found = {"y": y.detach(), "dx": x.grad}
    for name, module in zip(("before", "conv", "after"), modules, strict=True):
        found |= {f"{name}.{key}": p.grad for key, p in module.named_parameters() if p.grad is not None}
        found |= {f"{name}.{key}": b for key, b in module.named_buffers() if b.is_floating_point()}
    return found


@every_isa
@settings(THOROUGH, max_examples=120)
@given(
    problem=st.one_of(geometries(), same_sized()),
    images=st.tuples(st.integers(2, 4), st.one_of(st.integers(1, 37), WHOLE_VECTORS)),
    sides=SIDES,
    relus=st.tuples(st.booleans(), st.booleans()),
    bias=st.booleans(),
    count=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_float32_agrees_with_float64(
    isa: str,
    problem: tuple[Geometry, tuple[int, int]],
    images: tuple[int, int],
    sides: tuple[bool, bool],
    relus: tuple[bool, bool],
    bias: bool,
    count: int,
    seed: int,
) -> None:
    geometry, size = problem
    torch.manual_seed(seed)
    with instruction_set(isa), threads(count):
        ours, exact = run(channels_last(torch.randn(*images, *size)), geometry, sides, relus, bias)
    assert ours.keys() == exact.keys()
    if sides[1] and images[0] * ours["y"][0, 0].numel() < 8:  # of few values the deviation may be next to nothing
        return
    for name, got in ours.items():
        if name != "conv.bias" or not sides[1]:  # normalisation makes that gradient zero
            close(name, got, exact[name])


@every_isa
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("channels", [16, 21])
def test_bfloat16_agrees_with_float64(isa: str, stride: int, sides: tuple[bool, bool], channels: int) -> None:
    """Rounded to 8 bits on the way, gradients that are small differences of large numbers have the right direction."""
    geometry = Geometry((stride, stride), ((3, 3),), ((2, 2),), ((2, 2),), False)
    torch.manual_seed(0)
    with instruction_set(isa):
        ours, exact = run(channels_last(torch.randn(4, channels, 18, 17).bfloat16()), geometry, sides, (True, True), False)
    absent = [name for name, there in zip(("before", "after"), sides, strict=True) if not there]
    for name, got in ours.items():
        if name.split(".")[0] in absent:
            continue
        similar = F.cosine_similarity(got.double().flatten(), exact[name].flatten(), dim=0)
        assert similar > 0.995, f"{name}: {similar:.4f}"


@every_isa
@pytest.mark.parametrize(
    ("stride", "dilation", "shape"),
    [
        ((1, 1), (1, 1), (2, 524, 20, 18)),
        ((2, 2), (1, 1), (2, 524, 20, 18)),
        ((2, 2), (2, 2), (2, 2060, 9, 10)),
        ((2, 2), (2, 2), (1, 36, 150, 161)),
        ((2, 3), (2, 3), (2, 20, 21, 17)),
        ((2, 1), (2, 1), (2, 20, 21, 17)),
    ],
    ids=str,
)
def test_slabs_and_bands_agree_with_float64(
    isa: str, stride: tuple[int, int], dilation: tuple[int, int], shape: tuple[int, ...]
) -> None:
    """So many channels or rows that the planes are cut; the last block is not a whole vector; taps that do not see all pixels."""
    geometry = Geometry(stride, ((3, 3),), (dilation,), (dilation,), False)
    torch.manual_seed(0)
    with instruction_set(isa), threads(2):
        ours, exact = run(channels_last(torch.randn(shape)), geometry, (True, True), (True, True), False)
    for name, got in ours.items():
        close(name, got, exact[name])


@pytest.mark.parametrize("padding", [0, 1])
def test_large_mean_costs_the_variance_no_digits(padding: int) -> None:
    """The sums are taken about an output of the channel's own."""
    conv = nn.Conv2d(8, 8, 3, padding=padding, groups=8, bias=True)
    nn.init.constant_(conv.bias, 1e4)
    norm = BatchNormReLU(8)
    norm.momentum = 1.0
    geometry = Geometry((1, 1), ((3, 3),), ((padding, padding),), ((1, 1),), False)
    x = channels_last(torch.randn(4, 8, 20, 20))
    y = conv(x).double()
    joined_depthwise(x, None, conv.weight, conv.bias, geometry, norm.normalisation())
    torch.testing.assert_close(norm.running_var.double(), y.var((0, 2, 3)), rtol=1e-3, atol=0)


def block(channels: int = 20) -> SeparableBlock:
    torch.manual_seed(0)
    return SeparableBlock(channels, 24, stride=2).to(memory_format=torch.channels_last)


def watched(module: nn.Module, calls: list[str]) -> None:
    for name, child in module.named_modules():
        child.register_forward_hook(lambda *_, name=name: calls.append(name))


@pytest.mark.parametrize("name", ["separable_cnn", "dilated_separable", "dsrnet50_printed"])
def test_networks_compute_the_same_joined_and_apart(name: str) -> None:
    torch.manual_seed(0)
    joined = create_model(name, num_classes=10, input_size=32).to(memory_format=torch.channels_last).train()
    apart = copy.deepcopy(joined)
    calls: list[str] = []
    watched(apart, calls)
    x = channels_last(torch.randn(8, 3, 32, 32))
    results = []
    for network in (joined, apart):
        loss = F.cross_entropy(network(x), torch.arange(8))
        loss.backward()
        results.append(loss.detach())
    assert set(dict(apart.named_modules())) - set(calls) <= {
        "stages",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    }  # whoever watches a layer sees it called
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    for (key, mine), (_, theirs) in zip(joined.state_dict().items(), apart.state_dict().items(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-4, msg=key)
    mine, theirs = (torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (joined, apart))
    assert F.cosine_similarity(mine, theirs, dim=0) > 0.999


def is_joined(y: Tensor) -> bool:
    return "JoinedDepthwise" in str(y.grad_fn)


def test_steps_aside_where_it_cannot_serve() -> None:
    x = channels_last(torch.randn(2, 20, 24, 24)).requires_grad_()
    b = block()
    before = BatchNormReLU(20)

    def served() -> bool:
        return is_joined(depthwise_between(Pending(x, before), b.dw, b.bn1))

    assert served()
    with use("reference"):
        assert not served()
    before.eval()
    assert not served()
    before.train()
    handle = b.bn1.register_forward_hook(lambda *_: None)
    assert not served()
    handle.remove()
    assert served()
    before.momentum = None
    assert served()
    assert int(before.num_batches_tracked) == 5  # each of the calls above in training, and no more
    assert not is_joined(depthwise_between(Pending(x, BatchNormReLU(20, pool=True)), b.dw, b.bn1))
    assert not is_joined(depthwise_between(x, nn.Conv2d(20, 20, 3), b.bn1))
    geometry = Geometry((1, 1), ((3, 3),), ((1, 1),), ((1, 1),), False)
    one = channels_last(torch.randn(1, 20, 1, 1))
    assert not joins(one, None, b.dw.weight, None, geometry, b.bn1.normalisation())


class Doubled(BatchNormReLU):
    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, shortcut)


@pytest.mark.parametrize("other", [nn.Identity(), nn.GroupNorm(4, 20), Doubled(20)], ids=lambda m: type(m).__name__)
def test_a_layer_that_was_exchanged_is_called(other: nn.Module) -> None:
    """Surgery on a network: whatever stands where the normalisation was, or has taken over its forward, computes."""
    x = channels_last(torch.randn(2, 20, 24, 24))
    b = block()
    b.bn1 = other
    torch.testing.assert_close(b(x), b.bn2(b.pw(other(b.dw(x)))))
    b = block()
    b.bn1.forward = other.forward
    torch.testing.assert_close(b(x), b.bn2(b.pw(other(b.dw(x)))))


def test_a_block_that_was_subclassed_is_called() -> None:
    class Scaled(SeparableBlock):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    network = create_model("separable_cnn", num_classes=4, input_size=32).train()
    x = torch.randn(4, 3, 32, 32)
    before = network.forward_features(x)
    network.get_submodule("stages.8").__class__ = Scaled
    torch.testing.assert_close(network.forward_features(x), 3 * before, rtol=1e-4, atol=1e-4)


def test_autocast_leaves_float64_alone() -> None:
    x = channels_last(torch.randn(2, 20, 24, 24)).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_between(x, block().double().dw, BatchNormReLU(20).double()).dtype == torch.float64


def test_second_derivative_is_refused() -> None:
    x = channels_last(torch.randn(2, 20, 24, 24)).requires_grad_()
    y = depthwise_between(Pending(x, BatchNormReLU(20)), block().dw)
    assert is_joined(y)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_gradient_that_others_hold_is_left_alone() -> None:
    """dL/dx is computed in place of dL/dz, which nobody else has seen; the incoming gradient is somebody else's."""
    x = channels_last(torch.randn(2, 20, 24, 24)).requires_grad_()
    y = depthwise_between(Pending(x, BatchNormReLU(20)), block().dw, BatchNormReLU(20))
    grad = torch.randn_like(y)
    kept = grad.clone()
    y.backward(grad, retain_graph=True)
    first = x.grad.clone()
    y.backward(grad)
    assert torch.equal(grad, kept)
    torch.testing.assert_close(x.grad, 2 * first)


def test_same_threads_give_the_same_bits() -> None:
    def once() -> list[Tensor]:
        x = channels_last(torch.arange(2 * 20 * 24 * 24).float().view(2, 20, 24, 24).sin()).requires_grad_()
        b = block().train()
        b(x).square().sum().backward()
        return [x.grad, *(p.grad for p in b.parameters()), *b.buffers()]

    with threads(3):
        runs = [once() for _ in range(5)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
