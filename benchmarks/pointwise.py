"""Pointwise convolutions against PyTorch's: every shape of the registered networks, forward and both gradients.

    python benchmarks/pointwise.py --output docs/results/performance
    python benchmarks/pointwise.py --networks separable_cnn dsrnet50 --threads 1

sepnet is the function that the networks call, with its choice of path (by the kernels, or as one of PyTorch's operations, which the
table names). Its peers are F.conv2d in PyTorch's default layout (NCHW) and in channels_last, and F.linear on the channels-last map.
In bf16 all run as in training, under autocast: the map and its gradient are bf16, the weights float32. They take turns on the same
values, and the results are compared first; F.conv2d in channels_last runs a second time, as a contender of its own, which shows
what chance does. The product is one of two matrices of 2,048 in the same type, measured in the course of the run: what large
products reach on this machine. Every contender has its large buffers kept by the allocator.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from unittest import mock
from unittest.mock import Mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _bench import (
    Figures,
    Report,
    common_options,
    figures_of,
    in_turns,
    keep,
    method,
    plus_minus,
    set_up,
    settings,
    threads_suffix,
    write,
)
from _kernel_cases import CHANNELS_LAST, CONTROL, DTYPES, NCHW, OURS, TOLERANCE
from _kernel_targets import NEVER_SLOWER
from _shapes import shapes_run
from sepnet.engine.devices import keep_large_buffers, prefers_bf16
from sepnet.errors import SepnetError
from sepnet.kernels import library, pointwise_conv2d
from sepnet.kernels._choice_pointwise import Way, pointwise_way
from sepnet.nn import conv, joined
from sepnet.report import markdown_table

LINEAR = "torch_linear"
KEEP_EACH = 10


class Shape(NamedTuple):
    """A pointwise convolution of (batch, inputs, height, width)."""

    batch: int
    inputs: int
    height: int
    width: int
    outputs: int
    bias: bool

    @property
    def products(self) -> int:
        """Multiplications of a direction that is computed once: the forward pass."""
        return self.batch * self.height * self.width * self.inputs * self.outputs

    def label(self) -> str:
        return f"{self.batch} x {self.inputs} x {self.height}x{self.width} to {self.outputs}{', bias' if self.bias else ''}"


class Row(NamedTuple):
    """Figures of the contenders for forward and backward pass together."""

    shape: Shape
    networks: list[str]
    dtype: str
    way: Way
    figures: Mapping[str, Figures]

    @property
    def ratio(self) -> float:
        """Time of the fastest peer to sepnet's."""
        return min(self.figures[peer]["median_ms"] for peer in (NCHW, CHANNELS_LAST, LINEAR)) / self.figures[OURS]["median_ms"]

    @property
    def chance(self) -> float:
        """PyTorch's channels-last convolution to itself."""
        return self.figures[CHANNELS_LAST]["median_ms"] / self.figures[CONTROL]["median_ms"]

    @property
    def gflop_per_s(self) -> float:
        return 3 * 2e-6 * self.shape.products / self.figures[OURS]["median_ms"]


def shapes_of(names: Iterable[str]) -> dict[Shape, list[str]]:
    """What the networks run in training, at their native size and at 32x32, with the networks that run it; after any stride."""
    return shapes_run(names, conv.PointwiseConv2d, _recorded)


def _recorded(model: nn.Module, images: Tensor, batch: int) -> list[Shape]:
    seen: list[Shape] = []

    def record(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
        y = F.conv2d(x, weight, bias, stride)
        seen.append(Shape(batch, x.shape[1], *y.shape[2:], y.shape[1], bias is not None))
        return y

    def summed(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, None]:
        return record(x, weight, bias), None

    # the convolution alone, which is what its peers have
    alone = mock.patch.multiple(joined, pools=Mock(return_value=False), joins=Mock(return_value=False), summed_pointwise=summed)
    with alone, mock.patch.object(conv, "pointwise_conv2d", record):
        model(images)
    return seen


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class Case:
    """Operands of each contender, requiring gradients as training does; the weights in float32."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        values = [torch.randn(shape.batch, shape.inputs, shape.height, shape.width), torch.randn(shape.outputs, shape.inputs, 1, 1)]
        values += [torch.randn(shape.outputs)] if shape.bias else []
        grad = torch.randn(shape.batch, shape.outputs, shape.height, shape.width)
        self.values, self.grad = [values[0].to(DTYPES[dtype]), *values[1:]], grad.to(DTYPES[dtype])

    def call(self, name: str) -> Callable[[int], list[Tensor]]:
        """Output and gradients."""
        compute = {OURS: pointwise_conv2d, LINEAR: _linear}.get(name, F.conv2d)
        layout = torch.contiguous_format if name == NCHW else torch.channels_last
        leaves = [(v.clone(memory_format=layout) if v.dim() == 4 else v.clone()).requires_grad_() for v in self.values]
        grad = self.grad.clone(memory_format=layout)

        def run(_: int) -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bf16"):
                y = compute(leaves[0], leaves[1], leaves[2] if self.shape.bias else None)
            return [y, *torch.autograd.grad(y, leaves, grad)]

        return run

    def results(self, name: str) -> list[Tensor]:
        return [t.detach().float() for t in self.call(name)(0)]

    def check(self) -> None:
        """Raises ArithmeticError: ours and PyTorch's differ by more than rounding."""
        for number, (ours, theirs) in enumerate(zip(self.results(OURS), self.results(CHANNELS_LAST), strict=True)):
            error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
            if not error <= TOLERANCE[self.dtype]:
                what = f"gradient {number}" if number else "the output"
                raise ArithmeticError(f"{self.shape.label()}, {self.dtype}: {what} is off by {error:.1e} of the largest value")


class Product:
    """GFLOP/s of a product of two square matrices, sampled in the course of the run."""

    SIDE = 2048

    def __init__(self, dtype: str) -> None:
        self._matrix = torch.randn(self.SIDE, self.SIDE).to(DTYPES[dtype])
        self.samples: list[float] = []

    def sample(self) -> None:
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(self._matrix, self._matrix)
            self.samples.append(2e-9 * self.SIDE**3 / (time.perf_counter() - start))

    @property
    def rate(self) -> float:
        return statistics.median(self.samples)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=[], help="only their shapes")
    default = "bf16" if prefers_bf16(torch.device("cpu")) else "fp32"
    parser.add_argument("--dtype", choices=list(DTYPES), default=default, help=f"default: what training takes here, {default}")
    parser.add_argument("--seconds", type=float, default=1.0, help="for the contenders of one shape together")
    parser.add_argument("--rounds", type=int, default=40, help="calls measured of each contender at most; at least 5")
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds, args.rounds = 0.0, 5
    return args


def measure(shape: Shape, networks: list[str], args: argparse.Namespace) -> Row:
    case = Case(shape, args.dtype)
    case.check()
    work = {name: case.call(name) for name in (OURS, NCHW, CHANNELS_LAST, CONTROL, LINEAR)}
    times = in_turns(work, rounds=args.rounds, warm_up=1, seconds=args.seconds)
    size = (shape.batch, shape.inputs, shape.height, shape.width)
    lib, dtype = library(), DTYPES[args.dtype]
    way = Way.CONVOLUTION if lib is None else pointwise_way(dtype, size, shape.outputs, shape.bias, lib.has_bf16_products)
    return Row(shape, networks, args.dtype, way, {name: figures_of(values) for name, values in times.items()})


def headline(rows: list[Row]) -> list[str]:
    lines = []
    for what, some in (("all shapes", rows), ("those of the kernels", [row for row in rows if row.way is Way.KERNELS])):
        if not some:
            continue
        ratios, chances = [row.ratio for row in some], [row.chance for row in some]
        reached, again = (sum(value >= NEVER_SLOWER for value in values) for values in (ratios, chances))
        slowest = min(some, key=lambda row: row.ratio)
        lines.append(
            f"{what}, to the fastest of PyTorch's ways: at least {NEVER_SLOWER}x at {reached} of {len(some)}; "
            f"median {statistics.median(ratios):.2f}x, least {slowest.ratio:.2f}x ({slowest.shape.label()}); "
            f"of PyTorch's in channels_last to itself {again} do (least {min(chances):.2f}x)"
        )
    return lines


def table(rows: list[Row], rate: float) -> str:
    header = ["shape", "by", "sepnet ms", "NCHW ms", "channels_last ms", "linear ms", "ratio", "GFLOP/s", "of the product"]
    lines = []
    for row in rows:
        times = [plus_minus(row.figures[name]) for name in (OURS, NCHW, CHANNELS_LAST, LINEAR)]
        by = "kernels" if row.way is Way.KERNELS else row.way.value
        speed = row.gflop_per_s
        lines.append([row.shape.label(), by, *times, f"{row.ratio:.2f}", f"{speed:.0f}", f"{speed / rate:.0%}"])
    return markdown_table(header, lines)


def record(row: Row) -> dict[str, Any]:
    values = {"networks": row.networks, **row.shape._asdict(), "dtype": row.dtype, "way": row.way.value, **row.figures}
    return values | {"ratio": round(row.ratio, 3), "gflop_per_s": round(row.gflop_per_s, 1)}


def report(rows: list[Row], product: Product, args: argparse.Namespace, machine: Mapping[str, Any]) -> Report:
    spread = f"{min(product.samples):.0f} to {max(product.samples):.0f}"
    text = f"Product: {product.rate:.0f} GFLOP/s (median of {len(product.samples)}, {spread}), {args.dtype}."
    return Report(
        name=f"pointwise-{threads_suffix(args)}",
        title=f"Pointwise convolutions against PyTorch's, {threads_suffix(args).replace('-', ' ')}",
        intro=method(__doc__),
        body=f"{text} Medians ± standard deviation of forward and backward pass together.\n\n{table(rows, product.rate)}",
        headline=headline(rows),
        figures=[record(row) for row in rows],
        options=settings(args) | {"product_gflop_per_s": round(product.rate, 1)},
        precision=args.dtype,
        machine=machine,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    keep_large_buffers()
    try:
        shapes = shapes_of(args.networks)
    except SepnetError as error:
        raise SystemExit(f"pointwise: {error}") from None
    if args.quick:
        shapes = {shape._replace(batch=2): users for shape, users in list(shapes.items())[::40]}
    product, rows = Product(args.dtype), list[Row]()
    for number, (shape, users) in enumerate(shapes.items()):
        if number % KEEP_EACH == 0:
            product.sample()
            print(f"{number} of {len(shapes)} shapes", file=sys.stderr, flush=True)
        try:
            rows.append(measure(shape, users, args))
        except ArithmeticError as error:
            raise SystemExit(f"pointwise: {error}") from None
        if len(rows) % KEEP_EACH == 0:
            keep(report(rows, product, args, machine), args.output)
    if not rows:
        raise SystemExit("pointwise: these networks have no pointwise convolution")
    write(report(rows, product, args, machine), args.output)


if __name__ == "__main__":
    main()
