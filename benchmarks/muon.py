"""Muon's update of each network's weights: by the kernels, by PyTorch's operations, and as torch.optim.Muon does it.

    python benchmarks/muon.py --output docs/results/performance
    python benchmarks/muon.py --networks separable_cnn dsrnet50 --threads 1

sepnet is the optimiser as it trains: hidden matrices by the kernels, the rest by one fused update. PyTorch's operations are the
same optimiser without the kernels. torch.optim.Muon takes matrices alone: it is given the hidden ones, those of convolutions
flattened, with as many iterations (three, which it computes in bf16), and leaves the rest. Gradients are random. The training step
is the engine's, of random images, with this update in it. All of them run in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _bench import Report, common_options, figures_of, in_turns, method, plus_minus, set_up, settings, threads_suffix, write
from _describe import build
from sepnet.engine import FitConfig, build_optimizer, make_fabric
from sepnet.engine._step import TrainingStep
from sepnet.engine.devices import keep_large_buffers
from sepnet.engine.muon import NEWTON_SCHULZ_STEPS
from sepnet.engine.optim import hidden_matrices
from sepnet.kernels import use
from sepnet.report import markdown_table

NETWORKS = ("multiscale_concat", "multiscale_add", "separable_cnn", "separable_cnn_printed", "dilated_separable", "dsrnet50")
OURS, OPERATIONS, TORCH, STEP = "sepnet", "PyTorch's operations", "torch.optim.Muon", "training step"
BATCHES = {"separable_cnn": 64, "separable_cnn_printed": 64, "dsrnet50": 32}  # of the papers, and what a processor takes
CLASSES, SIZE = 10, 32
CONFIG = FitConfig(iterations=10**9, opt="muon", lr=0.01, muon_lr=0.01, warmup=0, sched="constant")

Call = Callable[[int], object]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=40, help="calls measured of each contender; at least 5")
    args = parser.parse_args(argv)
    if args.quick:
        args.networks, args.rounds = args.networks[:1], 5
    return args


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, size=SIZE, num_classes=CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def with_gradients(name: str) -> nn.Module:
    model = network(name)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def ours(name: str, mode: str) -> Call:
    optimizer = build_optimizer(with_gradients(name), CONFIG)

    def step(_: int) -> None:
        with use(mode):  # type: ignore[arg-type]
            optimizer.step()

    return step


def torchs(name: str) -> Call:
    def flat(weight: Tensor) -> nn.Parameter:
        matrix = nn.Parameter(weight.detach().flatten(1).clone())
        matrix.grad = torch.randn_like(matrix)
        return matrix

    matrices = [flat(weight) for weight in hidden_matrices(network(name))]
    optimizer = torch.optim.Muon(matrices, lr=0.01, ns_steps=NEWTON_SCHULZ_STEPS)
    return lambda _: optimizer.step()


def training(name: str, batch: int) -> Call:
    step = TrainingStep(network(name), CONFIG, make_fabric("cpu"))
    x = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (batch,))
    for _ in range(step.warm_up):
        step(x, y)
    return lambda _: step(x, y)


def measure(name: str, rounds: int) -> dict[str, Any]:
    batch = BATCHES.get(name, 128)
    work = {OURS: ours(name, "native"), OPERATIONS: ours(name, "reference"), TORCH: torchs(name), STEP: training(name, batch)}
    figures = {who: figures_of(times) for who, times in in_turns(work, rounds=rounds).items()}
    return {"network": name, "batch": batch, **figures}


def table(rows: list[dict[str, Any]]) -> str:
    header = [
        "network",
        "batch",
        *(f"{who} ms" for who in (OURS, OPERATIONS, TORCH)),
        "to the operations",
        "to torch.optim",
        f"{STEP} ms",
    ]

    def cells(row: dict[str, Any]) -> list[str]:
        times = [plus_minus(row[who]) for who in (OURS, OPERATIONS, TORCH)]
        ratios = [f"{row[who]['median_ms'] / row[OURS]['median_ms']:.2f}" for who in (OPERATIONS, TORCH)]
        return [row["network"], str(row["batch"]), *times, *ratios, plus_minus(row[STEP])]

    return markdown_table(header, [cells(row) for row in rows])


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    keep_large_buffers()
    rows = [measure(name, args.rounds) for name in args.networks]
    faster = ", ".join(f"{row['network']} {row[OPERATIONS]['median_ms'] / row[OURS]['median_ms']:.2f}x" for row in rows)
    report = Report(
        name=f"muon-{threads_suffix(args)}",
        title=f"Muon's update, {threads_suffix(args).replace('-', ' ')}",
        intro=method(__doc__),
        body=f"Medians ± standard deviation of an update, n = {args.rounds}.\n\n{table(rows)}",
        headline=[f"times faster than by PyTorch's operations: {faster}"],
        figures=rows,
        options=settings(args),
        precision="bf16" if machine["bf16_instructions"] else "fp32",
        machine=machine,
    )
    write(report, args.output)


if __name__ == "__main__":
    main()
