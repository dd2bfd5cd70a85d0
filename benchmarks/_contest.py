"""sepnet and its peers on one network, each in a process of its own, stepping in turns."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from _bench import Figures, figures_of, rounded
from _describe import build, describe
from _workers import Worker, WorkerError, race, worker
from sepnet.engine import prefers_bf16
from sepnet.measure import count
from sepnet.nn import MultiScaleUnit

__all__ = [
    "CONTENDERS",
    "FP32",
    "KERAS",
    "OURS",
    "PLAIN",
    "PLAIN_BF16",
    "PLAIN_LAST",
    "Contender",
    "Outcome",
    "contest",
    "contest_options",
]

LEARNING_RATE = 0.01
OURS, FP32, PLAIN, PLAIN_LAST, PLAIN_BF16, KERAS = "sepnet", "sepnet fp32", "PyTorch", "PyTorch cl", "PyTorch cl bf16", "Keras"


@dataclass(frozen=True)
class Contender:
    """A way to compute a network: the script of its worker, and what its job says beside network and sizes."""

    script: str
    settings: Mapping[str, Any]
    explained: str


CONTENDERS = {
    OURS: Contender(
        "_torch_worker.py",
        {"kind": "ours", "amp": "auto"},
        "as sepnet does it by default: its kernels, bf16 where the processor has it",
    ),
    FP32: Contender("_torch_worker.py", {"kind": "ours", "amp": "off"}, "the same in float32"),
    PLAIN: Contender(
        "_torch_worker.py", {"kind": "plain", "channels_last": False, "bf16": False}, "torch.nn modules as written: NCHW, float32"
    ),
    PLAIN_LAST: Contender(
        "_torch_worker.py", {"kind": "plain", "channels_last": True, "bf16": False}, "torch.nn modules, channels_last, float32"
    ),
    PLAIN_BF16: Contender(
        "_torch_worker.py", {"kind": "plain", "channels_last": True, "bf16": True}, "torch.nn modules, channels_last, bf16 autocast"
    ),
    KERAS: Contender("_keras_worker.py", {"kind": "keras"}, "Keras on TensorFlow, the same layers, Keras' own defaults"),
}


class Room(Enum):
    """For one more contender: now, in a later group, or not even beside one other."""

    NOW, LATER, NEVER = range(3)


@dataclass
class Outcome:
    """One network: figures of each contender that ran, why the others did not, and versions of the peers.

    ``ratios`` to sepnet: median over the rounds of the median step of a turn to that of sepnet's turn in the same round, and the
    standard deviation. A machine that changes its speed from minute to minute changes both.
    """

    network: str
    batch: int
    figures: dict[str, Figures] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, tuple[float, float]] = field(default_factory=dict)

    def ratio(self, other: str, to: str = OURS) -> float | None:
        """How many times faster ``to`` is than ``other``; None where one of them did not run."""
        if other not in self.figures or to not in self.figures:
            return None
        if to == OURS:
            return self.ratios[other][0] if other in self.ratios else None
        return self.figures[other]["median_ms"] / self.figures[to]["median_ms"]


def contest_options(
    parser: argparse.ArgumentParser, networks: Sequence[str], contenders: Sequence[str], *, rounds: int, without_keras: bool = False
) -> None:
    """The options that ``contest`` reads."""
    known = [name for name in CONTENDERS if name != KERAS or not without_keras]
    parser.add_argument("--networks", nargs="+", default=list(networks), metavar="NAME")
    parser.add_argument("--contenders", nargs="+", default=list(contenders), choices=known, help=", ".join(known), metavar="NAME")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    parser.add_argument(
        "--peer-border",
        choices=("layer", "once"),
        default="layer",
        help="multi-scale networks: how the peers pad the stacked branch. layer: by 1 at each convolution, as one would write it, "
        "and the faster for them; once: by 2 at the first, exactly as sepnet",
    )


def contest(network: str, task: str, batch: int, args: argparse.Namespace) -> Outcome:
    """Let the contenders ``task`` ("train" or "forward") in turns.

    Where they do not fit into the memory all at once, they run in groups, each with sepnet, which is then the first of every group.

    Raises:
        SepnetError: no such network. TypeError: one that the peers are not built with.
    """
    model = build(network, size=args.size)
    job = {
        "task": task,
        "network": network,
        "layers": describe(_as_peers_pad(network, model, args)),
        "size": args.size,
        "batch": batch,
        "threads": args.threads,
        "lr": LEARNING_RATE,
    }
    same = prefers_bf16(torch.device("cpu")) is False and OURS in args.contenders  # sepnet's default is float32 then
    waiting = [name for name in args.contenders if name != OURS and not (name == FP32 and same)]
    lead = [OURS] if OURS in args.contenders else []
    outcome, times = Outcome(network, batch), dict[str, list[float]]()
    trainable = sum(p.numel() for p in model.parameters())
    needed = _expected_bytes(model, args.size, batch, task)
    while lead or waiting:
        with ExitStack() as stack:
            running: dict[str, Worker] = {}
            queue = [*lead, *waiting]
            while queue and (room := _room(len(running), needed)) is not Room.LATER:
                name = queue.pop(0)
                if room is Room.NEVER:
                    outcome.failed[name] = f"not enough memory: it takes up to {needed / 2**30:.1f} GiB"
                elif (started := _start(name, job, trainable, args, stack, outcome)) is not None:
                    running[name] = started
            waiting = queue
            lead = lead if waiting else []
            _measure(running, batch, args, outcome, times)
    return outcome


def _start(
    name: str, job: Mapping[str, Any], trainable: int, args: argparse.Namespace, stack: ExitStack, outcome: Outcome
) -> Worker | None:
    """A contender, warmed up; None if it failed."""
    contender = CONTENDERS[name]
    python = getattr(args, "keras_python", None) if name == KERAS else None
    try:
        started = stack.enter_context(worker(contender.script, job | contender.settings, python or sys.executable))
        parameters = started.facts["parameters"]
        if parameters != trainable:
            raise WorkerError(f"it has {parameters:,} trainable parameters, sepnet's network {trainable:,}: not the same network")
        started.warm_up()
    except WorkerError as error:
        outcome.failed[name] = str(error)
        return None
    outcome.versions |= started.facts.get("versions", {})
    return started


def _measure(
    running: Mapping[str, Worker], batch: int, args: argparse.Namespace, outcome: Outcome, times: dict[str, list[float]]
) -> None:
    """Race those that run, and add their figures to the outcome; ``times`` are those of all groups."""
    taken, failed = race(running, rounds=args.rounds, seconds=args.seconds)
    outcome.failed |= failed
    for name, turns in taken.items():
        times.setdefault(name, []).extend(step for turn in turns for step in turn)
        outcome.figures[name] = _figures(times[name], batch, running[name])
        if OURS in taken:
            outcome.ratios[name] = _ratio(turns, taken[OURS])


def _ratio(turns: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> tuple[float, float]:
    of_rounds = [statistics.median(theirs) / statistics.median(own) for theirs, own in zip(turns, ours, strict=True)]
    return statistics.median(of_rounds), statistics.stdev(of_rounds) if len(of_rounds) > 1 else 0.0


def _room(running: int, needed: int) -> Room:
    """Whether one more contender fits beside those that run.

    Twice the need: that of the new one, and what one that gives its memory back between steps takes anew.
    """
    available = _available_bytes()
    if available is None or running == 0 or available > 2 * needed or (running == 1 and available > needed):
        return Room.NOW
    return Room.NEVER if running == 1 else Room.LATER


def _available_bytes() -> int | None:
    """Memory that may be taken; None where the system does not say."""
    file = Path("/proc/meminfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _expected_bytes(model: torch.nn.Module, size: int, batch: int, task: str) -> int:
    """A rough upper bound for a contender in float32: the process, and every layer's output, for training with its gradient."""
    values = sum(math.prod(layer.output_shape) for layer in count(model, (3, size, size)).layers)
    return round(0.7 * 2**30 + (8 if task == "train" else 1) * values * batch)


def _as_peers_pad(network: str, model: torch.nn.Module, args: argparse.Namespace) -> torch.nn.Module:
    if any(isinstance(m, MultiScaleUnit) for m in model.modules()):
        return build(network, size=args.size, border=args.peer_border)
    return model


def _figures(times: Sequence[float], batch: int, ran: Worker) -> Figures:
    rates = [1e3 * batch / ms for ms in times]
    memory = {"idle_mib": ran.facts["idle_mib"], "peak_mib": ran.ask({"end": True})["peak_mib"]}
    speed = {
        "images_per_s": 1e3 * batch / statistics.median(times),
        "images_per_s_sd": statistics.stdev(rates) if len(rates) > 1 else 0.0,
    }
    return figures_of(times, 0.5, 0.9, 0.99) | rounded(speed) | memory | {"parameters": ran.facts["parameters"]}
