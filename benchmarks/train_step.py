"""Whole training steps of the papers' networks: sepnet against PyTorch as written, PyTorch tuned, and Keras.

    python benchmarks/train_step.py --output docs/results/performance
    python benchmarks/train_step.py --networks separable_cnn dsrnet50 --threads 1 --keras-python ~/keras/bin/python

A step is forward, cross-entropy, backward and SGD with Nesterov momentum and weight decay, on one batch of random images that is
there already. Every contender runs in a process of its own, with the allocator settings that are its own: sepnet as a real run of
its engine, PyTorch as the loop of its tutorials over the same layers as torch.nn modules, Keras by train_on_batch. They take turns
of half a second within one run. Keras has no depthwise convolution that is strided and dilated: it computes all and drops three
of four. In the peers' multi-scale units the stacked convolutions pad by 1 each, which is how one would write them, and the faster
form there; --peer-border once gives them exactly sepnet's padding.

TensorFlow comes with pip install -e '.[bench]'; without it the others run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from _bench import Report, common_options, keep, method, set_up, settings, threads_suffix, write
from _contest import CONTENDERS, FP32, KERAS, OURS, PLAIN, PLAIN_BF16, Outcome, contest, contest_options
from sepnet.errors import SepnetError
from sepnet.report import markdown_table

NETWORKS = (
    "multiscale_concat",
    "multiscale_add",
    "mobilenet_units",
    "separable_cnn",
    "separable_cnn_printed",
    "dilated_separable",
    "dsrnet50_printed",
    "dsrnet50",
    "mobilenet_v1",
)
BATCH, SMALL_BATCH, LARGE = 128, 32, ("dsrnet50_printed", "dsrnet50")
TARGETS = {
    "multiscale_concat": 4.0,
    "multiscale_add": 4.0,
    "separable_cnn": 3.0,
    "separable_cnn_printed": 3.0,
    "dilated_separable": 4.0,
    "dsrnet50_printed": 2.5,
    "dsrnet50": 2.5,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    contest_options(parser, NETWORKS, (OURS, FP32, PLAIN, PLAIN_BF16, KERAS), rounds=10)
    parser.add_argument("-b", "--batch-size", type=int, help="else 128, or 32 for networks whose step takes seconds")
    parser.add_argument("--keras-python", help="interpreter that has TensorFlow, if not this one")
    args = parser.parse_args(argv)
    if args.quick:
        args.networks, args.batch_size = args.networks[:1], min(args.batch_size or BATCH, 8)
        args.rounds, args.seconds = 2, 0.0
    return args


def measure(args: argparse.Namespace) -> Iterator[Outcome]:
    for network in args.networks:
        print(f"{network} ...", file=sys.stderr, flush=True)
        outcome = contest(network, "train", args.batch_size or (SMALL_BATCH if network in LARGE else BATCH), args)
        for name, reason in outcome.failed.items():
            print(f"{network}, {name}: {reason}", file=sys.stderr)
        yield outcome


def speed_table(found: Sequence[Outcome], names: Sequence[str]) -> str:
    def speed(outcome: Outcome, name: str) -> str:
        f = outcome.figures.get(name)
        return f"{f['images_per_s']:,.0f} ± {f['images_per_s_sd']:,.0f}" if f else ""

    peers = [name for name in names if name not in (OURS, FP32)]
    rows = []
    for outcome in found:
        ratios = [outcome.ratios.get(peer) for peer in peers]
        rows.append(
            [
                outcome.network,
                str(outcome.batch),
                *(speed(outcome, name) for name in names),
                *("" if r is None else f"{r[0]:.2f} ± {r[1]:.2f}" for r in ratios),
            ]
        )
    return markdown_table(["network", "batch", *names, *(f"to {peer}" for peer in peers)], rows)


def memory_table(found: Sequence[Outcome], names: Sequence[str]) -> str:
    def memory(outcome: Outcome, name: str) -> str:
        f = outcome.figures.get(name)
        return f"{f['peak_mib']:,.0f} ({f['idle_mib']:,.0f})" if f else ""

    return markdown_table(["network", *names], [[o.network, *(memory(o, name) for name in names)] for o in found])


def verdicts(found: Sequence[Outcome]) -> list[str]:
    """A line for each target: reached, or by how much missed."""
    lines = []
    for peer in (PLAIN, KERAS):
        reached = {o.network: r for o in found if o.network in TARGETS and (r := o.ratio(peer)) is not None}
        if not reached:
            continue
        missed = [f"{n} {r:.2f}x of {TARGETS[n]:g}x" for n, r in reached.items() if r < TARGETS[n]]
        shown = ", ".join(f"{n} {r:.2f}x" for n, r in reached.items())
        lines.append(
            f"times faster than {peer}: {shown}; " + (f"targets missed: {', '.join(missed)}" if missed else "all targets reached")
        )
    return lines


def ratios_of(outcome: Outcome) -> dict[str, dict[str, float]]:
    return {name: {"median": round(median, 3), "sd": round(sd, 3)} for name, (median, sd) in outcome.ratios.items()}


def report(found: Sequence[Outcome], args: argparse.Namespace, machine: Mapping[str, Any]) -> Report:
    names = [name for name in args.contenders if any(name in o.figures for o in found)]
    failures = list(dict.fromkeys(f"{name} did not run: {reason}" for o in found for name, reason in o.failed.items()))
    sections = [
        "\n".join(f"- **{name}:** {CONTENDERS[name].explained}" for name in names),
        "## Images per second",
        "Median ± standard deviation over the steps; then how many times faster sepnet is, the same over the rounds.",
        speed_table(found, names),
        "## Peak memory",
        "MiB held at most, and before the first step.",
        memory_table(found, names),
    ]
    return Report(
        name=f"train_step-{threads_suffix(args)}",
        title=f"Training steps, {args.size}x{args.size}, {threads_suffix(args).replace('-', ' ')}",
        intro=method(__doc__),
        body="\n\n".join(sections),
        headline=[*verdicts(found), *failures],
        figures=[
            {"network": o.network, "batch": o.batch, "contenders": o.figures, "ratios": ratios_of(o), "failed": o.failed}
            for o in found
        ],
        options=settings(args),
        precision="bf16 and fp32",
        machine=machine,
        versions={name: version for o in found for name, version in o.versions.items()},
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    try:
        found: list[Outcome] = []
        for outcome in measure(args):
            found.append(outcome)
            keep(report(found, args, machine), args.output)
    except (SepnetError, TypeError) as error:
        raise SystemExit(f"train_step: {error}") from None
    write(report(found, args, machine), args.output)


if __name__ == "__main__":
    main()
