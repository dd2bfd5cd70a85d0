"""The kernels among PyTorch's own machinery: autocast, compilation, tracing, transforms, other devices; and wrong arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from kernel_tools import ROUNDING, always_native, channels_last, needs_library, through_python
from sepnet.kernels import batch_norm_relu, depthwise_branches, depthwise_conv2d, native_for, use
from sepnet.nn import BatchNormReLU, MultiScaleUnit, depthwise

pytestmark = needs_library


class Separable(nn.Module):
    """Everything that the kernels compute, in one module. (B, 6, H, W) -> (B, 16, H // 4, W // 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = depthwise(6, 3, bias=True)
        self.bn1 = BatchNormReLU(6)
        self.second = depthwise(6, 5, stride=2)
        self.third = MultiScaleUnit(6, 8, "add")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.bn1(self.first(x))))
        return y


class Smooth(nn.Module):
    """The depthwise operations, and nothing that a rounding could switch over. (B, 6, H, W) -> (B, 12, H // 2, W // 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = depthwise(6, 3, bias=True)
        self.second = depthwise(6, 5, stride=2)
        self.third = MultiScaleUnit(6, 12, "concat")
        self.third.bn = nn.Identity()  # it would end in a maximum and a ReLU

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(torch.tanh(self.first(x))))
        return y


@pytest.fixture
def network() -> Separable:
    return Separable()


@pytest.fixture
def images() -> Tensor:
    return channels_last(torch.randn(2, 6, 12, 12))


def step(run: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients of one step from the same weights and averages."""
    network.zero_grad()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    x = x.detach().requires_grad_()
    y = run(x)
    y.float().square().sum().backward()
    buffers = [b.clone() for b in network.buffers()]
    network.load_state_dict(state)
    return [y.detach(), x.grad, *(p.grad for p in network.parameters()), *buffers]


def assert_near(one: list[Tensor], other: list[Tensor], **tolerances: float) -> None:
    assert [t.dtype for t in one] == [t.dtype for t in other]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **tolerances)


def assert_near_in_bf16(one: list[Tensor], other: list[Tensor]) -> None:
    """Every element within a few roundings of its tensor's largest.

    A value of bf16 has 8 bits, so each map that is stored, forward or backward, is off by up to 2**-8 of itself. Two computations
    that store eight each, with errors that are independent, differ by up to 2 * sqrt(8) of these: six (in 120 draws 4.8 at most).
    """
    assert [t.dtype for t in one] == [t.dtype for t in other]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=6 * ROUNDING[torch.bfloat16] * b.abs().max().item())


def targets(graph_module: Any) -> str:
    return " ".join(str(node.target) for node in graph_module.graph.nodes)


# --- autocast, compilation -------------------------------------------------------------------------------------------------


def test_autocast_computes_in_bfloat16_and_returns_gradients_of_the_parameters_type(images: Tensor) -> None:
    for layer in (depthwise(6, bias=True), depthwise(6, 5, stride=2, dilation=2)):
        x = images.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert x.grad.dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            assert layer(x).dtype == torch.float32


def test_autocast_leaves_float64_alone(images: Tensor) -> None:
    layer = depthwise(6).double()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(images.double())
        expected = F.conv2d(images.double(), layer.weight, None, 1, 1, 1, 6)
    assert y.dtype == expected.dtype == torch.float64


@pytest.mark.parametrize("mode", ["native", "reference"])
def test_compiled_training_with_the_library_and_without(mode: Any, images: Tensor) -> None:
    weight = torch.randn(12, 1, 3, 3, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, stride=2, padding=1)

    torch._dynamo.reset()
    with use(mode):
        torch.compile(run, backend="aot_eager", fullgraph=True)(images).square().sum().backward()
    compiled, weight.grad = weight.grad, None
    run(images).square().sum().backward()
    torch.testing.assert_close(compiled, weight.grad, rtol=1e-4, atol=1e-4)


def in_bf16(network: nn.Module, enabled: bool = True) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return network(x)

    return run


def as_one_graph(run: Callable[[Tensor], Tensor], dynamic: bool = False) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_as_one_graph(network: Separable, images: Tensor, autocast: bool, dynamic: bool) -> None:
    """In bf16 gradients are left to the next test: here rounding now and then decides a maximum or a ReLU, and a gradient by it."""
    run = in_bf16(network, autocast)
    compiled = as_one_graph(run, dynamic)
    state = 1 + 1 + len(list(network.parameters()))  # before it: output and gradients
    for x in (images, channels_last(torch.randn(3, 6, 16, 8))):
        ours, theirs = step(compiled, network, x), step(run, network, x)
        if not autocast:
            assert_near(ours, theirs, rtol=1e-4, atol=1e-4)
        else:
            assert_near_in_bf16([ours[0], *ours[state:]], [theirs[0], *theirs[state:]])
            assert [t.dtype for t in ours] == [t.dtype for t in theirs]
            assert all(t.isfinite().all() for t in ours)


def test_compiled_gradients_in_bf16(images: Tensor) -> None:
    network = Smooth()
    run = in_bf16(network)
    compiled = as_one_graph(run)
    for x in (images, channels_last(torch.randn(3, 6, 16, 8))):
        assert_near_in_bf16(step(compiled, network, x), step(run, network, x))


OPERATOR_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool, list[Any]]] = {
    "3x3": ((2, 5, 6, 7), (5, 1, 3, 3), True, [[1, 1], [3, 3], [1, 1], [1, 1], False]),
    "stride 2, dilation 2": ((2, 5, 16, 16), (5, 1, 3, 3), False, [[2, 2], [3, 3], [2, 2], [2, 2], False]),
    "much padding": ((2, 5, 6, 7), (5, 1, 3, 3), False, [[1, 1], [3, 3], [5, 5], [1, 1], False]),
    "one channel": ((2, 1, 6, 7), (1, 1, 3, 3), False, [[1, 1], [3, 3], [1, 1], [1, 1], False]),
    "one pixel": ((2, 5, 1, 1), (5, 1, 3, 3), False, [[1, 1], [3, 3], [1, 1], [1, 1], False]),
    "no image": ((0, 5, 6, 6), (5, 1, 3, 3), False, [[1, 1], [3, 3], [1, 1], [1, 1], False]),
    "multiplier 2": ((2, 5, 6, 6), (10, 1, 3, 3), True, [[2, 1], [3] * 4, [1] * 4, [1] * 4, True]),
    "two scales": ((2, 5, 6, 6), (5 * 34,), False, [[1, 1], [3, 3, 5, 5], [1, 1, 2, 2], [1] * 4, False]),
    "a kernel too large for the library": ((2, 5, 9, 9), (5, 1, 9, 9), True, [[1, 1], [9, 9], [4, 4], [1, 1], False]),
}


@pytest.mark.parametrize("mode", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "weight", "bias", "geometry"), OPERATOR_CASES.values(), ids=OPERATOR_CASES)
def test_operator_is_what_it_says(
    shape: tuple[int, ...], weight: tuple[int, ...], bias: bool, geometry: list[Any], dtype: torch.dtype, mode: Any
) -> None:
    """Its schema, shapes and strides without values, autograd, and all of it under tracing."""
    x = torch.randn(shape, dtype=dtype)
    outputs = shape[1] * len(geometry[1]) // 2
    parameters = torch.randn(weight), torch.randn(outputs) if bias else None
    with use(mode):
        for layout in (x, channels_last(x)) if mode == "native" else (x,):
            arguments = [t if t is None else t.detach().requires_grad_() for t in (layout, *parameters)]
            torch.library.opcheck(torch.ops.sepnet.depthwise_conv2d.default, (*arguments, *geometry))


# --- tracing and transforms ------------------------------------------------------------------------------------------------


def test_exported_graphs_do_without_sepnet(network: Separable, images: Tensor) -> None:
    network.eval()
    program = torch.export.export(network, (images,))
    assert "sepnet" not in targets(program.graph_module)
    torch.testing.assert_close(program.module()(images), network(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, (images,))
        assert "sepnet::" not in str(traced.inlined_graph)
    assert "convolution" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(2 * images), network(2 * images))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_what_happens(network: Separable, images: Tensor, mode: str) -> None:
    parameters = dict(network.named_parameters())
    buffers = dict(network.named_buffers())

    def run(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(network, {**parameters, **buffers}, (x,))

    network.eval()
    buffers = {name: value for name, value in buffers.items() if mode == "real"} or buffers
    graph = make_fx(run, tracing_mode=mode, _allow_non_fake_inputs=True)(images, parameters)
    other = channels_last(torch.randn_like(images))
    torch.testing.assert_close(graph(other, parameters), run(other, parameters))


def test_make_fx_records_training(images: Tensor) -> None:
    weight, bias = torch.randn(6, requires_grad=True), torch.randn(6)

    def run(x: Tensor) -> Tensor:
        return batch_norm_relu(x, weight, bias, None, None, training=True, pool=True)

    graph = make_fx(run)(images)
    torch.testing.assert_close(graph(images + images**2), run(images + images**2))


def test_fake_tensors_have_the_shape_strides_and_type(network: Separable, images: Tensor) -> None:
    layer = depthwise(6, 5, stride=2, bias=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for dtype in (torch.float32, torch.bfloat16):
            fake = layer.to(dtype)(mode.from_tensor(images.to(dtype)))
            real_shape = (2, 6, 6, 6)
            assert fake.shape == real_shape
            assert fake.dtype == dtype
            assert fake.is_contiguous(memory_format=torch.channels_last)
        assert network(mode.from_tensor(images)).shape == (2, 16, 3, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, in its forward mode
def test_vmap_and_functional_gradients(images: Tensor) -> None:
    weight = torch.randn(6, 1, 3, 3)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return depthwise_conv2d(x[None], weight, padding=1).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, images)
    for x, got in zip(images, each, strict=True):
        leaf = weight.clone().requires_grad_()
        loss(leaf, x).backward()
        torch.testing.assert_close(got, leaf.grad, rtol=1e-4, atol=1e-4)
    # the second derivative, which the kernels refuse, is there too
    hessian = torch.func.hessian(loss)(weight, images[0])
    assert hessian.shape == (*weight.shape, *weight.shape)
    assert hessian.any()


def test_meta_device_gives_shapes() -> None:
    with torch.device("meta"):
        network = Separable()
        y = network(torch.empty(2, 6, 12, 12))
    assert y.is_meta
    assert y.shape == (2, 16, 3, 3)
    assert not native_for(y)


def test_second_derivative_is_refused_in_words(images: Tensor) -> None:
    x, weight = images.detach().requires_grad_(), torch.randn(12, 1, 3, 3, requires_grad=True)
    operator_arguments = [[1, 1], [3] * 4, [1] * 4, [1] * 4, True]
    outputs = {
        "once_differentiable": lambda: depthwise_conv2d(x, weight, padding=1),
        "no autograd formula": lambda: torch.ops.sepnet.depthwise_conv2d(x, weight, None, *operator_arguments),
        "the kernels differentiate this once": lambda: batch_norm_relu(
            x, torch.ones(6, requires_grad=True), torch.zeros(6), None, None, training=True
        ),
    }
    for words, output in outputs.items():
        with through_python():
            y = output()
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=words):
            first.sum().backward()


def test_a_penalty_on_gradients_is_not_left_out(images: Tensor) -> None:
    """Where the incoming gradient depends on nothing, what is left out would be the whole of it."""
    x, gamma = images.detach().requires_grad_(), torch.rand(6, requires_grad=True)
    y = batch_norm_relu(x, gamma, torch.zeros(6), None, None, training=True)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="the kernels differentiate this once"):
        (y.mean() + first.square().mean()).backward()


def test_inference_mode_and_no_grad(network: Separable, images: Tensor) -> None:
    network.eval()
    with torch.inference_mode():
        y = network(images)
    with torch.no_grad():
        torch.testing.assert_close(network(images), y, rtol=0, atol=0)
    torch.testing.assert_close(network(images).detach(), y, rtol=1e-5, atol=1e-5)  # eval with gradients: PyTorch's normalisation


# --- extreme and wrong arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 50_000, "padding": 50_000},
        {"dilation": (1, 60_000), "padding": (1, 60_000)},
        {"stride": 2**40, "padding": 1},
        {"stride": (3, 10_000), "padding": 1},
    ],
    ids=str,
)
def test_extreme_geometry_takes_no_memory(options: dict[str, Any]) -> None:
    """A plane with its padding, or a table for each remainder of the stride, would be gigabytes."""
    x, weight = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(6, 1, 3, 3)
    with always_native():
        y = depthwise_conv2d(x, weight, **options)
        y.sum().backward()
    expected = x.detach().requires_grad_()
    with use("reference"):
        reference = depthwise_conv2d(expected, weight, **options)
        reference.sum().backward()
    torch.testing.assert_close(y, reference)
    torch.testing.assert_close(x.grad, expected.grad)


X = torch.zeros(2, 4, 8, 8)
W = torch.zeros(4, 1, 3, 3)
C4, C3 = torch.zeros(4), torch.zeros(3)
WRONG: dict[str, Callable[[], Tensor]] = {
    "no batch": lambda: depthwise_conv2d(X[0], W),
    "channels": lambda: depthwise_conv2d(X, W[:3]),
    "a full convolution": lambda: depthwise_conv2d(X, torch.zeros(4, 4, 3, 3)),
    "no filter": lambda: depthwise_conv2d(X, W[:0]),
    "empty filter": lambda: depthwise_conv2d(X, W[:, :, :0]),
    "empty map": lambda: depthwise_conv2d(X[:, :, :0], W, padding=1),
    "filter beyond the map": lambda: depthwise_conv2d(X[:, :, :2], W),
    "stride 0": lambda: depthwise_conv2d(X, W, stride=0),
    "stride 0, two filters": lambda: depthwise_conv2d(X, torch.cat([W, W]), stride=0),
    "dilation 0": lambda: depthwise_conv2d(X, torch.cat([W, W]), dilation=0),
    "padding -1": lambda: depthwise_conv2d(X, W, padding=-1),
    "padding in words": lambda: depthwise_conv2d(X, W, padding="same"),  # type: ignore[arg-type]
    "three paddings": lambda: depthwise_conv2d(X, W, padding=(1, 1, 1)),
    "half a stride": lambda: depthwise_conv2d(X, W, stride=1.5),  # type: ignore[arg-type]
    "bias": lambda: depthwise_conv2d(X, W, C3),
    "bias, two filters": lambda: depthwise_conv2d(X, torch.cat([W, W]), C4, padding=1),
    "weight elsewhere": lambda: depthwise_conv2d(X, W.to("meta"), padding=1),
    "two filters elsewhere": lambda: depthwise_conv2d(X, torch.cat([W, W]).to("meta"), padding=1),
    "bias elsewhere": lambda: depthwise_conv2d(X, W, C4.to("meta"), padding=1),
    "a branch elsewhere": lambda: depthwise_branches(X, [W.to("meta")], paddings=[1], dilations=[1]),
    "no branch": lambda: depthwise_branches(X, [], paddings=[], dilations=[]),
    "channels of a branch": lambda: depthwise_branches(X, [W, W[:3]], paddings=[1, 1], dilations=[1, 1]),
    "a padding too few": lambda: depthwise_branches(X, [W, W], paddings=[1], dilations=[1, 1]),
    "sizes of branches": lambda: depthwise_branches(X, [W, W], paddings=[1, 2], dilations=[1, 1]),
    "norm: weight": lambda: batch_norm_relu(X, C3, C4, None, None, training=True),
    "norm: bias": lambda: batch_norm_relu(X, C4, C3, None, None, training=True),
    "norm: averages": lambda: batch_norm_relu(X, C4, C4, C3, C4, training=True),
    "norm: variances": lambda: batch_norm_relu(X, C4, C4, C4, C3, training=True),
    "norm: weight elsewhere": lambda: batch_norm_relu(X, C4.to("meta"), C4, None, None, training=True),
    "norm: variances of another type": lambda: batch_norm_relu(X, C4, C4, C4, C4.double(), training=True),
}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_in_one_line(wrong: Callable[[], Tensor], autocast: bool) -> None:
    """ValueError for what sepnet looks at; RuntimeError or TypeError where PyTorch has the words. Never memory that is not ours."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises((ValueError, RuntimeError, TypeError)) as error:
        wrong()
    assert "\n" not in str(error.value)
