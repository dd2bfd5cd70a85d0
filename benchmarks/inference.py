"""Forward passes of the papers' networks: latency of one image, throughput of a batch, with percentiles.

    python benchmarks/inference.py --output docs/results/performance
    python benchmarks/inference.py --networks multiscale_concat --batch-sizes 1 32 128 --threads 1

Random images that are there already, evaluation mode, no gradients. Every contender runs in a process of its own, in turns of half
a second within one run: sepnet's network with its kernels, channels-last, in float32 and in bf16 (autocast, as evaluation does it);
PyTorch over the same layers as torch.nn modules, eager, in its default layout and channels-last. The network alone is timed:
decoding and preprocessing are not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from _bench import Report, common_options, method, set_up, settings, threads_suffix, write
from _contest import CONTENDERS, FP32, OURS, PLAIN, PLAIN_BF16, PLAIN_LAST, Outcome, contest, contest_options
from sepnet.errors import SepnetError
from sepnet.report import markdown_table
from train_step import NETWORKS

PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    contest_options(parser, NETWORKS, (OURS, FP32, PLAIN, PLAIN_LAST, PLAIN_BF16), rounds=6, without_keras=True)
    parser.add_argument("-b", "--batch-sizes", nargs="+", type=int, default=[1, 128])
    args = parser.parse_args(argv)
    if args.quick:
        args.networks, args.batch_sizes = args.networks[:1], args.batch_sizes[:1]
        args.rounds, args.seconds = 2, 0.0
    return args


def measure(args: argparse.Namespace) -> list[Outcome]:
    found = []
    for network in args.networks:
        for batch in args.batch_sizes:
            print(f"{network}, batch {batch} ...", file=sys.stderr, flush=True)
            found.append(contest(network, "forward", batch, args))
    return found


def best_peer(outcome: Outcome) -> tuple[str, float] | None:
    """The fastest of PyTorch's ways, and how many times faster the faster of sepnet's two is."""
    ours = [name for name in (OURS, FP32) if name in outcome.figures]
    peers = [name for name in outcome.figures if name not in (OURS, FP32)]
    if not ours or not peers:
        return None
    fastest = min(peers, key=lambda name: outcome.figures[name]["median_ms"])
    return fastest, max(outcome.ratio(fastest, name) or 0.0 for name in ours)


def latency_table(found: Sequence[Outcome], names: Sequence[str]) -> str:
    def cell(outcome: Outcome, name: str) -> str:
        f = outcome.figures.get(name)
        return " / ".join(f"{f[p]:.2f}" for p in PERCENTILES) if f else ""

    rows = []
    for outcome in found:
        best = best_peer(outcome)
        last = [best[0], f"{best[1]:.2f}"] if best else ["", ""]
        rows.append([outcome.network, str(outcome.batch), *(cell(outcome, name) for name in names), *last])
    return markdown_table(["network", "batch", *(f"{name} ms" for name in names), "best of PyTorch", "to it"], rows)


def throughput_table(found: Sequence[Outcome], names: Sequence[str]) -> str:
    def cell(outcome: Outcome, name: str) -> str:
        f = outcome.figures.get(name)
        return f"{f['images_per_s']:,.0f} ± {f['images_per_s_sd']:,.0f}" if f else ""

    header = ["network", "batch", *names]
    return markdown_table(header, [[o.network, str(o.batch), *(cell(o, name) for name in names)] for o in found])


def headline(found: Sequence[Outcome]) -> list[str]:
    lines = []
    for batch in dict.fromkeys(o.batch for o in found):
        of_batch = [o for o in found if o.batch == batch]
        to_plain = [f"{o.network} {max(o.ratio(PLAIN, n) or 0 for n in (OURS, FP32)):.2f}x" for o in of_batch if PLAIN in o.figures]
        to_best = [f"{o.network} {best[1]:.2f}x" for o in of_batch if (best := best_peer(o)) is not None]
        lines += [f"batch {batch}, times faster than PyTorch as written: {', '.join(to_plain)}"] if to_plain else []
        lines += [f"batch {batch}, than the best of PyTorch's ways: {', '.join(to_best)}"] if to_best else []
    return lines


def report(found: Sequence[Outcome], args: argparse.Namespace, machine: Mapping[str, Any]) -> Report:
    names = [name for name in args.contenders if any(name in o.figures for o in found)]
    failures = list(dict.fromkeys(f"{name} did not run: {reason}" for o in found for name, reason in o.failed.items()))
    sections = [
        "\n".join(f"- **{name}:** {CONTENDERS[name].explained}" for name in names),
        "## Milliseconds a batch",
        "Percentiles 50 / 90 / 99; then the fastest of PyTorch's ways, and how many times faster the faster of sepnet's is.",
        latency_table(found, names),
        "## Images per second",
        "Median ± standard deviation.",
        throughput_table(found, names),
    ]
    return Report(
        name=f"inference-{threads_suffix(args)}",
        title=f"Inference, {args.size}x{args.size}, {threads_suffix(args).replace('-', ' ')}",
        intro=method(__doc__),
        body="\n\n".join(sections),
        headline=[*headline(found), *failures],
        figures=[{"network": o.network, "batch": o.batch, "contenders": o.figures, "failed": o.failed} for o in found],
        options=settings(args),
        precision="bf16 and fp32",
        machine=machine,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    try:
        found = measure(args)
    except (SepnetError, TypeError) as error:
        raise SystemExit(f"inference: {error}") from None
    write(report(found, args, machine), args.output)


if __name__ == "__main__":
    main()
