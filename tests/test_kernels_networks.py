"""Every registered network with the kernels and without: the same training, layer by layer and as a whole; and no memory lost."""

from __future__ import annotations

import copy
import resource
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_tools import channels_last, needs_library
from sepnet.kernels import use
from sepnet.measure import count
from sepnet.models import model_card
from sepnet.nn import BatchNormReLU, DepthwiseConv2d, MultiScaleUnit
from sepnet.nn.conv import PointwiseConv2d
from test_models import LARGE, LARGER, NAMES, fresh, size_of

pytestmark = needs_library

KINDS = (DepthwiseConv2d, BatchNormReLU, PointwiseConv2d, MultiScaleUnit)
CLASSES = 4


def uses_kernels(name: str) -> bool:
    with torch.device("meta"):
        network = fresh(name, num_classes=CLASSES)
    return any(isinstance(module, KINDS) for module in network.modules())


NETWORKS = [name for name in NAMES if name not in LARGER and uses_kernels(name)]
DEEP = {name for name in NETWORKS if model_card(name).native_size[1] > LARGE}
"""Made for images of 224 pixels: on those here their last maps are one pixel, and four values are a poor statistic."""


def test_most_networks_use_the_kernels() -> None:
    assert {"multiscale_concat", "multiscale_add", "dilated_separable", "separable_cnn", "dsrnet50_printed"} <= set(NETWORKS)


class Step(NamedTuple):
    loss: float
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def build(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and four images of four classes."""
    network = fresh(name, num_classes=CLASSES).to(memory_format=torch.channels_last)
    x = torch.randn(CLASSES, model_card(name).native_size[0], size_of(name), size_of(name))
    return network, channels_last(x), torch.arange(CLASSES)


def train_step(network: nn.Module, x: Tensor, y: Tensor, mode: Any, *, bf16: bool = False) -> Step:
    """Of a copy, so that every mode begins with the same weights, and drops out the same."""
    network = copy.deepcopy(network)
    torch.manual_seed(0)
    with use(mode), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = network(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = torch.stack([F.cross_entropy(output.float(), y) for output in outputs]).sum()
        loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(network.parameters()))
    return Step(float(loss.detach()), gradients, dict(network.named_buffers()))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of all together, relative to ``other``'s size."""
    assert one.keys() == other.keys()
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return float((apart / sum(float(t.double().square().sum()) for t in other.values())) ** 0.5)


class Seen(NamedTuple):
    """A layer of a network, and what it was given, forward and backward."""

    module: nn.Module
    x: Tensor
    grad: Tensor

    def kind(self) -> tuple[Any, ...]:
        """Layers of one kind compute the same."""
        return type(self.module).__name__, self.module.extra_repr(), tuple(self.x.shape), tuple(self.grad.shape)

    def run(self, dtype: torch.dtype, mode: Any) -> dict[str, Tensor]:
        module = copy.deepcopy(self.module).to(dtype)
        x = self.x.detach().to(dtype).requires_grad_()
        with use(mode):
            y = module(x)
            y.backward(self.grad.to(dtype))
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        return {"y": y.detach(), "x": x.grad, **gradients}


def layers_of(network: nn.Module, x: Tensor, y: Tensor) -> list[Seen]:
    """The layers that the kernels compute, one of each kind, with what a training step gives them."""
    given: dict[nn.Module, list[Tensor]] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given[module] = [inputs[0].detach()]
        output.register_hook(lambda grad: given[module].append(grad.detach()))

    handles = [m.register_forward_hook(watch) for m in network.modules() if isinstance(m, KINDS)]
    with use("reference"):
        outputs = network(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.stack([F.cross_entropy(output, y) for output in outputs]).sum().backward()
    for handle in handles:
        handle.remove()
    seen = [Seen(module, *tensors) for module, tensors in given.items()]
    return list({layer.kind(): layer for layer in seen}.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_every_network(name: str) -> None:
    """With the same input and gradient the kernels are as near to float64 as PyTorch's float32 is."""
    for layer in layers_of(*build(name)):
        exact = layer.run(torch.float64, "reference")
        kernels, pytorch = (layer.run(torch.float32, mode) for mode in ("native", "reference"))
        for what in exact:
            apart, allowed = (distance({what: run[what]}, {what: exact[what]}) for run in (kernels, pytorch))
            assert apart <= 4 * allowed + 1e-6, (layer.kind(), what, apart, allowed)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_of_every_network(name: str) -> None:
    """Networks of many layers make much of a rounding error: a pixel more or less passes a ReLU. So the limits are wide here, and
    narrow in the test of the layers.
    """
    network, x, y = build(name)
    kernels, pytorch = (train_step(network, x, y, mode) for mode in ("native", "reference"))
    assert kernels.loss == pytest.approx(pytorch.loss, rel=0.01)
    assert distance(kernels.gradients, pytorch.gradients) < 0.3
    assert distance(kernels.buffers, pytorch.buffers) < 0.01
    half = train_step(network, x, y, "native", bf16=True)
    assert half.loss == pytest.approx(pytorch.loss, rel=0.4 if name in DEEP else 0.05)


@pytest.mark.parametrize("name", ["multiscale_concat", "multiscale_add", "separable_cnn"])
def test_bfloat16_is_as_near_as_pytorchs(name: str) -> None:
    network, x, y = build(name)
    exact = train_step(network, x, y, "reference")
    kernels, pytorch = (train_step(network, x, y, mode, bf16=True) for mode in ("native", "reference"))
    assert kernels.loss == pytest.approx(exact.loss, rel=0.02)
    assert distance(kernels.gradients, exact.gradients) < 1.5 * distance(pytorch.gradients, exact.gradients) + 0.01


@pytest.mark.parametrize("name", ["multiscale_concat", "multiscale_add", "dilated_separable"])
def test_counts_are_of_the_network_not_of_the_path(name: str) -> None:
    network, size = fresh(name), model_card(name).native_size
    with use("native"):
        native = count(network, size)
    with use("reference"):
        assert count(network, size) == native


def resident_mb() -> float:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - a file of the kernel's
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.parametrize("name", ["multiscale_concat", "multiscale_add", "separable_cnn", "dilated_separable"])
def test_an_image_alone_scores_as_it_does_in_a_batch(name: str) -> None:
    """Alone it goes through PyTorch's operations, in a batch through the kernels."""
    network = fresh(name, num_classes=CLASSES).to(memory_format=torch.channels_last).eval()
    x = channels_last(torch.randn(64, model_card(name).native_size[0], size_of(name), size_of(name)))
    with torch.inference_mode():
        torch.testing.assert_close(network(x[:1]), network(x)[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(resource, "getpagesize"), reason="no resource module here")
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_two_hundred_steps_leak_no_memory(bf16: bool) -> None:
    network = fresh("multiscale_concat", num_classes=CLASSES, units=(8, 8), input_size=16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    x, y = channels_last(torch.randn(32, 3, 16, 16)), torch.arange(32) % CLASSES

    def steps(number: int) -> float:
        for _ in range(number):
            with use("native"), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(network(x).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return resident_mb()

    after_some = steps(50)
    assert steps(150) - after_some < 4
