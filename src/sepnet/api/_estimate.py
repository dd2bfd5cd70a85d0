"""How long a run will take on this machine, from a few timed steps of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from sepnet.api._run import build_model, eval_loader, train_loader
from sepnet.data import Dataset, Split
from sepnet.engine import TrainingStep, make_fabric
from sepnet.recipes import TrainConfig

__all__ = ["seconds_per_run"]

WARM_UP, TIMED = 2, 4
PATIENCE = 2.0  # seconds for the timed calls: slow ones need no median
LONG = 8.0  # seconds of a step, by what a part of its batch takes, from which on that is accurate enough
PART = 8  # such a part is one of so many


def seconds_per_run(config: TrainConfig, dataset: Dataset, device: str = "auto") -> float:
    """Expected seconds of the run: timed training steps and an evaluation batch, scaled up. Errs by the machine's noise.

    The median of a few steps after a warm-up, so it takes about a second for a small network, and a quarter of a step's time for a
    large one on a CPU. Scored along the way are the validation images, and the test images once; or these alone.
    """
    fabric = make_fabric(device, config.amp)
    train = TrainingStep(build_model(config, dataset), config, fabric)
    loader = train_loader(config, dataset, fabric)

    def step(iteration: int) -> None:
        train(*loader.batch(iteration))

    def part(iteration: int) -> None:
        x, y = loader.batch(iteration)
        train(x[: len(x) // PART], y[: len(y) // PART])

    def scoring(split: Split) -> float:
        scored = eval_loader(split, dataset, fabric, config)
        x, _ = next(iter(scored))
        train.wrapped.eval()

        @torch.no_grad()
        def score(_: int) -> None:
            train.wrapped(x)

        return len(scored) * _median_seconds(score, fabric.device, WARM_UP) * (2 if config.tta else 1)

    total = config.total_iterations(loader.batches_per_epoch)
    divisible = fabric.device.type == "cpu" and len(loader.batch(0)[0]) >= 2 * PART
    each = (_by_a_part(part) if divisible else None) or _median_seconds(step, fabric.device, train.warm_up)
    seconds = total * each
    watched = dataset.val or dataset.test
    if watched is not None:
        seconds += -(-total // (config.eval_every or loader.batches_per_epoch)) * scoring(watched)
    if dataset.val is not None and dataset.test is not None:
        seconds += scoring(dataset.test)
    return seconds


def _by_a_part(part: Callable[[int], None]) -> float | None:
    """Seconds of a whole step of a large network; None where it is short enough to be timed as it is."""
    start = time.perf_counter()
    part(0)
    if (time.perf_counter() - start) * PART < LONG:
        return None
    start = time.perf_counter()
    part(1)
    seconds = (time.perf_counter() - start) * PART
    return seconds if seconds >= LONG else None


def _median_seconds(action: Callable[[int], None], device: torch.device, warm_up: int) -> float:
    times: list[float] = []
    enough = warm_up if device.type == "cuda" else 1  # steps of a large network on a CPU are worth no second warm-up
    begin = time.perf_counter()
    for i in range(warm_up + TIMED):
        start = time.perf_counter()
        action(i)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        if i >= enough and time.perf_counter() - begin > PATIENCE:
            break
    timed = sorted(times[warm_up:] or times[-1:])
    return timed[len(timed) // 2]
