"""What the benchmarks share: options, timing in turns, statistics, the machine, and the files that they write.

A benchmark measures its contenders in turns within one run, so that a machine that slows down slows all of them; warm-up stays
outside the clock, and figures are medians with their deviation and number. It leaves NAME.json with everything and NAME.md with the
tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch

from sepnet.engine import atomic_write, prefers_bf16
from sepnet.report import Environment, environment, provenance
from sepnet.report.record import now

__all__ = [
    "Figures",
    "Report",
    "command",
    "common_options",
    "earlier",
    "figures_of",
    "in_turns",
    "keep",
    "last_level_cache",
    "method",
    "percentile",
    "plus_minus",
    "rounded",
    "set_up",
    "settings",
    "threads_suffix",
    "write",
]

RESULTS = Path("docs/results/performance")

Figures: TypeAlias = dict[str, float | int]


# --- options -----------------------------------------------------------------------------------------------------------------


def common_options(description: str | None, *, threads: int | None = None) -> argparse.ArgumentParser:
    """A parser with --threads, --quick and --output. ``threads``: its default; None for all cores."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    count = threads or os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=count, help=f"of every contender (default {count})")
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it works, measures nothing")
    parser.add_argument("--output", type=Path, help=f"folder to leave the JSON and Markdown files in, such as {RESULTS}")
    return parser


def set_up(args: argparse.Namespace) -> dict[str, Any]:
    """Set threads and seed of this process; returns what decides the speed beside ``sepnet.report.environment``.

    Says so where the machine has other work to do.
    """
    if args.threads < 1:
        raise SystemExit(f"--threads must be at least 1, got {args.threads}")
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    load = _load()
    if load is not None and load > 0.3:
        print(f"note: the machine has other work to do (load {load}): figures will not be exact", file=sys.stderr)
    return {
        "bf16_instructions": prefers_bf16(torch.device("cpu")),
        "last_level_cache_bytes": last_level_cache(),
        "load_at_start": load,
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON values, without those that name places on this machine."""
    return {name: value for name, value in vars(args).items() if not isinstance(value, Path)}


def threads_suffix(args: argparse.Namespace) -> str:
    """ "1-thread", "2-threads": ends the names of the files, which stand beside each other."""
    return f"{args.threads}-thread{'s' if args.threads > 1 else ''}"


def method(description: str | None) -> str:
    """The paragraph of a benchmark's docstring that says how it measures: the one after its commands."""
    return " ".join((description or "").split("\n\n")[2].split())


def command() -> str:
    """What was typed, without the folders above the repository."""
    words = [f".../{Path(word).name}" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


# --- timing ------------------------------------------------------------------------------------------------------------------


def in_turns(
    work: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warm_up: int = 3,
    seconds: float | None = None,
    least: int = 5,
    cycle: int = 1,
    settle: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of each call, the contenders taking turns, in another order each round: what one leaves in the caches meets all.

    Args:
        work: functions of the number of the round, which is 0 in the warm-up (with ``cycle``, each number below it).
        seconds: no further round begins after so long, once there are ``least``, and a multiple of ``cycle``.
        settle: called before the clock is read, to wait for an accelerator.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    names, order = list(work), random.Random(0)
    begin = time.perf_counter()
    for number in range(-warm_up, rounds):
        if number == 0:
            begin = time.perf_counter()
        if seconds is not None and number >= least and number % cycle == 0 and time.perf_counter() - begin > seconds:
            break
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            work[name](number if number >= 0 else number % cycle)
            if settle is not None:
                settle()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def figures_of(times: Sequence[float], *shares: float) -> Figures:
    """Median, mean, standard deviation and number of ``times`` in ms, and their percentiles ("p90_ms" for 0.9)."""
    figures: Figures = {
        "median_ms": statistics.median(times),
        "mean_ms": statistics.fmean(times),
        "sd_ms": statistics.stdev(times) if len(times) > 1 else 0.0,
        "n": len(times),
    }
    return rounded(figures | {f"p{round(100 * share)}_ms": percentile(times, share) for share in shares})


def rounded(figures: Mapping[str, float | int]) -> Figures:
    """Five significant digits are more than any clock is good for."""
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in figures.items()}


def plus_minus(figures: Mapping[str, float | int], digits: int = 2) -> str:
    """ "0.51 ± 0.02": the median and the standard deviation."""
    return f"{figures['median_ms']:.{digits}f} ± {figures['sd_ms']:.{digits}f}"


# --- the machine -------------------------------------------------------------------------------------------------------------


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def last_level_cache() -> int | None:
    """Bytes of the largest cache that the first core uses; None where the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = file.read_text().strip()[:-1], file.read_text().strip()[-1]
        sizes.append(int(number) * {"K": 2**10, "M": 2**20}.get(unit, 1))
    return max(sizes, default=None)


# --- results -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        name: of the files, without suffix.
        title: of the page.
        intro: sentences under it: what was measured, and how.
        body: Markdown of the tables.
        headline: lines for the index of all benchmarks: what was reached, and what was missed.
        figures: JSON values.
        options: what was asked for, see ``settings``.
        precision: "fp32", "bf16" or both.
        machine: see ``set_up``.
        versions: of the peers.
        device: that was measured.
    """

    name: str
    title: str
    intro: str
    body: str
    headline: Sequence[str]
    figures: Any
    options: Mapping[str, Any]
    precision: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    finished: str = field(default_factory=now)
    command: str = field(default_factory=command)

    @cached_property
    def environment(self) -> Environment:
        """Versions and hardware."""
        return environment(torch.device(self.device), self.precision)

    def markdown(self) -> str:
        """The page."""
        facts = [*provenance([self]), *(f"- **{name}:** {version}" for name, version in self.versions.items())]
        facts.append(f"- **Load of the machine at the start:** {self.machine['load_at_start']}")
        lines = [f"# {self.title}", "", self.intro, "", *facts, "", *(f"- {line}" for line in self.headline), "", self.body]
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """The figures, one line a record where they are a list."""
        content = {
            "benchmark": self.name,
            "title": self.title,
            "command": self.command,
            "finished": self.finished,
            "environment": self.environment.model_dump() | {"peers": dict(self.versions)},
            "machine": dict(self.machine),
            "options": dict(self.options),
            "headline": list(self.headline),
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)[:-2]
        if isinstance(self.figures, list):
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in self.figures)
            return f'{text},\n  "figures": [\n{rows}\n  ]\n}}\n'
        return json.dumps(content | {"figures": self.figures}, indent=2, ensure_ascii=False) + "\n"


def earlier(folder: Path | None, name: str, args: argparse.Namespace, free: Sequence[str]) -> Any:
    """The figures of an earlier call with the same code, PyTorch, machine and options, those that are ``free`` aside; else None."""
    path = Path(folder or "", f"{name}.json")
    if folder is None or not path.exists():
        return None
    any_ = dict.fromkeys(free)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        here = environment(torch.device("cpu"), "").model_dump()
        same = content["options"] | any_ == settings(args) | any_
        same &= all(content["environment"][key] == here[key] for key in ("commit", "torch", "processor", "cores"))
        return content["figures"] if same else None
    except (ValueError, KeyError, TypeError):
        return None


def keep(report: Report, folder: Path | None) -> list[Path]:
    """Leave the page and its JSON in ``folder``, each written whole or not at all: what is measured so far is not lost."""
    paths = []
    for suffix, text in ((".json", report.json()), (".md", report.markdown())) if folder is not None else ():
        path = Path(folder or "", f"{report.name}{suffix}")
        atomic_write(path, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        paths.append(path)
    return paths


def write(report: Report, folder: Path | None) -> None:
    """Print the page and keep it."""
    print(report.markdown())
    for path in keep(report, folder):
        print(f"wrote {path}", file=sys.stderr)
