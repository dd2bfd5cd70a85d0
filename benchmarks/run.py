"""Every benchmark by one command: JSON and Markdown files, and an index of them that says what machine it was.

    python benchmarks/run.py --data-dir data
    python benchmarks/run.py --only train_step inference --threads 2 --keras-python ~/keras/bin/python
    python benchmarks/run.py --index-only

On two quiet cores all of it takes about an hour for each number of threads (train_step 10 minutes, roofline 1, inference 7,
time_to_accuracy 22, kernels 25, pointwise 5, muon 1), augment once a minute and same_accuracy once 20. A benchmark that fails is
named at the end; the others run. The index is drawn from the JSON files that lie in the folder, whenever they were made; folders in
it hold those of other machines, and have indices of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bench import RESULTS
from sepnet.engine import atomic_write
from sepnet.report import Environment, markdown_table, provenance

HERE = Path(__file__).parent
WITH_THREADS = ("train_step", "roofline", "inference", "time_to_accuracy", "kernels", "pointwise", "muon")
ON_DATA = ("time_to_accuracy", "same_accuracy")
BENCHMARKS = (*WITH_THREADS, "augment", "same_accuracy")
INDEX = "README.md"


@dataclass(frozen=True)
class Result:
    """A benchmark's JSON file."""

    stem: str
    title: str
    command: str
    finished: str
    environment: Environment
    headline: tuple[str, ...]
    threads: int


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS)
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=sorted({1, cores}), help=f"numbers of threads (default 1 and {cores})"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where CIFAR-10 lies, for what trains on it")
    parser.add_argument("--keras-python", help="interpreter that has TensorFlow, if not this one")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it works, measures nothing")
    parser.add_argument("--index-only", action="store_true", help="run nothing, draw the index anew")
    args = parser.parse_args(argv)
    if args.quick and args.output == RESULTS:
        parser.error("--quick measures nothing that belongs there: name another --output")
    return args


def commands(args: argparse.Namespace) -> list[list[str]]:
    """One a benchmark and number of threads."""
    found = []
    for name in BENCHMARKS:
        if name not in args.only:
            continue
        for threads in args.threads if name in WITH_THREADS else [1 if name == "augment" else max(args.threads)]:
            words = [sys.executable, str(HERE / f"{name}.py"), "--threads", str(threads), "--output", str(args.output)]
            words += ["--quick"] if args.quick else []
            words += ["--keras-python", args.keras_python] if args.keras_python and name == "train_step" else []
            words += ["--data-dir", str(args.data_dir)] if name in ON_DATA else []
            found.append(words)
    return found


def run(words: Sequence[str]) -> bool:
    """Whether it ended well; what it prints but the page, which is in its file, is shown."""
    print(f"--- {Path(words[1]).name} {' '.join(words[2:])}", file=sys.stderr, flush=True)
    return subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode == 0


def results(folder: Path) -> list[Result]:
    """The JSON files of benchmarks in the folder; others are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "benchmark" not in content:
            continue
        values = {key: value for key, value in content["environment"].items() if key != "peers"}
        found.append(
            Result(
                stem=path.stem,
                title=content["title"],
                command=content["command"],
                finished=content["finished"],
                environment=Environment.model_validate(values),
                headline=tuple(content["headline"]),
                threads=values["threads"],
            )
        )
    return found


def others(folder: Path) -> list[str]:
    """A line for each folder with results of another machine: a link, processor, kernels, how many there are."""
    lines = []
    for path in sorted(p for p in folder.glob("*") if p.is_dir()):
        found = results(path)
        if found:
            kernels, processors = ({getattr(r.environment, name) for r in found} for name in ("kernels", "processor"))
            what = f"{', '.join(sorted(processors))}, kernels: {', '.join(sorted(kernels))}"
            lines.append(f"- [{path.name}]({path.name}): {what} ({len(found)})")
    return lines


def index(found: Sequence[Result], elsewhere: Sequence[str], benchmarks: str) -> str:
    """The page of all results. elsewhere: lines of ``others``; benchmarks: where their programs are, from the page."""
    rows = [
        [
            r.stem,
            str(r.threads),
            r.environment.processor,
            str(r.environment.cores),
            r.environment.kernels,
            r.environment.commit or "",
            r.finished[:10],
        ]
        for r in found
    ]
    parts = [
        "# Performance",
        "Drawn by `python benchmarks/run.py` from the files beside it. Figures are medians of contenders that took turns in one "
        f"run; only figures of one file are to be compared. The [benchmarks]({benchmarks}) say what they measure.",
        markdown_table(["file", "threads", "processor", "cores", "kernels", "commit", "date"], rows),
        "\n".join(provenance(found, "python benchmarks/run.py")),
    ]
    if elsewhere:
        parts += ["## Other machines", "\n".join(elsewhere)]
    for result in found:
        parts += [f"## [{result.title}]({result.stem}.md)", "\n".join(f"- {line}" for line in result.headline)]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    wanted = [] if args.index_only else commands(args)
    failed = [words for words in wanted if not run(words)]
    found = results(args.output)
    page = index(found, others(args.output), Path(os.path.relpath(HERE, args.output)).as_posix()).encode()
    atomic_write(args.output / INDEX, lambda file: file.write(page))
    print(f"wrote {args.output / INDEX}: {len(found)} results", file=sys.stderr)
    for words in failed:
        print(f"failed: {Path(words[1]).name} {' '.join(words[2:])}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
