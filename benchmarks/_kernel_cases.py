"""One depthwise convolution, forward or backward, computed by each contender; and a check that all of them compute the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from _shapes import Shape
from sepnet.kernels import _native, depthwise_branches, depthwise_conv2d, library

__all__ = ["CHANNELS_LAST", "CONTROL", "DTYPES", "KERNEL", "NCHW", "OURS", "TOLERANCE", "Case", "Copy"]

OURS, KERNEL, NCHW, CHANNELS_LAST = "sepnet", "kernel", "torch_nchw", "torch_channels_last"
CONTROL = "torch_channels_last_again"  # the same function on the same values: what differs is chance
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-3}  # of the largest value: a wrong tap or border is far above it, rounding far below

Call = Callable[[int], object]


class _Operands(NamedTuple):
    """Input, one (C, 1, kh, kw) filter bank a branch, bias."""

    x: Tensor
    weights: list[Tensor]
    bias: Tensor | None

    def leaves(self, shape: Shape) -> _Operands:
        """The same values, requiring gradients as training does."""
        x = self.x.detach().requires_grad_(shape.wants_x)
        return _Operands(
            x,
            [w.detach().requires_grad_() for w in self.weights],
            None if self.bias is None else self.bias.detach().requires_grad_(),
        )

    def wanted(self) -> list[Tensor]:
        return [t for t in (self.x, *self.weights, self.bias) if t is not None and t.requires_grad]


Function = Callable[[_Operands, Shape], Tensor]


def _ours(operands: _Operands, shape: Shape) -> Tensor:
    """By the function that the networks call."""
    x, weights, bias = operands
    g = shape.geometry
    if len(g.kernels) > 1:
        return depthwise_branches(
            x, weights, stride=g.stride, paddings=[p for p, _ in g.paddings], dilations=[d for d, _ in g.dilations]
        )
    return depthwise_conv2d(x, weights[0], bias, stride=g.stride, padding=g.paddings[0], dilation=g.dilations[0])


def _torch(operands: _Operands, shape: Shape) -> Tensor:
    """``F.conv2d`` with weights in the type of the map, as autocast makes them; of several branches one each, and ``torch.cat``."""
    x, weights, bias = operands
    g = shape.geometry
    branches = zip((w.to(x.dtype) for w in weights), g.paddings, g.dilations, strict=True)
    bias = None if bias is None else bias.to(x.dtype)
    outputs = [F.conv2d(x, w, bias, g.stride, padding, dilation, shape.channels) for w, padding, dilation in branches]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


class _Given(NamedTuple):
    """What a call is given: operands, and the gradient of the result in the layout of the map."""

    operands: _Operands
    grad: Tensor


class Case:
    """A convolution in one type, with operands for every contender; with ``control``, one of them a second time.

    They are those of training, the same for all contenders: weights are float32, of values that bf16 holds, whose conversion is
    part of a call. There are as many copies of the channels-last ones as contenders that take them, who pass them on from round to
    round: where in memory a map lies makes a tenth of a difference, which meets all of them.
    """

    def __init__(self, shape: Shape, dtype: str, *, control: bool = False) -> None:
        self.shape, self.dtype = shape, dtype
        kind = DTYPES[dtype]
        x = torch.randn(shape.batch, shape.channels, shape.height, shape.width).to(kind)
        weights = [torch.randn(shape.channels, 1, *k).div_(k[0]).to(kind).float() for k in shape.geometry.kernels]
        bias = torch.randn(shape.output[1]).to(kind).float() if shape.bias else None
        grad = torch.randn(shape.output).to(kind)
        self._lib = library()
        self._names = [OURS, CHANNELS_LAST, *([CONTROL] if control else []), *([KERNEL] if self._lib is not None else [])]
        self._default = _Given(_Operands(x, weights, bias), grad)
        self._dense = [_Given(_Operands(_dense(x), weights, bias), _dense(grad)) for _ in self._names]

    @property
    def copies(self) -> int:
        """After how many rounds everyone has had every map."""
        return len(self._dense)

    def calls(self, direction: str) -> dict[str, Call]:
        """The contenders, "forward" or "backward", as functions of the number of the round; the kernel alone where there is one."""
        made = {name: self._in_turns(direction, name, place) for place, name in enumerate(self._names)}
        return made | {NCHW: self._call(direction, NCHW, self._default)}

    def _in_turns(self, direction: str, name: str, place: int) -> Call:
        calls = [self._call(direction, name, given) for given in self._dense]
        return lambda number: calls[(number + place) % len(calls)](number)

    def _call(self, direction: str, name: str, given: _Given) -> Call:
        if name == KERNEL:
            return self._kernel(direction, given)
        compute, leaves, shape = (_ours if name == OURS else _torch), given.operands.leaves(self.shape), self.shape
        if direction == "forward":
            return lambda _: compute(leaves, shape)
        y, wanted = compute(leaves, shape), leaves.wanted()
        return lambda _: torch.autograd.grad(y, wanted, given.grad, retain_graph=True)

    def _kernel(self, direction: str, given: _Given) -> Call:
        lib, (x, weights, bias), geometry = self._lib, given.operands, self.shape.geometry
        assert lib is not None
        weight = torch.cat([w.reshape(-1) for w in weights])
        if direction == "forward":
            return lambda _: _native.depthwise_forward(lib, x, weight, bias, geometry)
        want = (self.shape.wants_x, True, self.shape.bias)
        return lambda _: _native.depthwise_backward(lib, x, weight, given.grad, geometry, want)

    def check(self) -> None:
        """Compare ours with PyTorch in float32.

        Raises:
            ArithmeticError: they differ by more than rounding.
        """
        ours = self._dense[0].operands
        pairs = zip(self._values(_ours, ours), self._values(_torch, ours._replace(x=ours.x.float())), strict=True)
        for number, (value, truth) in enumerate(pairs):
            error = float((value.float() - truth).abs().max() / truth.abs().max().clamp(min=1e-30))
            if not error <= TOLERANCE[self.dtype]:
                what = f"gradient {number}" if number else "the output"
                raise ArithmeticError(f"{self.shape.label()}, {self.dtype}: {what} is off by {error:.1e} of the largest value")

    def _values(self, compute: Function, operands: _Operands) -> list[Tensor]:
        leaves = operands.leaves(self.shape)
        y = compute(leaves, self.shape)
        return [y.detach(), *torch.autograd.grad(y, leaves.wanted(), self._dense[0].grad.to(y.dtype))]


def _dense(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.channels_last)


class Copy:
    """The speed at which this machine copies memory, sampled in the course of the run."""

    MEBIBYTES = 256  # several times any cache

    def __init__(self) -> None:
        self._from = torch.ones(self.MEBIBYTES << 18)
        self._to = torch.zeros_like(self._from)
        self.samples: list[float] = []

    def sample(self, times: int = 3) -> None:
        """Copy, and note GB/s: bytes read and bytes written."""
        for _ in range(times):
            start = time.perf_counter()
            self._to.copy_(self._from)
            self.samples.append(2e-9 * self._from.nbytes / (time.perf_counter() - start))
