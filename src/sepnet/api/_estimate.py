"""How long a run will take on this machine, from a few timed steps of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from sepnet.api._run import build_model, eval_loader, train_loader
from sepnet.data import Dataset, Split
from sepnet.engine import build_optimizer, make_fabric
from sepnet.engine.devices import keep_large_buffers
from sepnet.engine.ema import Ema
from sepnet.engine.loss import classification_loss
from sepnet.recipes import TrainConfig

__all__ = ["seconds_per_run"]

WARM_UP, TIMED = 2, 4
PATIENCE = 2.0  # seconds for the timed calls: slow ones need no median


def seconds_per_run(config: TrainConfig, dataset: Dataset, device: str = "auto") -> float:
    """Expected seconds of the run: timed training steps and an evaluation batch, scaled up. Errs by the machine's noise.

    The median of a few steps after a warm-up, so it takes about a second for a small network, and two steps' time for a
    large one. Scored along the way are the validation images, and the test images once; or these alone.
    """
    keep_large_buffers()
    fabric = make_fabric(device, config.amp)
    model = build_model(config, dataset)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped, optimizer = fabric.setup(model, build_optimizer(model, config))
    average = Ema(model, config.ema) if config.ema else None
    loader = train_loader(config, dataset, fabric)

    def step(iteration: int) -> None:
        x, y = loader.batch(iteration)
        loss, _ = classification_loss(wrapped(x), y, config.smoothing)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        if average is not None:
            average.update(model)

    def scoring(split: Split) -> float:
        scored = eval_loader(split, dataset, fabric, config)
        x, _ = next(iter(scored))
        wrapped.eval()

        @torch.no_grad()
        def score(_: int) -> None:
            wrapped(x)

        return len(scored) * _median_seconds(score, fabric.device) * (2 if config.tta else 1)

    total = config.total_iterations(loader.batches_per_epoch)
    seconds = total * _median_seconds(step, fabric.device)
    watched = dataset.val or dataset.test
    if watched is not None:
        seconds += -(-total // (config.eval_every or loader.batches_per_epoch)) * scoring(watched)
    if dataset.val is not None and dataset.test is not None:
        seconds += scoring(dataset.test)
    return seconds


def _median_seconds(action: Callable[[int], None], device: torch.device) -> float:
    times: list[float] = []
    begin = time.perf_counter()
    for i in range(WARM_UP + TIMED):
        start = time.perf_counter()
        action(i)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        if i > 0 and time.perf_counter() - begin > PATIENCE:
            break
    timed = sorted(times[WARM_UP:] or times[-1:])
    return timed[len(timed) // 2]
