"""What the tests of the kernels share: float64 references, how far from them rounding may lead, and strategies for hypothesis.

A sum of n products in float32, in any order and with fused multiply-add or without, is off by at most n * u / (1 - n * u) times the
sum of the products' magnitudes, u = 2**-24 (Higham 2002, Accuracy and Stability of Numerical Algorithms, Eq. 3.5). That sum of
magnitudes is the same convolution of the absolute values, so every element has a limit of its own, without a free constant.
Storing as bfloat16 adds half a unit of its last place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sepnet.kernels import _choice_depthwise, _library, _lookup, _native, isa_names, why_not_native
from sepnet.kernels._geometry import Geometry, Pair

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # half a unit of the last place, relative
SMALLEST = 2.0**-126  # below it processors may take a number for zero
TYPES = (torch.float32, torch.bfloat16)

WHY_NOT = why_not_native()
LIBRARY: Any = None if WHY_NOT is not None else _library._load()
needs_library = pytest.mark.skipif(LIBRARY is None, reason=str(WHY_NOT))


def _runs_here(name: str) -> bool:
    """Whether the processor has the instruction set; the one in use stays."""
    before = LIBRARY.isa
    try:
        return bool(LIBRARY.handle.sepnet_select_isa(name.encode()) == 0)
    finally:
        LIBRARY.select_isa(before)


ISAS = [name for name in isa_names if LIBRARY is not None and _runs_here(name)]
# AMX has kernels of its own for products of bf16 (csrc/dispatch.c), which have tests of their own; the others are those of
# avx512_bf16_floats
every_isa = pytest.mark.parametrize("isa", [name for name in ISAS if not name.endswith("_amx")])


def multiplies_halves(isa: str) -> bool:
    """Whether it has instructions for products of bfloat16, which depthwise convolutions may still do without."""
    return isa.startswith("avx512_bf16")


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = LIBRARY.isa
    LIBRARY.select_isa(name)
    try:
        yield
    finally:
        LIBRARY.select_isa(before)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """The kernels work in so many threads, however little there is to do."""
    with mock.patch.object(_native, "threads_for", return_value=count):
        _lookup.forget()  # the threads are a part of what the library is told
        try:
            yield
        finally:
            _lookup.forget()


@contextlib.contextmanager
def chosen(*, forward: bool, backward: bool) -> Iterator[None]:
    """In which directions PyTorch's convolution serves ``depthwise_conv2d``, whatever is known to be faster."""
    by_torch = _choice_depthwise.ByTorch(forward, backward)
    with mock.patch.object(_choice_depthwise, "by_torch", return_value=by_torch):
        _lookup.forget()
        try:
            yield
        finally:
            _lookup.forget()


def always_native() -> contextlib.AbstractContextManager[None]:
    """``depthwise_conv2d`` takes the kernels even where PyTorch's operations are known to be faster."""
    return chosen(forward=False, backward=False)


@contextlib.contextmanager
def through_python() -> Iterator[None]:
    """Depthwise convolutions are called by an ``autograd.Function``, as where PyTorch's dispatcher cannot be given the kernels."""
    with mock.patch.object(_library, "dispatched", None):
        yield


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors are filled with NaN, and bytes with ones: whoever reads memory that it has not written is found out."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    _native._kept.workspace = None
    try:
        with mock.patch.object(_native, "_MOST_KEPT", 0):  # the workspace too is new at each call
            yield
    finally:
        torch.use_deterministic_algorithms(before)


# --- the reference ---------------------------------------------------------------------------------------------------------


class Results(NamedTuple):
    """Output, and the gradients of input, weights (as they were given) and bias."""

    y: Tensor
    grad_x: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


def split_weights(weight: Tensor, channels: int, g: Geometry) -> list[Tensor]:
    """A (C, kh, kw) filter bank for each branch."""
    if g.interleaved:
        return list(weight.reshape(channels, len(g.kernels), *g.kernels[0]).unbind(1))
    sizes = [channels * h * w for h, w in g.kernels]
    return [part.view(channels, *kernel) for part, kernel in zip(weight.reshape(-1).split(sizes), g.kernels, strict=True)]


def depthwise_by_definition(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """The convolution as a sum over the taps, with none of PyTorch's convolutions in it."""
    height, width = g.output_size(*x.shape[2:])
    outputs = []
    for bank, (pad_h, pad_w), (dil_h, dil_w) in zip(split_weights(weight, x.shape[1], g), g.paddings, g.dilations, strict=True):
        padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
        rows, cols = (height - 1) * g.stride[0] + 1, (width - 1) * g.stride[1] + 1
        y = x.new_zeros(*x.shape[:2], height, width)
        for r in range(bank.shape[1]):
            for c in range(bank.shape[2]):
                window = padded[:, :, r * dil_h : r * dil_h + rows : g.stride[0], c * dil_w : c * dil_w + cols : g.stride[1]]
                y = y + window * bank[:, r, c, None, None]
        outputs.append(y)
    y = torch.stack(outputs, 2).flatten(1, 2) if g.interleaved else torch.cat(outputs, 1)
    return y if bias is None else y + bias[:, None, None]


def reference(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, g: Geometry) -> Results:
    """In float64."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    y = depthwise_by_definition(leaves[0], leaves[1], leaves[2], g)
    return Results(y.detach(), *torch.autograd.grad(y, leaves, grad.double()))


class Limits(NamedTuple):
    """What the results must be, and how far each element may be from it if float32 sums are all that is inexact; 0 for integers."""

    exact: Results
    slack: Results

    def check(self, name: str, got: Tensor, *, stored_as: torch.dtype | None = None) -> None:
        """``got`` is near enough, and, where it was rounded to ``stored_as`` on its way, near enough for that."""
        exact, slack = getattr(self.exact, name), getattr(self.slack, name)
        assert got.shape == exact.shape, name
        rounding = ROUNDING[stored_as or got.dtype]
        limit = slack + rounding * (exact.abs() + slack) + SMALLEST
        error = (got.double() - (exact if slack.any() else exact.to(stored_as or got.dtype).double())).abs()
        wrong = ~(error <= (limit if slack.any() else 0))
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are off, the worst by {float((error / limit).max()):.3g} "
            f"times what rounding allows, e.g. at {wrong.nonzero()[0].tolist()}"
        )


def limits(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, g: Geometry) -> Limits:
    exact = reference(x, weight, bias, grad, g)
    if not any(t.frac().any() for t in (x, weight, bias, grad)):  # small integers: no sum of them is rounded
        return Limits(exact, Results(*(torch.zeros_like(t) for t in exact)))
    magnitudes = reference(x.abs(), weight.abs(), bias.abs(), grad.abs(), g)
    taps = sum(h * w for h, w in g.kernels)
    pixels = grad.numel() // max(1, grad.shape[1])
    terms = Results(*(torch.tensor(float(n)) for n in (taps + 1, taps, pixels, pixels)))
    u = ROUNDING[torch.float32]
    slack = [n * u / (1 - n * u) * size for n, size in zip(terms, magnitudes, strict=True)]
    return Limits(exact, Results(*slack))


# --- what is tried ---------------------------------------------------------------------------------------------------------

# below, at and above the lengths of the vectors (4, 8, 16 floats), and several of them
CHANNELS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 33])


class Problem(NamedTuple):
    """A convolution, the size of its input, and a seed for the numbers."""

    geometry: Geometry
    batch: int
    channels: int
    size: Pair
    seed: int
    integers: bool

    def output_shape(self) -> tuple[int, int, int, int]:
        g = self.geometry
        return (self.batch, self.channels * len(g.kernels), *g.output_size(*self.size))

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x and dL/dy of ``dtype`` and channels-last, weight and bias in float32 but exact in ``dtype`` too.

        Small ``integers`` make every sum exact in float32: whatever is dropped or taken twice shows, and nothing else.
        """
        generator = torch.Generator().manual_seed(self.seed)
        weights = self.channels * sum(h * w for h, w in self.geometry.kernels)
        shapes = (self.batch, self.channels, *self.size), (weights,), (self.output_shape()[1],), self.output_shape()

        def numbers(shape: Sequence[int]) -> Tensor:
            values = torch.randn(*shape, generator=generator)
            return values.mul(2).round().clamp(-4, 4) if self.integers else values

        x, weight, bias, grad = (numbers(shape).to(dtype) for shape in shapes)
        if not self.geometry.interleaved and len(self.geometry.kernels) > 1:
            weight = weight.float()
        else:
            weight = weight.float().view(-1, 1, *self.geometry.kernels[0])
        return channels_last(x), weight, bias.float(), channels_last(grad)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _axis(draw: st.DrawFn, stride: int, branches: int, alike: bool) -> tuple[int, list[tuple[int, int, int]]]:
    """Size of the map along an axis, and (kernel, padding, dilation) of each branch, all with outputs of the same size."""
    kernels = st.integers(1, 7)
    dilations = st.one_of(st.integers(1, 3), st.integers(1, 9))
    kernel, dilation, padding = draw(kernels), draw(dilations), draw(st.one_of(st.integers(0, 4), st.integers(0, 15)))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    size = least + draw(st.one_of(st.integers(0, 6), st.integers(0, 30)))

    def output(k: int, p: int, d: int) -> int:
        return (size + 2 * p - d * (k - 1) - 1) // stride + 1

    found = [(kernel, padding, dilation)]
    while len(found) < branches:
        k, d = draw(kernels), draw(dilations)
        fitting = [p for p in range(40) if output(k, p, d) == output(*found[0])]
        found.append((k, draw(st.sampled_from(fitting)), d) if fitting and not alike else found[0])
    return size, found


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Strides 1 to 3, kernels 1 to 7, any dilation and padding, one to four branches side by side or interleaved."""
    branches = draw(st.sampled_from([1, 1, 1, 2, 2, 3, 4]))
    interleaved = branches > 1 and draw(st.booleans())
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, rows = _axis(draw, stride[0], branches, interleaved)
    width, cols = _axis(draw, stride[1], branches, interleaved)
    kernels, paddings, dilations = (tuple((r[i], c[i]) for r, c in zip(rows, cols, strict=True)) for i in range(3))
    geometry = Geometry(stride, kernels, paddings, dilations, interleaved)
    batch = draw(st.sampled_from([1, 1, 1, 2, 3, 6, 0]))
    return Problem(geometry, batch, draw(CHANNELS), (height, width), draw(st.integers(0, 99)), draw(st.booleans()))


WHOLE_VECTORS = st.sampled_from([8, 16, 24, 32, 48, 64, 264, 272])
"""Numbers of channels: 264 and 272 are pixels more than 1 KB apart, one of them of whole cache lines."""

_USUAL = [  # stride, dilation, padding
    ((1, 1), (1, 1), (1, 1)),
    ((2, 2), (1, 1), (1, 1)),
    ((2, 2), (2, 2), (2, 2)),
    ((1, 1), (2, 2), (2, 2)),
    ((1, 1), (5, 3), (5, 3)),
    ((1, 1), (1, 5), (1, 5)),
    ((2, 2), (2, 2), (1, 1)),  # the first pixel is not seen
    ((3, 3), (3, 3), (2, 2)),
    ((1, 2), (3, 2), (3, 1)),
    ((2, 2), (3, 3), (3, 3)),
    ((2, 2), (5, 1), (5, 1)),  # with an odd dilation the pixel before a strip's first one belongs to some
    ((2, 2), (3, 7), (3, 7)),
]
_KERNELS = [(3,), (3,), (3,), (5,), (3, 5), (5, 3, 3)]  # of stride 1


@st.composite
def same_sized(draw: st.DrawFn, branches: bool = False) -> tuple[Geometry, tuple[int, int]]:
    """Filters whose padding keeps the map's size, or divides it by the stride, as networks have them, and a map's size."""
    stride, dilation, padding = draw(st.sampled_from(_USUAL))
    kernels = draw(st.sampled_from([k for k in _KERNELS if branches or len(k) == 1])) if stride == (1, 1) else (3,)
    paddings = tuple((p * (k // 2), q * (k // 2)) for k in kernels for p, q in [padding])
    least = [max(1, 2 * (d - p) + 1) for d, p in zip(dilation, padding, strict=True)]
    height, width = draw(st.integers(least[0], 13)), draw(st.integers(least[1], 27))
    sides = tuple((k, k) for k in kernels)
    return Geometry(stride, sides, paddings, (dilation,) * len(kernels), False), (height, width)


@st.composite
def same_sized_problems(draw: st.DrawFn) -> Problem:
    """Some instruction sets need no planes for them."""
    geometry, size = draw(same_sized(branches=True))
    batch = draw(st.sampled_from([1, 2, 3, 5, 0]))
    return Problem(geometry, batch, draw(WHOLE_VECTORS), size, draw(st.integers(0, 99)), draw(st.booleans()))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": channels_last,
    "nchw": lambda t: t.contiguous(),
    "every other channel": lambda t: channels_last(torch.stack([t, t + 1], 2).flatten(1, 2))[:, ::2],
    "inside of a larger map": lambda t: channels_last(F.pad(t, (1, 2, 2, 1), value=7.0))[:, :, 2:-1, 1:-2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "from the second image on": lambda t: channels_last(torch.cat([t[:1] + 1, t]))[1 if len(t) else 0 :],
}
"""The same values, otherwise in memory."""
