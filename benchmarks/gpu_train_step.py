"""Training steps of the papers' networks on an NVIDIA GPU: as written, as a CUDA graph, and as a graph without our kernels.

    python benchmarks/gpu_train_step.py --output docs/results/performance
    python benchmarks/gpu_train_step.py --networks dsrnet50 separable_cnn --opt sgd
    python benchmarks/gpu_train_step.py --networks multiscale_add --device cpu --quick     # shows that it works

A step is `sepnet.engine.TrainingStep`: forward, cross-entropy, backward, update by the optimiser, in bf16 and channels-last, on
one batch of random images that lies on the GPU. A turn is several steps in a row, after which the GPU is waited for, divided by
their number; the contenders take turns, and figures are medians over the turns with their standard deviation. Compilation, cuDNN's
choice of algorithms and the recording of the graphs are outside the clock.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from _bench import Figures, Report, common_options, figures_of, in_turns, keep, method, plus_minus, set_up, settings, write
from _on_gpu import demand_gpu, versions
from sepnet.engine import FitConfig, TrainingStep, make_fabric, prefers_bf16
from sepnet.engine._graph import GraphedStep
from sepnet.engine.devices import Fabric
from sepnet.errors import SepnetError, one_line
from sepnet.kernels import use
from sepnet.models import create_model
from sepnet.report import markdown_table

CLASSES = 10
EAGER, GRAPH, REFERENCE = "as written", "graph", "PyTorch's graph"


class Way(NamedTuple):
    """How a contender runs its steps."""

    graph: bool
    reference: bool
    explained: str


CONTENDERS = {
    EAGER: Way(False, False, "every kernel launched from Python; Triton's kernels where they serve"),
    GRAPH: Way(True, False, "what the engine does on one GPU: the same step, recorded once and replayed"),
    REFERENCE: Way(True, True, "the same with cuDNN's convolutions and PyTorch's normalisation (SEPNET_KERNELS=reference)"),
}


class Network(NamedTuple):
    """A network with its options, and the batch that it trains on: ``batch`` images of channels x ``size`` x ``size``."""

    model: str
    options: Mapping[str, Any] = MappingProxyType({})
    batch: int = 128
    channels: int = 3
    size: int = 32

    def label(self) -> str:
        """ "multiscale_add, units (32, 64), 1x28x28"."""
        image = [] if (self.channels, self.size) == (3, 32) else [f"{self.channels}x{self.size}x{self.size}"]
        return ", ".join([self.model, *(f"{name} {value}" for name, value in self.options.items()), *image])

    def build(self) -> nn.Module:
        return create_model(self.model, num_classes=CLASSES, in_channels=self.channels, input_size=self.size, **self.options)


NETWORKS = {
    network.model: network
    for network in (
        Network("dsrnet50"),
        Network("dilated_separable", {"rate": 2}),
        Network("mobilenet_v1"),
        Network("googlenet"),
        Network("squeezenet"),
        Network("vgg16"),
        Network("resnet50"),
        Network("resnext101_32x4d"),
        Network("separable_cnn", batch=64),
        Network("standard_cnn", batch=64),
        Network("googlenet_units"),
        Network("multiscale_add", {"units": (32, 64)}, channels=1, size=28),
    )
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__, threads=2)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--opt", choices=["sgd", "adam", "adamw", "muon"], default="muon", help="optimiser (default muon)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contender at most (default 20)")
    parser.add_argument("--steps", type=int, default=10, help="of a turn (default 10)")
    parser.add_argument("--seconds", type=float, default=8.0, help="no further round of a network after so many (default 8)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: shows that it works; there are no graphs")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if args.quick:
        args.networks, args.rounds, args.steps = args.networks[:1], 2, 1
    return args


# --- one contender ---------------------------------------------------------------------------------------------------------


def batch_of(network: Network, args: argparse.Namespace) -> int:
    return min(network.batch, 8) if args.quick else network.batch


def prepare(network: Network, way: Way, fabric: Fabric, args: argparse.Namespace) -> Callable[[int], object]:
    """A turn of ``args.steps`` steps, with those behind it that compile and record.

    Raises:
        RuntimeError: a graph was wanted and could not be recorded.
    """
    torch.manual_seed(0)  # all contenders begin with the same weights
    step = TrainingStep(network.build(), FitConfig(opt=args.opt, lr=0.01), fabric)
    if not way.graph:
        step._update = step._compute  # which is what it does where there are no graphs
    shape = (batch_of(network, args), network.channels, network.size, network.size)
    x = torch.randn(shape, device=fabric.device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (len(x),), device=fabric.device)

    def turn(_: int, steps: int = args.steps) -> None:
        kernels: AbstractContextManager[None] = use("reference") if way.reference else nullcontext()
        with kernels:
            for _step in range(steps):
                step(x, y)

    turn(0, step.warm_up)
    if way.graph and not (isinstance(step._update, GraphedStep) and step._update._recording):
        raise RuntimeError(f"the step was not recorded as a graph on {fabric.device}")
    return turn


# --- one network -----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a network's contenders did: figures of a step in ms, or why there are none."""

    network: Network
    batch: int
    figures: Mapping[str, Figures]
    failed: Mapping[str, str]

    def ratio(self, name: str) -> float | None:
        """How many times as long a step of ``name`` takes as one of ``GRAPH``."""
        pair = [self.figures.get(of) for of in (name, GRAPH)]
        return pair[0]["median_ms"] / pair[1]["median_ms"] if pair[0] and pair[1] else None

    def record(self) -> dict[str, Any]:
        network = self.network
        return {
            "network": network.model,
            "options": dict(network.options),
            "image": [network.channels, network.size, network.size],
            "batch": self.batch,
            "contenders": dict(self.figures),
            "failed": dict(self.failed),
        }


def contest(network: Network, fabric: Fabric, args: argparse.Namespace) -> Outcome:
    work: dict[str, Callable[[int], object]] = {}
    failed: dict[str, str] = {}
    for name, way in CONTENDERS.items():
        try:
            work[name] = prepare(network, way, fabric, args)
        except (RuntimeError, SepnetError) as error:  # no graph, or no memory: the others can still run
            failed[name] = one_line(error)
            print(f"{network.label()}, {name}: {failed[name]}", file=sys.stderr)
    settle = torch.cuda.synchronize if fabric.device.type == "cuda" else None
    times = in_turns(work, rounds=args.rounds, warm_up=1, seconds=args.seconds, least=min(5, args.rounds), settle=settle)
    figures = {name: figures_of([ms / args.steps for ms in found]) for name, found in times.items()}
    return Outcome(network, batch_of(network, args), figures, failed)


def measure(args: argparse.Namespace) -> Iterator[Outcome]:
    fabric = make_fabric(args.device)
    for name in args.networks:
        print(f"{NETWORKS[name].label()} ...", file=sys.stderr, flush=True)
        yield contest(NETWORKS[name], fabric, args)
        gc.collect()  # a step and its graph refer to each other; the next network is to have their memory
        if fabric.device.type == "cuda":
            torch.cuda.empty_cache()


# --- the report ------------------------------------------------------------------------------------------------------------


def table(found: Sequence[Outcome]) -> str:
    peers = [name for name in CONTENDERS if name != GRAPH]
    rows = []
    for outcome in found:
        times = [plus_minus(outcome.figures[name]) if name in outcome.figures else "" for name in CONTENDERS]
        ratios = ["" if (r := outcome.ratio(peer)) is None else f"{r:.2f}" for peer in peers]
        rows.append([outcome.network.label(), str(outcome.batch), *times, *ratios])
    header = ["network", "batch", *(f"{name}, ms" for name in CONTENDERS), *(f"{peer} / {GRAPH}" for peer in peers)]
    return markdown_table(header, rows)


def headline(found: Sequence[Outcome], wanted: int) -> list[str]:
    lines = []
    for peer, words in ((EAGER, EAGER), (REFERENCE, "as PyTorch's")):
        ratios = [f"{o.network.model} {r:.2f}x" for o in found if (r := o.ratio(peer)) is not None]
        if ratios:
            lines.append(f"times faster as a {GRAPH} than {words}: {', '.join(ratios)}")
    for name, reason in dict.fromkeys(pair for o in found for pair in o.failed.items()):
        networks = [o.network.model for o in found if o.failed.get(name) == reason]
        lines.append(f"{name} did not run ({', '.join(networks)}): {reason}")
    return lines + ([f"cut off: {len(found)} of {wanted} networks"] if len(found) < wanted else [])


def report(found: Sequence[Outcome], args: argparse.Namespace, machine: Mapping[str, Any]) -> Report:
    explained = "\n".join(f"- **{name}:** {way.explained}" for name, way in CONTENDERS.items())
    text = f"Milliseconds of a step with {args.opt}: median ± standard deviation; then how many times those of the {GRAPH}."
    return Report(
        name="gpu_train_step",
        title="Training steps on a GPU",
        intro=method(__doc__),
        body="\n\n".join([explained, text, table(found)]),
        headline=headline(found, len(args.networks)),
        figures=[outcome.record() for outcome in found],
        options=settings(args),
        precision="bf16" if prefers_bf16(torch.device(args.device)) else "fp32",
        machine=machine,
        versions=versions(),
        device=args.device,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.device == "cuda":
        demand_gpu("gpu_train_step")
    machine, found = set_up(args), list[Outcome]()
    for outcome in measure(args):
        found.append(outcome)
        keep(report(found, args, machine), args.output)  # a limit of time loses nothing that is measured
    write(report(found, args, machine), args.output)


if __name__ == "__main__":
    main()
