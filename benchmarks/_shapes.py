"""Which depthwise convolutions are measured: those that the registered networks run, and a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from _describe import build
from sepnet.kernels import _depthwise
from sepnet.kernels._geometry import Geometry
from sepnet.models import list_models, model_card
from sepnet.nn import DepthwiseConv2d, conv, joined

__all__ = ["Shape", "network_shapes", "shapes_run", "sweep"]

S = TypeVar("S", bound=Hashable)

BATCH, LARGE_BATCH, LARGE = 128, 8, 128  # images of a side from LARGE pixels on come in batches of LARGE_BATCH
SMALL_SIZE = 32  # the networks for large images are used on CIFAR as well
# of one map of the sweep at most: with 2 bytes each, two maps are twice the largest cache of most processors
SWEEP_VALUES = 1 << 24


class Shape(NamedTuple):
    """A depthwise convolution: the size of its input, its geometry, whether it has a bias, and whether training wants the input's
    gradient.
    """

    batch: int
    channels: int
    height: int
    width: int
    geometry: Geometry
    bias: bool = False
    wants_x: bool = True

    @property
    def output(self) -> tuple[int, int, int, int]:
        """(B, C', H', W')."""
        return (self.batch, self.channels * len(self.geometry.kernels), *self.geometry.output_size(self.height, self.width))

    @property
    def weights(self) -> int:
        return self.channels * sum(h * w for h, w in self.geometry.kernels)

    def moved_bytes(self, direction: str, size: int) -> int:
        """What must move, each value of ``size`` bytes once: input and output; or input, the output's and the input's gradient.
        Weights are float32.
        """
        x = self.batch * self.channels * self.height * self.width
        batch, channels, height, width = self.output
        maps = x if direction == "forward" or not self.wants_x else 2 * x
        return size * (maps + batch * channels * height * width) + 4 * self.weights

    def label(self) -> str:
        """ "128 x 64 x 32x32, 5x5, stride 2, dilation 3"."""
        g = self.geometry
        kernels = " + ".join(f"{h}x{w}" for h, w in g.kernels)
        extras = [f"stride {g.stride[0]}"] if g.stride != (1, 1) else []
        extras += [f"dilation {g.dilations[0][0]}"] if g.dilations[0] != (1, 1) else []
        extras += ["bias"] if self.bias else []
        extras += [] if self.wants_x else ["weights only"]
        return ", ".join([f"{self.batch} x {self.channels} x {self.height}x{self.width}", kernels, *extras])


def network_shapes(names: Iterable[str] = ()) -> dict[Shape, list[str]]:
    """Every depthwise convolution that the networks run in training, with the networks that run it.

    At the native size, and for those made for large images at 32x32 as well. What they run is recorded in a real forward pass: a
    unit whose branches are computed in one pass counts as that.
    """
    return shapes_run(names, DepthwiseConv2d, _recorded)


def shapes_run(
    names: Iterable[str], kind: type[nn.Module], recorded: Callable[[nn.Module, Tensor, int], Iterable[S]]
) -> dict[S, list[str]]:
    """What ``recorded`` sees the networks that have a ``kind`` of layer run, with the networks that run it.

    Args:
        names: none for all networks.
        recorded: runs the network in training on the images that it is given; the number is the batch that is to be measured.
    """
    found: dict[S, list[str]] = {}
    for name in names or list_models():
        native = model_card(name).native_size[1]
        with torch.device("meta"):
            has_any = any(isinstance(m, kind) for m in build(name, size=native).modules())
        for size in dict.fromkeys((native, min(native, SMALL_SIZE))) if has_any else ():
            model = build(name, size=size).train()
            images = torch.zeros(2, model.in_channels, size, size).contiguous(memory_format=torch.channels_last)
            for shape in recorded(model, images, LARGE_BATCH if size >= LARGE else BATCH):
                users = found.setdefault(shape, [])
                if name not in users:
                    users.append(name)
    return found


def _recorded(model: nn.Module, images: Tensor, batch: int) -> list[Shape]:
    seen: list[Shape] = []
    run = _depthwise.depthwise_by_geometry

    def record(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Any:
        seen.append(Shape(batch, *x.shape[1:], geometry, bias is not None, x.requires_grad))
        return run(x, weight, bias, geometry)

    apart = mock.patch.object(joined, "joins", return_value=False)  # the convolution alone, which is what its peers have
    layers, branches = (mock.patch.object(module, "depthwise_by_geometry", record) for module in (conv, _depthwise))
    with apart, layers, branches:
        model(images)
    return seen


def sweep() -> Iterator[Shape]:
    """Channels, maps, kernels, strides and dilations, crossed; without filters that reach over more than twice the map.

    The batch is 128, or smaller for maps of more than ``SWEEP_VALUES``.
    """
    for size, channels, kernel, stride, dilation in product((8, 16, 32, 56), (64, 256), (3, 5, 7), (1, 2), (1, 2, 3, 5)):
        reach = dilation * (kernel - 1)
        if reach + 1 > 2 * size:
            continue
        batch = min(BATCH, 2 ** int(math.log2(SWEEP_VALUES / (channels * size * size))))
        pad = reach // 2
        yield Shape(
            batch,
            channels,
            size,
            size,
            Geometry((stride, stride), ((kernel, kernel),), ((pad, pad),), ((dilation, dilation),), False),
        )
