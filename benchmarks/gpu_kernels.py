"""The Triton kernels on an NVIDIA GPU against PyTorch's operations: every shape of four networks at 32x32, bf16, batch 128.

    python benchmarks/gpu_kernels.py --output docs/results/performance
    python benchmarks/gpu_kernels.py --networks dsrnet50 --only depthwise

Depthwise convolution: Triton against F.conv2d in channels_last (cuDNN's) and in PyTorch's default layout NCHW (its own kernel).
Normalisation with ReLU (and shortcut): Triton against F.batch_norm, addition and F.relu in channels_last. Milliseconds by CUDA
events, of a captured graph of several calls, so that the launches from Python are outside the clock; medians. Forward: as in
training. Backward: of all gradients that training wants. GB/s: of Triton, each map that a pass must move counted once. Inputs stay
in the L2 cache from call to call where they fit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from _bench import Report, common_options, keep, method, set_up, settings, write
from _describe import build
from _on_gpu import demand_gpu, versions
from _shapes import BATCH, Shape, network_shapes
from sepnet.kernels import _gpu
from sepnet.nn import joined
from sepnet.nn.norm import BatchNormReLU
from sepnet.report import markdown_table

NETWORKS = ("dsrnet50", "dilated_separable", "mobilenet_v1", "separable_cnn")
RATES = range(4)  # of dilated_separable
SIZE = 32
CALLS = 8  # in a graph
TRITON, CHANNELS_LAST, NCHW = "triton", "channels_last", "nchw"
KINDS = {"depthwise": "Depthwise convolution", "norm": "Normalisation with ReLU"}
DIRECTIONS = ("forward", "backward")


class NormShape(NamedTuple):
    """A normalisation: (B, C, H, W), whether ReLU follows, whether a shortcut is added before it."""

    shape: tuple[int, int, int, int]
    relu: bool
    adds: bool

    def label(self) -> str:
        batch, channels, height, width = self.shape
        return f"{batch} x {channels} x {height}x{width}" + (", ReLU" if self.relu else "") + (", shortcut" if self.adds else "")


AnyShape = Shape | NormShape

# --- which shapes ----------------------------------------------------------------------------------------------------------


def depthwise_shapes(names: list[str]) -> list[Shape]:
    """Each once, without its bias; those of dilated_separable's default rate (dilation 5) are joined by those of the others."""
    shapes = [s._replace(bias=False) for s in network_shapes(names) if s.batch == BATCH and s.height <= SIZE]
    found = dict.fromkeys(s for s in shapes if len(s.geometry.kernels) == 1)
    for shape in [s for s in found if s.geometry.dilations[0] == (5, 5)]:
        for dilation in (2 * rate + 1 for rate in RATES):
            geometry = shape.geometry._replace(dilations=((dilation,) * 2,), paddings=((dilation,) * 2,))
            found[shape._replace(geometry=geometry)] = None
    return list(found)


def norm_shapes(names: list[str]) -> list[NormShape]:
    """Each once."""
    found: dict[NormShape, None] = {}
    forward = BatchNormReLU.forward

    def record(self: BatchNormReLU, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        adds = shortcut is not None
        found[NormShape((BATCH, x.shape[1], x.shape[2], x.shape[3]), self.relu or adds, adds)] = None
        return forward(self, x, shortcut)

    for name in names:
        model: Any = build(name, size=SIZE)
        # each layer on its own, as on a GPU
        with mock.patch.object(BatchNormReLU, "forward", record), mock.patch.object(joined, "joins", return_value=False):
            model.train()(torch.zeros(2, model.in_channels, SIZE, SIZE))
    return list(found)


# --- timing ----------------------------------------------------------------------------------------------------------------


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Median of one call, out of a graph of ``CALLS``; on the stream at hand, not the default one, which cannot be captured."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            work()
    for _ in range(2):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / CALLS


def both(forward: Callable[[], Tensor], leaves: list[Tensor], rounds: int) -> tuple[float, float]:
    """Forward (with what is saved for the backward pass) and backward."""
    first = milliseconds(forward, rounds)
    y = forward()
    grad = torch.randn_like(y)

    def backward() -> object:
        return torch.autograd.grad(y, leaves, grad, retain_graph=True)

    return first, milliseconds(backward, rounds)


def maps(shape: tuple[int, ...], layout: torch.memory_format = torch.channels_last) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout)


def measure_depthwise(shape: Shape, rounds: int) -> dict[str, tuple[float, float]]:
    g = shape.geometry
    size = (shape.batch, shape.channels, shape.height, shape.width)
    weight = torch.randn(shape.channels, 1, *g.kernels[0], device="cuda").requires_grad_()
    half = weight.detach().bfloat16().requires_grad_()  # PyTorch's kernels take one type: the cast is not in their time
    results = {}
    for name in (TRITON, CHANNELS_LAST, NCHW):
        x = maps(size, torch.contiguous_format if name == NCHW else torch.channels_last).requires_grad_(shape.wants_x)
        w = weight if name == TRITON else half

        def forward(x: Tensor = x, w: Tensor = w, ours: bool = name == TRITON) -> Tensor:
            if ours:
                return _gpu.triton_depthwise(x, w, None, g)
            return F.conv2d(x, w, None, g.stride, g.paddings[0], g.dilations[0], shape.channels)

        results[name] = both(forward, [x, w] if shape.wants_x else [w], rounds)
    return results


def measure_norm(shape: NormShape, rounds: int) -> dict[str, tuple[float, float]]:
    channels = shape.shape[1]
    x = maps(shape.shape).requires_grad_()
    shortcut = maps(shape.shape).requires_grad_() if shape.adds else None
    gamma, beta = (torch.randn(channels, device="cuda").requires_grad_() for _ in range(2))
    mean, var = torch.zeros(channels, device="cuda"), torch.ones(channels, device="cuda")

    def ours() -> Tensor:
        return _gpu.triton_norm(x, gamma, beta, (mean, var), momentum=0.1, eps=1e-5, relu=shape.relu, shortcut=shortcut)

    def theirs() -> Tensor:
        y = F.batch_norm(x, mean, var, gamma, beta, True, 0.1, 1e-5)
        y = y if shortcut is None else y + shortcut
        return F.relu(y, inplace=True) if shape.relu else y

    leaves = [t for t in (x, gamma, beta, shortcut) if t is not None]
    return {TRITON: both(ours, leaves, rounds), CHANNELS_LAST: both(theirs, leaves, rounds)}


@cache
def side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def measure(shape: AnyShape, rounds: int) -> dict[str, tuple[float, float]]:
    """Forward and backward milliseconds of each contender."""
    with torch.cuda.stream(side_stream()):  # autograd's backward pass runs on the stream of the forward pass
        return measure_depthwise(shape, rounds) if isinstance(shape, Shape) else measure_norm(shape, rounds)


def compiled(shapes: Sequence[tuple[str, AnyShape]], jobs: int) -> Iterator[tuple[str, AnyShape]]:
    """The shapes, ``jobs`` at a time with their kernels in the cache on disk: Triton's compiler takes seconds a kernel.

    The processes that compile rest while their shapes are measured, and a limit of time finds some measured.
    """
    if jobs < 2:
        yield from shapes
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for first in range(0, len(shapes), jobs):
            some = shapes[first : first + jobs]
            list(pool.map(compile_one, [shape for _, shape in some]))
            yield from some


def compile_one(shape: AnyShape) -> None:
    if isinstance(shape, Shape):
        x = maps((shape.batch, shape.channels, shape.height, shape.width)).requires_grad_(shape.wants_x)
        weight = torch.randn(shape.channels, 1, *shape.geometry.kernels[0], device="cuda").requires_grad_()
        y = _gpu.triton_depthwise(x, weight, None, shape.geometry)
    else:
        x, shortcut = maps(shape.shape).requires_grad_(), maps(shape.shape) if shape.adds else None
        ones, averages = torch.ones(shape.shape[1], device="cuda"), torch.ones(2, shape.shape[1], device="cuda")
        running = (averages[0], averages[1])
        y = _gpu.triton_norm(x, ones, ones, running, momentum=0.1, eps=1e-5, relu=shape.relu, shortcut=shortcut)
    y.sum().backward()
    torch.cuda.synchronize()


# --- results ---------------------------------------------------------------------------------------------------------------


def moved(shape: AnyShape) -> tuple[int, int]:
    """Bytes that must move, forward and backward; statistics want x twice, so do the sums of the backward pass x and dL/dy."""
    if isinstance(shape, Shape):
        return shape.moved_bytes("forward", 2), shape.moved_bytes("backward", 2)
    values = shape.shape[0] * shape.shape[1] * shape.shape[2] * shape.shape[3]
    return 2 * values * (4 if shape.adds else 3), 2 * values * (7 if shape.adds else 5)


def row(kind: str, shape: AnyShape, times: dict[str, tuple[float, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind, "shape": shape.label()}
    for i, direction in enumerate(DIRECTIONS):
        for name, values in times.items():
            found[f"{direction}_{name}_ms"] = round(values[i], 5)
        best = min(values[i] for name, values in times.items() if name != TRITON)
        found[f"{direction}_ratio"] = round(best / times[TRITON][i], 3)
        found[f"{direction}_gb_per_s"] = round(moved(shape)[i] / times[TRITON][i] / 1e6, 1)
    return found


def show(found: Mapping[str, Any]) -> str:
    parts = [f"{d} {found[f'{d}_{TRITON}_ms']:.4f} ms, ratio {found[f'{d}_ratio']:.2f}" for d in DIRECTIONS]
    return f"{found['shape']}: {'; '.join(parts)}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of rows of one kind."""
    names = [name for name in (TRITON, CHANNELS_LAST, NCHW) if f"forward_{name}_ms" in rows[0]]
    header = ["shape"]
    for direction in DIRECTIONS:
        header += [f"{direction}: {names[0]} ms", *(f"{name} ms" for name in names[1:]), "ratio", "GB/s"]
    lines = []
    for found in rows:
        line = [found["shape"]]
        for d in DIRECTIONS:
            line += [f"{found[f'{d}_{name}_ms']:.4f}" for name in names]
            line += [f"{found[f'{d}_ratio']:.2f}", f"{found[f'{d}_gb_per_s']:.0f}"]
        lines.append(line)
    return markdown_table(header, lines)


def headline(rows: Sequence[Mapping[str, Any]], wanted: int) -> list[str]:
    lines = []
    for kind in dict.fromkeys(found["kind"] for found in rows):
        for direction in DIRECTIONS:
            ratios = [found[f"{direction}_ratio"] for found in rows if found["kind"] == kind]
            span = f"{min(ratios):.2f} to {max(ratios):.2f} (median {statistics.median(ratios):.2f})"
            lines.append(f"{kind}, {direction}: {span} times as fast as the better of PyTorch's, {len(ratios)} shapes")
    return lines + ([f"cut off: {len(rows)} of {wanted} shapes"] if len(rows) < wanted else [])


def report(rows: Sequence[Mapping[str, Any]], wanted: int, args: argparse.Namespace, machine: Mapping[str, Any]) -> Report:
    sections = ["Milliseconds. Ratio: the faster of PyTorch's to Triton's."]
    for kind, title in KINDS.items():
        if some := [found for found in rows if found["kind"] == kind]:
            sections += [f"## {title}", table(some)]
    return Report(
        name="gpu_kernels",
        title="Triton kernels on a GPU",
        intro=method(__doc__),
        body="\n\n".join(sections),
        headline=headline(rows, wanted),
        figures=list(rows),
        options=settings(args),
        precision="bf16",
        machine=machine,
        versions=versions(),
        device="cuda",
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__, threads=2)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--only", choices=list(KINDS))
    parser.add_argument("--rounds", type=int, default=20, help="graphs measured of each contender (default 20)")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes that compile beforehand")
    parser.add_argument("--list", action="store_true", help="only name the shapes; needs no GPU")
    args = parser.parse_args(argv)
    if args.quick:
        args.networks, args.rounds = args.networks[:1], 2
    return args


def wanted_shapes(args: argparse.Namespace) -> list[tuple[str, AnyShape]]:
    """Both kinds by turns, so that a limit of time leaves some of each."""
    depthwise = [] if args.only == "norm" else [("depthwise", shape) for shape in depthwise_shapes(args.networks)]
    norm = [] if args.only == "depthwise" else [("norm", shape) for shape in norm_shapes(args.networks)]
    return [found for pair in zip_longest(depthwise, norm) for found in pair if found is not None]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.list:
        print("\n".join(f"{kind}: {shape.label()}" for kind, shape in wanted_shapes(args)))
        return
    demand_gpu("gpu_kernels")
    machine, shapes = set_up(args), wanted_shapes(args)
    torch.backends.cudnn.benchmark = True
    rows: list[dict[str, Any]] = []
    for kind, shape in compiled(shapes, args.jobs):
        rows.append(row(kind, shape, measure(shape, args.rounds)))
        print(show(rows[-1]), flush=True)
        keep(report(rows, len(shapes), args, machine), args.output)  # a limit of time loses nothing that is measured
    write(report(rows, len(shapes), args, machine), args.output)


if __name__ == "__main__":
    main()
