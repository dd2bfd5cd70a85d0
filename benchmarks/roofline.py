"""Where the time of a training step goes, and the least that this machine would need for it.

    python benchmarks/roofline.py --output docs/results/performance
    python benchmarks/roofline.py --networks separable_cnn --threads 1

One step of each network (sepnet's own layers, channels-last, bf16 where the processor has it) is split by PyTorch's profiler into
matrix products (dense and pointwise convolutions, with what they do of a normalisation's work, and linear layers), depthwise
convolution with normalisation, pooling and ReLU (and the pointwise convolution of few channels that is computed with them), and
the rest (loss, optimiser, shortcuts, conversions, Python). The least time of a matrix product is the longer of its arithmetic at
the speed of a large matrix product and of its operands at the speed of a copy, both measured in the same run; that of the second
group is its operands at the speed of a copy, each as often as the kernels read or write it (indices and scratch memory left out).
Layers whose maps stay in the cache may beat it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile, record_function

from _bench import Report, common_options, keep, method, set_up, settings, threads_suffix, write
from _describe import build
from _kernel_cases import Copy
from sepnet.engine import prefers_bf16
from sepnet.engine.devices import keep_large_buffers
from sepnet.kernels import Normalisation, watching
from sepnet.nn import DepthwiseConv2d, conv, joined, multiscale, norm
from sepnet.report import markdown_table
from train_step import BATCH, LARGE, NETWORKS, SMALL_BATCH

PRODUCTS, MAPS, REST = "matrix products", "depthwise and normalisation", "rest"
GROUPS = (PRODUCTS, MAPS, REST)
_PRODUCT_OPS = ("convolution", "aten::mm", "aten::addmm", "aten::bmm")
_OURS = (
    "convolution_overrideable",  # a depthwise one, as PyTorch's dispatcher calls it
    "convolution_backward_overrideable",
    "max_pool2d",
    "batch_norm",
)
# calls into the library, by the names of the functions that make them
_CALL = "sepnet."
_CALLS = {
    "pointwise_": PRODUCTS,
    "depthwise_": MAPS,
    "norm_": MAPS,
    "pooled_": MAPS,
    "compose_filters": REST,
    "filter_gradients": REST,
}
_RESERVE = 1 << 28  # floats


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--size", type=int, default=32, help="side of the images (default 32)")
    parser.add_argument("--steps", type=int, default=5, help="measured, after two to warm up")
    args = parser.parse_args(argv)
    if args.quick:
        args.networks, args.steps = args.networks[:1], 1
    return args


# --- the least time ----------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What an image of a training step needs: arithmetic of each product (forward, both gradients), and values read or written."""

    products: list[tuple[int, int]] = field(default_factory=list)  # floating-point operations, values; an image
    values: int = 0  # of the second group, an image

    def least_ms(self, batch: int, size: int, flops: float, bytes_per_s: float) -> dict[str, float]:
        """Of the groups whose floor is known; ``size``: bytes of a value."""
        products = sum(max(batch * f / flops, batch * v * size / bytes_per_s) for f, v in self.products)
        return {PRODUCTS: 1e3 * products, MAPS: 1e3 * batch * self.values * size / bytes_per_s}


class _Counter:
    """Stands before the functions that layers call, and adds up what they have to do for so many images."""

    def __init__(self, images: int) -> None:
        self.images, self.work = images, Work()

    def layer(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """A dense or pointwise convolution, or a linear layer, that is called by itself."""
        assert isinstance(module.weight, Tensor)
        self.multiplied(inputs[0], module.weight, output)

    def multiplied(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        passes = 3 if x.requires_grad else 2  # the image wants no gradient
        self.work.products.extend([(2 * y[0].numel() * weight[0].numel(), (x.numel() + y.numel()) // self.images)] * passes)

    def values(self, count: int) -> None:
        self.work.values += count // self.images

    def depthwise(self, call: Callable[..., Tensor], x: Tensor, *rest: Any, **options: Any) -> Tensor:
        y = call(x, *rest, **options)
        gradient = x.numel() if x.requires_grad else 0
        self.values(2 * x.numel() + 2 * y.numel() + gradient)  # x, y; x, dy, dx
        return y

    def around(self, x: Tensor, before: Normalisation | None, outputs: int, sums: Tensor | None) -> int:
        """Values of a depthwise convolution, and of the normalisation before it."""
        count = 2 * x.numel() + outputs + (x.numel() + outputs)  # x, y; x, dy, dz
        if before:
            count += 3 * x.numel() + (x.numel() if sums is None else 0)  # x, dz, dx; statistics
        return count

    def between(self, call: Callable[..., Tensor], x: Tensor, before: Normalisation | None, *rest: Any) -> Tensor:
        y = call(x, before, *rest)
        *_, after, sums = rest
        # applied to y; sums of y and dy; y once more with dy
        self.values(self.around(x, before, y.numel(), sums) + (5 * y.numel() if after else 0))
        return y

    def separable(
        self, call: Callable[..., tuple[Tensor, Tensor]], x: Tensor, before: Normalisation | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        y, found = call(x, before, *rest)
        *_, sums, (weight, _) = rest
        middle = y.numel() // len(weight) * x.shape[1]
        self.values(self.around(x, before, middle, sums) + middle)  # and the middle once more with its gradient
        flops = 2 * y[0].numel() * weight[0].numel()
        # middle, y; dy, middle, and the middle's gradient; in float32 dy and middle once more for the weights'
        forward, gradient = (flops, middle + y.numel()), (flops, 2 * middle + y.numel())
        passes = [forward, gradient, forward] if y.dtype == torch.float32 else [forward, (2 * flops, 2 * middle + y.numel())]
        self.work.products += [(f, values // self.images) for f, values in passes]
        return y, found

    def summed(
        self, call: Callable[..., tuple[Tensor, Tensor | None]], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y, sums = call(x, weight, bias)
        self.multiplied(x, weight, y)
        return y, sums

    def normalise(self, call: Callable[..., Tensor], x: Tensor, *rest: Any, sums: Tensor | None = None, **options: Any) -> Tensor:
        y = call(x, *rest, sums=sums, **options)
        statistics = x.numel() if sums is None else 0
        self.values(statistics + x.numel() + y.numel() + 3 * x.numel() + 2 * y.numel())  # x, y; x, dy, x, dy, dx
        return y

    def pooled(self, call: Callable[..., Tensor], x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        y = call(x, weight, *rest)
        gradient = 2 * x.numel() if x.requires_grad else 0
        self.values(2 * x.numel() + y.numel() + x.numel() + y.numel() + gradient)  # x, x, y; x, dy; x, dx
        return y


def work_of(network: nn.Module, size: int, bf16: bool = False, images: int = 2) -> Work:
    """Found by a forward pass of so many images: what the network really calls, under autocast with ``bf16``."""
    counter = _Counter(images)
    patches: list[tuple[Any, str, Callable[..., Any]]] = [
        (conv, "depthwise_by_geometry", counter.depthwise),
        (multiscale, "multiscale_branches", counter.depthwise),
        (joined, "joined_depthwise", counter.between),
        (joined, "joined_separable", counter.separable),
        (joined, "summed_pointwise", counter.summed),
        (joined, "pooled_pointwise", counter.pooled),
        (norm, "batch_norm_relu", counter.normalise),
    ]
    x = torch.zeros(counter.images, network.in_channels, size, size).contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dense = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and not isinstance(m, DepthwiseConv2d)]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with autocast:
        with_norm = weights_beside_norms(network, x)
    with autocast, ExitStack() as stack:
        for m in dense:
            if id(m.weight) not in with_norm:  # a hook would keep the kernels from taking the layer
                stack.callback(m.register_forward_hook(counter.layer).remove)
        for module, name, recorder in patches:
            stack.enter_context(mock.patch.object(module, name, partial(recorder, getattr(module, name))))
        network(x)
    return counter.work


def weights_beside_norms(network: nn.Module, x: Tensor) -> set[int]:
    """Of the pointwise convolutions that are computed with a normalisation before or behind them: who they are."""
    with ExitStack() as stack:
        names = "pooled_pointwise", "summed_pointwise", "joined_separable"
        calls = [stack.enter_context(mock.patch.object(joined, n, side_effect=getattr(joined, n))) for n in names]
        network(x)
    pooled, summed, separable = ([used.args for used in call.call_args_list] for call in calls)
    return {id(args[1]) for args in (*pooled, *summed)} | {id(args[-1][0]) for args in separable}


def product_speed(dtype: torch.dtype, side: int = 2048) -> float:
    """Floating-point operations a second of a large matrix product."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    torch.mm(a, b)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return float(2 * side**3 / statistics.median(times))


# --- the real time -----------------------------------------------------------------------------------------------------------


def _group(name: str, shapes: list[Any]) -> str:
    if name.startswith(_CALL):
        return next((group for prefix, group in _CALLS.items() if name.removeprefix(_CALL).startswith(prefix)), REST)
    if name.startswith(_OURS) or any(part in name for part in _OURS):
        return MAPS
    if any(part in name for part in _PRODUCT_OPS):
        filters = [s for s in shapes if len(s) == 4 and s[1] == 1 and s[0] > 1]  # (C, 1, kh, kw): oneDNN's depthwise
        return MAPS if filters else PRODUCTS
    return REST


def measured_ms(network: nn.Module, batch: int, args: argparse.Namespace, bf16: bool) -> list[dict[str, float]]:
    """Milliseconds of each group, a dictionary a step."""
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    x = torch.randn(batch, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = cross_entropy(network(x).float(), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def named(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with record_function(_CALL + function.__name__):
            return function(*arguments)

    if not args.quick:  # malloc keeps it, and has memory without page faults when the profiler's records cut up the rest
        torch.ones(_RESERVE)
    step(), step()
    found = []
    for _ in range(args.steps):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace, watching(named):
            step()
        times = dict.fromkeys(GROUPS, 0.0)
        for event in trace.events() or ():
            times[_group(event.name, event.input_shapes or [])] += 1e-3 * event.self_cpu_time_total
        found.append(times)
    return found


# --- the report --------------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, copy: Copy, bf16: bool) -> Iterator[dict[str, Any]]:
    """A row a network."""
    for name in args.networks:
        print(f"{name} ...", file=sys.stderr, flush=True)
        copy.sample()
        flops = product_speed(torch.bfloat16 if bf16 else torch.float32)
        batch = 2 if args.quick else SMALL_BATCH if name in LARGE else BATCH
        network = build(name, size=args.size, num_classes=10).to(memory_format=torch.channels_last).train()
        work = work_of(network, args.size, bf16, batch)
        steps = measured_ms(network, batch, args, bf16)
        least = work.least_ms(batch, 2 if bf16 else 4, flops, 1e9 * statistics.median(copy.samples))
        groups = {group: {"ms": statistics.median(step[group] for step in steps), "least_ms": least.get(group)} for group in GROUPS}
        total = [sum(step.values()) for step in steps]
        yield {
            "network": name,
            "batch": batch,
            "gflops": round(flops / 1e9, 1),
            "step_ms": statistics.median(total),
            "step_sd_ms": statistics.stdev(total) if len(total) > 1 else 0.0,
            "n": len(total),
            "groups": groups,
        }


def table(rows: list[dict[str, Any]]) -> str:
    def cells(group: Mapping[str, float | None]) -> list[str]:
        ms, least = group["ms"], group["least_ms"]
        assert ms is not None
        return [f"{ms:.1f}", *([] if least is None else [f"{least:.1f}", f"{least / ms:.0%}" if ms and not math.isnan(ms) else ""])]

    header = ["network", "batch", "step ms"]
    for group in (PRODUCTS, MAPS):
        header += [f"{group} ms", "least", "share"]
    return markdown_table(
        [*header, f"{REST} ms"],
        [
            [
                row["network"],
                str(row["batch"]),
                f"{row['step_ms']:.0f} ± {row['step_sd_ms']:.0f}",
                *(cell for group in GROUPS for cell in cells(row["groups"][group])),
            ]
            for row in rows
        ],
    )


def report(rows: list[dict[str, Any]], copy: Copy, args: argparse.Namespace, machine: Mapping[str, Any], bf16: bool) -> Report:
    rate, precision = statistics.median(copy.samples), "bf16" if bf16 else "fp32"
    speed = statistics.median(row["gflops"] for row in rows)
    lines = [f"copy {rate:.1f} GB/s, matrix product of 2,048 {speed:,.0f} GFLOP/s in {precision}"]
    for row in rows:
        shares = {g: row["groups"][g]["ms"] / row["step_ms"] for g in GROUPS}
        lines.append(f"{row['network']}: " + ", ".join(f"{g} {share:.0%}" for g, share in shares.items()))
    return Report(
        name=f"roofline-{threads_suffix(args)}",
        title=f"Where a training step's time goes, {args.size}x{args.size}, {threads_suffix(args).replace('-', ' ')}",
        intro=method(__doc__),
        body=table(rows),
        headline=lines,
        figures=rows,
        options=settings(args) | {"copy_gb_per_s": rate},
        precision=precision,
        machine=machine,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    keep_large_buffers()
    copy, bf16, rows = Copy(), bool(prefers_bf16(torch.device("cpu"))), list[dict[str, Any]]()
    for row in measure(args, copy, bf16):
        rows.append(row)
        keep(report(rows, copy, args, machine, bf16), args.output)
    write(report(rows, copy, args, machine, bf16), args.output)


if __name__ == "__main__":
    main()
