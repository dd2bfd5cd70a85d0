"""The depthwise kernels against PyTorch's: every shape of every registered network and a sweep, bf16 and fp32, both directions.

    python benchmarks/kernels.py --output docs/results/performance
    python benchmarks/kernels.py --networks separable_cnn dsrnet50 --threads 1
    python benchmarks/kernels.py --sweep --dtype bf16

sepnet is the function that the networks call, with its choice of path; the kernel is the native one alone. PyTorch's F.conv2d runs
in its default layout (NCHW) and in channels_last. All of them run in turns on the same values, whose channels-last copies they pass
on from round to round, and the results are compared first. At the shapes of networks F.conv2d in channels_last runs a second time,
as a contender of its own: how often it falls behind itself says what chance does. The floor is the time that this machine takes to
copy as many bytes as must move, by the copy bandwidth measured in the same run on 512 MiB. Every contender has its large buffers
kept by the allocator (see sepnet.engine.devices.keep_large_buffers), so that the figures are those of the kernels alone.

With neither --networks nor --sweep both are measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from _bench import (
    Report,
    common_options,
    figures_of,
    in_turns,
    keep,
    last_level_cache,
    method,
    plus_minus,
    set_up,
    settings,
    threads_suffix,
    write,
)
from _kernel_cases import CHANNELS_LAST, DTYPES, KERNEL, NCHW, OURS, Case, Copy
from _kernel_targets import Row, misses, verdicts
from _shapes import Shape, network_shapes, sweep
from sepnet.engine.devices import keep_large_buffers
from sepnet.errors import SepnetError
from sepnet.report import markdown_table

DIRECTIONS = ("forward", "backward")
KEEP_EACH = 40  # rows between two savings of what there is


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="only shapes of networks: of all, or of these")
    parser.add_argument("--sweep", action="store_true", help="only the sweep (with --networks: as well)")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=0.1, help="for the contenders of one shape, type and direction together")
    parser.add_argument("--rounds", type=int, default=30, help="calls measured of each contender at most; at least 5")
    args = parser.parse_args(argv)
    if args.networks is None and not args.sweep:
        args.networks, args.sweep = [], True
    if args.quick:
        args.seconds, args.rounds = 0.0, 5
    return args


def chosen(args: argparse.Namespace) -> list[tuple[Shape, list[str]]]:
    """Shapes with the networks that run them; the sweep's are run by none."""
    found: list[tuple[Shape, list[str]]] = []
    if args.networks is not None:
        found += network_shapes(args.networks).items()
    if args.sweep:
        found += [(shape, []) for shape in sweep()]
    if not args.quick:
        return found
    small = [(shape._replace(batch=2), users) for shape, users in found]
    return [*islice((s for s in small if s[1]), 0, None, 20), *islice((s for s in small if not s[1]), 0, None, 60)]


def measure(args: argparse.Namespace, copy: Copy) -> Iterator[list[Row]]:
    """A row for each type and direction of a shape."""
    shapes = chosen(args)
    for number, (shape, users) in enumerate(shapes):
        if number % 10 == 0:
            copy.sample()
            print(f"{number} of {len(shapes)} shapes", file=sys.stderr, flush=True)
        rows = []
        for dtype in args.dtype:
            case = Case(shape, dtype, control=bool(users))
            case.check()
            for direction in DIRECTIONS:
                times = in_turns(
                    case.calls(direction), rounds=args.rounds, warm_up=case.copies, seconds=args.seconds, cycle=case.copies
                )
                contenders = {name: figures_of(values) for name, values in times.items()}
                rows.append(Row(shape, tuple(users), dtype, direction, contenders))
        yield rows
    copy.sample()


def record(row: Row, copy_gb_per_s: float) -> dict[str, Any]:
    """The row as JSON values."""
    s, g = row.shape, row.shape.geometry
    return {
        "networks": list(row.networks),
        "input": [s.batch, s.channels, s.height, s.width],
        "kernels": g.kernels,
        "stride": g.stride,
        "padding": g.paddings,
        "dilation": g.dilations,
        "bias": s.bias,
        "input_gradient": s.wants_x,
        "dtype": row.dtype,
        "direction": row.direction,
        "bytes": row.bytes,
        **row.figures,
        "ratio": round(row.ratio, 3),
        "ratio_channels_last": round(row.over(CHANNELS_LAST), 3),
        "gb_per_s": round(row.gb_per_s, 2),
        "share_of_floor": round(row.gb_per_s / copy_gb_per_s, 3),
    }


def network_table(rows: list[Row], copy_gb_per_s: float) -> str:
    header = ["shape", "type", "", "sepnet ms", "kernel ms", "NCHW ms", "channels_last ms", "ratio", "GB/s", "of the floor"]

    def cells(row: Row) -> list[str]:
        f = row.figures
        alone = f"{f[KERNEL]['median_ms']:.2f}" if KERNEL in f else ""
        times = [plus_minus(f[OURS]), alone, plus_minus(f[NCHW]), plus_minus(f[CHANNELS_LAST])]
        rate = row.gb_per_s
        return [
            row.shape.label(),
            row.dtype,
            row.direction,
            *times,
            f"{row.ratio:.2f}",
            f"{rate:.1f}",
            f"{rate / copy_gb_per_s:.0%}",
        ]

    return markdown_table(header, [cells(row) for row in rows if row.networks])


def sweep_table(rows: list[Row], copy_gb_per_s: float) -> str:
    """A line for each kernel, stride and dilation: least and median over channels and maps."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        g = row.shape.geometry
        if not row.networks:
            what = (f"{g.kernels[0][0]}x{g.kernels[0][1]}", str(g.stride[0]), str(g.dilations[0][0]))
            groups.setdefault((*what, row.dtype, row.direction), []).append(row)
    lines = []
    for key, members in sorted(groups.items()):
        shares = [row.gb_per_s / copy_gb_per_s for row in members]
        spans = [[row.ratio for row in members], [row.over(CHANNELS_LAST) for row in members]]
        ratios = [f"{f(s):.2f}" for s in spans for f in (min, statistics.median)]
        lines.append([*key, str(len(members)), *ratios, f"{min(shares):.0%}", f"{statistics.median(shares):.0%}"])
    header = ["kernel", "stride", "dilation", "type", "", "shapes", "ratio: least", "median", "to channels_last: least", "median"]
    return markdown_table([*header, "of the floor: least", "median"], lines)


def report(rows: list[Row], copy: Copy, args: argparse.Namespace, machine: Mapping[str, Any]) -> Report:
    rate, cache = statistics.median(copy.samples), last_level_cache()
    judged = verdicts(rows, rate, cache)
    spread = f"{min(copy.samples):.1f} to {max(copy.samples):.1f}"
    sections = [f"Copy bandwidth: {rate:.1f} GB/s (median of {len(copy.samples)}, {spread}), bytes read and written."]
    if any(row.networks for row in rows):
        text = "Medians ± standard deviation. Ratio: the better of PyTorch's two layouts to sepnet."
        sections += ["## Shapes of the registered networks", text, network_table(rows, rate)]
    if any(not row.networks for row in rows):
        text = "Channels 64, 256; maps of 8, 16, 32, 56; batch 128, less for the largest. Every shape stands in the JSON file."
        sections += ["## Sweep", text, sweep_table(rows, rate)]
    sections += ["## Targets that were missed", misses(judged)]
    return Report(
        name=f"kernels-{threads_suffix(args)}",
        title=f"Depthwise kernels against F.conv2d, {threads_suffix(args).replace('-', ' ')}",
        intro=method(__doc__),
        body="\n\n".join(sections),
        headline=[v.line for v in judged],
        figures=[record(row, rate) for row in rows],
        options=settings(args) | {"copy_gb_per_s": rate, "copy_samples": len(copy.samples)},
        precision=" and ".join(args.dtype),
        machine=machine,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    keep_large_buffers()
    copy = Copy()
    try:
        rows: list[Row] = []
        for of_shape in measure(args, copy):
            rows += of_shape
            if len(rows) % KEEP_EACH < len(of_shape):
                keep(report(rows, copy, args, machine), args.output)
    except (SepnetError, ArithmeticError) as error:
        raise SystemExit(f"kernels: {error}") from None
    write(report(rows, copy, args, machine), args.output)


if __name__ == "__main__":
    main()
