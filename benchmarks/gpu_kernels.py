"""The Triton kernels on an NVIDIA GPU against PyTorch's operations: every shape of four networks at 32x32, bf16, batch 128.

    python benchmarks/gpu_kernels.py --output gpu_kernels.json
    python benchmarks/gpu_kernels.py --networks dsrnet50 --only depthwise

Depthwise convolution: Triton against F.conv2d in channels_last (cuDNN's) and in PyTorch's default layout NCHW (its own kernel).
Normalisation with ReLU (and shortcut): Triton against F.batch_norm, addition and F.relu in channels_last. Milliseconds by CUDA
events, of a captured graph of several calls, so that the launches from Python are outside the clock; medians. Forward: as in
training. Backward: of all gradients that training wants. GB/s: of Triton, each map that a pass must move counted once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from _describe import build
from _shapes import BATCH, Shape, network_shapes
from sepnet.kernels import _gpu
from sepnet.nn import joined
from sepnet.nn.norm import BatchNormReLU

NETWORKS = ("dsrnet50", "dilated_separable", "mobilenet_v1", "separable_cnn")
RATES = range(4)  # of dilated_separable
SIZE = 32
CALLS = 8  # in a graph
TRITON, CHANNELS_LAST, NCHW = "triton", "channels_last", "nchw"


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


def compile_all(shapes: list[AnyShape], jobs: int) -> None:
    """Triton's compiler takes seconds a kernel: several processes fill its cache on disk first."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(compile_one, shapes):
            pass


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
    for i, direction in enumerate(("forward", "backward")):
        for name, values in times.items():
            found[f"{direction}_{name}_ms"] = round(values[i], 5)
        best = min(values[i] for name, values in times.items() if name != TRITON)
        found[f"{direction}_ratio"] = round(best / times[TRITON][i], 3)
        found[f"{direction}_gb_per_s"] = round(moved(shape)[i] / times[TRITON][i] / 1e6, 1)
    return found


def show(found: dict[str, Any]) -> str:
    cells = [f"{found['shape']:<58}"]
    for direction in ("forward", "backward"):
        times = [f"{found.get(f'{direction}_{name}_ms', float('nan')):8.4f}" for name in (TRITON, CHANNELS_LAST, NCHW)]
        cells.append("".join(times) + f"{found[f'{direction}_ratio']:6.2f}{found[f'{direction}_gb_per_s']:7.0f}")
    return " |".join(cells)


HEADER = " |".join([f"{'':<58}", *(f"{d + ' triton':>8}{'ch.last':>8}{'nchw':>8}{'ratio':>6}{'GB/s':>7}" for d in ("f", "b"))])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--only", choices=["depthwise", "norm"])
    parser.add_argument("--rounds", type=int, default=20, help="graphs measured of each contender (default 20)")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes that compile beforehand")
    parser.add_argument("--list", action="store_true", help="only name the shapes; needs no GPU")
    parser.add_argument("--output", type=Path, metavar="FILE", help="leave the figures there, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    shapes: list[tuple[str, AnyShape]] = []
    if args.only != "norm":
        shapes += [("depthwise", s) for s in depthwise_shapes(args.networks)]
    if args.only != "depthwise":
        shapes += [("norm", s) for s in norm_shapes(args.networks)]
    if args.list:
        print("\n".join(f"{kind}: {shape.label()}" for kind, shape in shapes))
        return
    reason = "no CUDA device" if not torch.cuda.is_available() else _gpu.why_not_triton(torch.device("cuda", 0))
    if reason is not None:
        raise SystemExit(f"gpu_kernels: {reason}")
    torch.backends.cudnn.benchmark = True
    if args.jobs > 1:
        compile_all([shape for _, shape in shapes], args.jobs)
    rows, stream = [], torch.cuda.Stream()
    print(HEADER)
    for kind, shape in shapes:
        with torch.cuda.stream(stream):  # autograd's backward pass runs on the stream of the forward pass
            times = measure_depthwise(shape, args.rounds) if isinstance(shape, Shape) else measure_norm(shape, args.rounds)
        rows.append(row(kind, shape, times))
        print(show(rows[-1]), flush=True)
    if args.output is not None:
        head = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "batch": BATCH, "dtype": "bf16"}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {args.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
