"""The accuracy after training, seed by seed: sepnet's kernels against PyTorch's operations, in float32 and in bf16.

    python benchmarks/same_accuracy.py --data-dir data --output docs/results/performance
    python benchmarks/same_accuracy.py --data-dir data --models dilated_separable --precision fp32 --iterations 300 --seeds 5
    python benchmarks/same_accuracy.py --data-dir data --recipe wang2018-modern --output docs/results/performance

Every run is `sepnet train` with the recipe, wang2018-plain (SGD) if none is named, in a process of its own with SEPNET_KERNELS set;
runs of one seed begin with the same weights and see the same batches. The score is that of the last weights on the validation
images, a tenth of the training images; the test images are not asked. Runs of one seed drift apart with every rounding, so single
runs differ by about the deviation between seeds, and what is to agree are the means.

With --output, a finished run is kept: the same command, of the same commit, continues with those that are missing, and one with
other networks, precisions or seeds adds to them. Runs of wang2018-modern (Muon) have files of their own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _bench import Report, common_options, earlier, keep, method, set_up, settings, write
from sepnet.report import markdown_table, mean_sd

NAME = "same_accuracy"
KERNELS = {"native": "kernels", "reference": "PyTorch's operations"}
PRECISIONS = ("fp32", "bf16")
RECIPES = ("wang2018-plain", "wang2018-modern")
BUDGET = 5_000  # iterations of the recipe

Run = dict[str, Any]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__)
    parser.add_argument("--data", default="cifar10", help="a data set")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--models", nargs="+", default=["multiscale_concat", "mobilenet_units"], metavar="NAME")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--recipe", choices=RECIPES, default=RECIPES[0], help="plain: SGD; modern: Muon")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind, seeds 0, 1, ...")
    args = parser.parse_args(argv)
    if args.quick:
        args.data, args.models, args.seeds, args.iterations = "digits", args.models[:1], 1, 3
    if min(args.seeds, args.iterations) < 1:
        raise SystemExit(f"{NAME}: --seeds and --iterations must be at least 1")
    return args


def name_of(args: argparse.Namespace) -> str:
    return NAME if args.recipe == RECIPES[0] else f"{NAME}-{args.recipe.removeprefix('wang2018-')}"


def wanted(args: argparse.Namespace) -> list[Run]:
    """Seed by seed, so that every kind soon has a figure."""
    kinds = itertools.product(range(args.seeds), args.models, args.precision, KERNELS)
    return [{"model": m, "precision": p, "kernels": k, "seed": s} for s, m, p, k in kinds]


def trained(run: Run, args: argparse.Namespace) -> Run:
    """The run with its accuracy on validation data, in percent, and what it was trained on."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", args.data, "--data-dir", args.data_dir, "--model", run["model"], "--recipe", args.recipe]
        words += ["--iterations", args.iterations, "--seed", run["seed"], "--workers", args.threads, "--device", "cpu"]
        words += ["--amp" if run["precision"] == "bf16" else "--no-amp", "--output", Path(folder, "run")]
        surroundings = os.environ | {"SEPNET_KERNELS": run["kernels"]}
        command = [sys.executable, "-m", "sepnet", *map(str, words)]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "sepnet train failed").splitlines()[-1]
            raise SystemExit(f"{NAME}: {last.removeprefix('error: ')}")
        record = json.loads(Path(folder, "run", "run.json").read_text(encoding="utf-8"))
    computed = record["environment"]["kernels"]
    if (computed == "PyTorch") != (run["kernels"] == "reference"):
        raise SystemExit(f"{NAME}: asked for the {run['kernels']} path, '{computed}' has served; see sepnet info --kernels")
    return run | {"accuracy": round(record["result"]["val"]["accuracy"], 3), "data": record["data_title"], "computed": computed}


def difference(runs: Sequence[Run], model: str, precision: str) -> tuple[float, float] | None:
    """Mean of the kernels' accuracy less that of PyTorch's operations, and its standard error; None below two seeds each."""
    found = [accuracies(runs, model, precision, kernels) for kernels in KERNELS]
    if min(map(len, found)) < 2:
        return None
    sides = [mean_sd(values) for values in found]
    error = math.sqrt(sum((side.sd or 0.0) ** 2 / side.n for side in sides))
    return sides[0].mean - sides[1].mean, error


def accuracies(runs: Sequence[Run], model: str, precision: str, kernels: str) -> list[float]:
    wanted_kind = (model, precision, kernels)
    return [run["accuracy"] for run in runs if (run["model"], run["precision"], run["kernels"]) == wanted_kind]


def table(runs: Sequence[Run], models: Sequence[str]) -> str:
    rows = []
    for model, precision in itertools.product(models, PRECISIONS):
        cells = [_mean(accuracies(runs, model, precision, kernels)) for kernels in KERNELS]
        if not any(cells):
            continue
        found = difference(runs, model, precision)
        rows.append([model, precision, *cells, f"{found[0]:+.2f} ± {found[1]:.2f}" if found else ""])
    return markdown_table(["network", "precision", *KERNELS.values(), "difference, standard error"], rows)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = mean_sd(list(values))
    return f"{found.mean:.2f} ± {found.sd:.2f} ({found.n})" if found.sd is not None else f"{found.mean:.2f} (1)"


def headline(runs: Sequence[Run], models: Sequence[str]) -> list[str]:
    lines = []
    for model, precision in itertools.product(models, PRECISIONS):
        found = difference(runs, model, precision)
        if found is not None:
            verdict = "within" if abs(found[0]) <= 2 * found[1] else "OUTSIDE"
            lines.append(f"{model}, {precision}: {found[0]:+.2f} points with the kernels, {verdict} two standard errors of 0")
    return lines or ["too few seeds for a difference"]


def report(runs: Sequence[Run], args: argparse.Namespace, machine: Mapping[str, Any]) -> Report:
    asked = [run for run in runs if run["model"] in args.models]
    budget = f"; a reduced budget, {BUDGET:,} in the recipe" if args.iterations < BUDGET else ""
    sections = [
        f"Data: {asked[0]['data']}. {args.iterations:,} iterations of the recipe's batch{budget}.",
        "Validation accuracy in percent, mean ± standard deviation (number of seeds).",
        table(asked, args.models),
    ]
    return Report(
        name=name_of(args),
        title=f"Accuracy with the kernels and without, {args.recipe}",
        intro=method(__doc__),
        body="\n\n".join(sections),
        headline=headline(asked, args.models),
        figures=list(runs),
        options=settings(args),
        precision="bf16 and fp32",
        machine=machine,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    machine = set_up(args)
    runs: list[Run] = earlier(args.output, name_of(args), args, ("seeds", "models", "precision")) or []
    done = [{key: run[key] for key in ("model", "precision", "kernels", "seed")} for run in runs]
    missing = [run for run in wanted(args) if run not in done]
    for number, run in enumerate(missing, 1):
        runs.append(trained(run, args))
        words = (run["model"], run["precision"], KERNELS[run["kernels"]], f"seed {run['seed']}: {runs[-1]['accuracy']:.2f} %")
        print(f"{number}/{len(missing)} {', '.join(words)}", file=sys.stderr, flush=True)
        keep(report(runs, args, machine), args.output)
    write(report(runs, args, machine), args.output)


if __name__ == "__main__":
    main()
