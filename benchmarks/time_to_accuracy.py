"""Seconds of training until a network is right on a given share of the test images: sepnet against a plain PyTorch loop.

    python benchmarks/time_to_accuracy.py --data-dir data --output docs/results/performance
    python benchmarks/time_to_accuracy.py --data-dir data --seeds 1 --max-iterations 500

The accuracy is the 72.4 % of Wang et al. 2018 (Table 4, method 1) on CIFAR-10, the recipe sepnet's wang2018-modern: both contenders
start from the same weights and see the same augmented batches, the same optimiser and the same rates. sepnet runs its engine; the
plain loop runs torch.nn modules in NCHW and float32, and its optimiser by PyTorch's operations. Each is a process
of its own; they take turns, one evaluation interval each, until both are there. The clock runs from the first batch; evaluations
are reported apart. Loading the data and start-up are left out. The test images say when to stop here, so the accuracy is no result.

With --output, a finished seed is kept: the same command continues with the seeds that are missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _bench import Report, common_options, earlier, method, set_up, settings, threads_suffix, write
from _workers import Worker, WorkerError, worker
from sepnet.report import markdown_table, mean_sd

OURS, PLAIN = "sepnet", "PyTorch"
JOBS = {OURS: "ours", PLAIN: "plain"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    parser.add_argument("--data", default="cifar10", help="a data set with a test split")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--model", default="multiscale_concat")
    parser.add_argument("--target", type=float, default=72.4, help="top-1 accuracy on the test images in percent")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contender, seeds 0, 1, ...")
    parser.add_argument("--iterations", type=int, help="length of the recipe's schedule; None: its own, 5000")
    parser.add_argument("--max-iterations", type=int, help="give up after so many, the schedule staying as it is")
    parser.add_argument("--eval-every", type=int, default=50, help="iterations between two evaluations")
    parser.add_argument("--peer-border", choices=("layer", "once"), default="layer", help="see train_step.py")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.eval_every, args.max_iterations = 1, 2, 4
    if min(args.seeds, args.eval_every, args.iterations or 1, args.max_iterations or 1) < 1:
        raise SystemExit("time_to_accuracy: --seeds, --eval-every and the numbers of iterations must be at least 1")
    return args


def race_to(args: argparse.Namespace, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train both with ``seed``; a record of each, and what the workers say of data and recipe."""
    job = {name: getattr(args, name) for name in ("data", "model", "eval_every", "iterations", "threads")}
    job |= {"data_dir": str(args.data_dir), "border": args.peer_border, "seed": seed}
    runs: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, kind in JOBS.items():
            workers[name] = stack.enter_context(worker("_accuracy_worker.py", job | {"kind": kind}))
            runs[name] = {"seed": seed, "contender": name, "reached": False, "ms": 0.0, "evaluation_ms": 0.0, "curve": []}
        facts = workers[OURS].facts
        last = min(facts["iterations"], args.max_iterations or facts["iterations"])
        under_way = list(JOBS)
        while under_way:
            for name in tuple(under_way):
                if _one_interval(workers[name], runs[name], args.target, last):
                    runs[name]["peak_mib"] = workers[name].ask({"end": True})["peak_mib"]
                    under_way.remove(name)
    return list(runs.values()), facts


def _one_interval(runner: Worker, run: dict[str, Any], target: float, last: int) -> bool:
    """Let the worker train to its next evaluation; whether its run is over."""
    answer = runner.ask({"steps": 1})
    note = answer["notes"][-1]
    run["ms"] = round(run["ms"] + sum(answer["ms"]), 2)
    run["evaluation_ms"] = round(run["evaluation_ms"] + note["evaluation_ms"], 2)
    run["iterations"], run["accuracy"] = note["iteration"], round(note["accuracy"], 3)
    run["curve"].append([run["iterations"], run["accuracy"], run["ms"], run["evaluation_ms"]])
    run["reached"] = note["accuracy"] >= target
    print(
        f"seed {run['seed']}, {run['contender']}: {run['iterations']} iterations, {run['accuracy']:.2f} %, {run['ms'] / 1e3:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    return run["reached"] or run["iterations"] >= last


def kept(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs of an earlier call that this one continues, and the facts they stand on."""
    figures = earlier(args.output, name_of(args), args, ("seeds",)) or {}
    return figures.get("runs", []), figures.get("facts", {})


def name_of(args: argparse.Namespace) -> str:
    return f"time_to_accuracy-{threads_suffix(args)}"


def training_seconds(run: Mapping[str, Any]) -> float:
    """Without the evaluations."""
    seconds: float = (run["ms"] - run["evaluation_ms"]) / 1e3
    return seconds


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for name in JOBS:
        mine = [run for run in runs if run["contender"] == name]
        there = [run for run in mine if run["reached"]]
        columns = [
            [run["iterations"] for run in there],
            [training_seconds(run) for run in there],
            [run["evaluation_ms"] / 1e3 for run in there],
        ]
        cells = [_mean(values, digits) for values, digits in zip(columns, (0, 1, 1), strict=True)]
        memory = f"{max(run['peak_mib'] for run in mine):,.0f}" if mine else ""
        rows.append([name, f"{len(there)} of {len(mine)}", *cells, memory])
    return markdown_table(["", "reached", "iterations", "training s", "evaluations s", "peak MiB"], rows)


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    found = mean_sd(list(values))
    spread = f" ± {found.sd:.{digits}f}" if found.sd is not None else ""
    return f"{found.mean:.{digits}f}{spread}"


def ratios(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """How many times sooner sepnet was there, seed by seed."""
    seconds = {(run["contender"], run["seed"]): training_seconds(run) for run in runs if run["reached"]}
    return [seconds[PLAIN, s] / t for (name, s), t in seconds.items() if name == OURS and (PLAIN, s) in seconds]


def headline(runs: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> list[str]:
    found = ratios(runs)
    if not found:
        best = max((run["accuracy"] for run in runs), default=0.0)
        return [f"{args.target:g} % was not reached by both within the iterations allowed (best {best:.2f} %)"]
    times = [statistics.fmean(training_seconds(r) for r in runs if r["contender"] == name and r["reached"]) for name in JOBS]
    return [
        f"{args.model} reaches {args.target:g} % after {times[0]:.1f} s of training, a plain PyTorch loop after {times[1]:.1f} s, "
        f"that is {_mean(found, 2)} times as long (n = {len(found)})"
    ]


def report(
    runs: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], args: argparse.Namespace, machine: Mapping[str, Any]
) -> Report:
    sections = [
        f"Data: {facts['data_title']}. Schedule of {facts['iterations']} iterations of 128, evaluated every {args.eval_every}.",
        "Mean ± standard deviation over the seeds.",
        table(runs),
    ]
    return Report(
        name=name_of(args),
        title=f"Time to {args.target:g} % on {facts['data_title']}, {threads_suffix(args).replace('-', ' ')}",
        intro=method(__doc__),
        body="\n\n".join(sections),
        headline=headline(runs, args),
        figures={"facts": dict(facts), "runs": list(runs)},
        options=settings(args),
        precision="bf16 and fp32",
        machine=machine,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    runs, facts = kept(args)
    done = {run["seed"] for run in runs}
    try:
        for seed in range(args.seeds):
            if seed not in done:
                new, facts = race_to(args, seed)
                runs = [*runs, *new]
                write(report(runs, facts, args, machine), args.output)
    except WorkerError as error:
        raise SystemExit(f"time_to_accuracy: {error}") from None
    if done and done >= set(range(args.seeds)):
        print(f"all {args.seeds} seeds are in {args.output / name_of(args)}.json already", file=sys.stderr)


if __name__ == "__main__":
    main()
