"""What every process of test_distributed.py does; started by torchrun: two_processes.py FOLDER SEEDS.

Results go to FOLDER/rank<N>.pt; with more than one seed, only those of training on the digits.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import sepnet
from sepnet.data import EvalLoader, Preprocessing, Split, TrainLoader, load_dataset
from sepnet.engine import evaluate, fit, make_fabric
from sepnet.engine.devices import Fabric
from sepnet.errors import NonFiniteLossError
from training_tools import CLASSES, CrashError, Crashing, Synthetic, config, tiny_net

IMAGES, BATCH, STEPS = 50, 8, 14
SETTINGS: dict[str, Any] = {"model_options": {"units": [8, 16]}, "epochs": 6, "batch_size": 32, "lr": 0.05, "ema": 0.9, "shift": 1}
RESUMED: dict[str, Any] = {"eval_every": 5, "ema": 0.9, "keep": "best", "checkpoint_seconds": 0, "tta": True}


def numbered() -> Split:
    """Images whose only pixel is their number."""
    numbers = torch.arange(IMAGES)
    return Split(numbers.to(torch.uint8).view(-1, 1, 1, 1), numbers % 10)


def as_they_are() -> Preprocessing:
    return Preprocessing((1, 1), 1, "crop", (0.0,), (1 / 255,))


def shares(rank: int, world: int) -> dict[str, list[list[int]]]:
    """Numbers of the images that this process sees: a list a training batch, and a list of all in evaluation."""
    where = {"rank": rank, "world_size": world}
    training = TrainLoader(numbered(), as_they_are(), batch_size=BATCH, seed=3, **where)
    scored = EvalLoader(numbered(), as_they_are(), batch_size=4, **where)
    return {
        "train": [training.batch(i)[0].flatten().int().tolist() for i in range(STEPS)],
        "eval": [[n for x, _ in scored for n in x.flatten().int().tolist()]],
    }


def gradients(fabric: Fabric) -> dict[str, Any]:
    """Weights after a few steps on half a batch each; the network starts from other weights in every process."""
    loader = Synthetic(rank=fabric.global_rank, world_size=fabric.world_size)
    model = tiny_net(seed=fabric.global_rank, norm=False)
    result = fit(model, loader, config(iterations=4, clip_grad=0.5, ema=0.5), fabric=fabric, num_classes=CLASSES)
    return {"model": result.model.state_dict(), "history": result.history}


def resumed(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """A run left in the middle of an epoch and resumed, beside one that was not."""
    where = {"rank": fabric.global_rank, "world_size": fabric.world_size}

    def begin(name: str, loader: Synthetic, resume: bool = False) -> dict[str, Any]:
        result = fit(
            tiny_net(seed=0 if not resume else 5),
            loader,
            config(**RESUMED),
            fabric=fabric,
            num_classes=CLASSES,
            evaluation=Synthetic(seed=1, **where),
            run_dir=folder / name,
            resume=resume,
        )
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
        return {"model": result.model.state_dict(), "history": history, "last": asdict(result.last) if result.last else None}

    whole = begin("whole", Synthetic(**where))
    try:
        begin("parts", Crashing(8, **where))
    except CrashError:
        fabric.barrier()
    return {"whole": whole, "parts": begin("parts", Synthetic(**where), resume=True)}


class OneBadImage(Synthetic):
    """The third batch of the second process holds a NaN."""

    def batch(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().batch(iteration)
        if iteration == 2 and self._share.start == 1:
            x[0, 0, 0, 0] = float("nan")
        return x, y


def not_finite(fabric: Fabric) -> str:
    """What is said in this process when the loss of one is not finite."""
    loader = OneBadImage(rank=fabric.global_rank, world_size=fabric.world_size)
    try:
        fit(tiny_net(), loader, config(), fabric=fabric, num_classes=CLASSES)
    except NonFiniteLossError as error:
        return str(error)
    return "nothing"


def scores(fabric: Fabric) -> dict[str, Any]:
    """An untrained network's evaluation, each process on its share."""
    where = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    return asdict(evaluate(tiny_net().eval(), Synthetic(seed=1, **where), CLASSES, fabric, tta=True))


def trained(fabric: Fabric, folder: Path, seeds: int) -> dict[str, Any]:
    """Runs on the digits through the public function."""
    run = [sepnet.train("digits", output=folder / f"digits{s}", device="cpu", seed=s, **SETTINGS) for s in range(seeds)]
    test = load_dataset("digits").test
    assert test is not None
    return {
        "accuracy": [r.record.result["test"]["accuracy"] for r in run],
        "images": [r.record.result["test"]["images"] for r in run],
        "processes": run[0].record.environment.processes,
        "model": run[0].model.state_dict(),
    }


def counting_writes(action: Callable[[], Any]) -> tuple[Any, int]:
    """The action's result, and how many files it wrote."""
    real, count = tempfile.NamedTemporaryFile, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return real(*args, **kwargs)

    with mock.patch("tempfile.NamedTemporaryFile", counted):
        return action(), count


def main(folder: Path, seeds: int) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    fabric = make_fabric("cpu", "off")
    rank, world = fabric.global_rank, fabric.world_size
    train, writes = counting_writes(lambda: trained(fabric, folder, seeds))
    results = {"world": world, "train": train, "writes": writes}
    if seeds == 1:
        results |= {"shares": shares(rank, world), "gradients": gradients(fabric), "not finite": not_finite(fabric)}
        results |= {"scores": scores(fabric), "resumed": resumed(fabric, folder)}
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
