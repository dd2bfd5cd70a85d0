"""A worker that trains to an accuracy: by sepnet's engine, or by a plain loop of PyTorch.

Recipe, data and first weights are the same. A step is the training between two evaluations, and the evaluation after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from _child import Turns, serve
from _describe import describe
from _plain import copy_weights, plain
from sepnet.api import build_model
from sepnet.api._run import eval_loader, train_loader
from sepnet.data import Dataset, load_dataset
from sepnet.engine import build_optimizer, fit, lr_factor, make_fabric
from sepnet.engine.evaluate import Batches
from sepnet.kernels import use
from sepnet.recipes import DataFacts, TrainConfig, recipes

Ready = Callable[[dict[str, Any]], None]
RECIPE = "wang2018-modern"


class _Timed:
    """Batches of an evaluation; counts the seconds from the first to the end, which is what the evaluation takes."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = time.perf_counter()
        yield from self._batches
        self.seconds = time.perf_counter() - start


class _Loader:
    """The run's loader; tells when a part of the run begins."""

    def __init__(self, loader: Any, every: int, turns: Turns) -> None:
        self._loader, self._every, self._turns = loader, every, turns
        self.batches_per_epoch: int = loader.batches_per_epoch

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        if iteration % self._every == 0:
            self._turns.begin_step()
        x, y = self._loader.batch(iteration)
        return x, y


class _Reporter:
    """Hands the accuracy on."""

    def __init__(self, turns: Turns, timed: _Timed) -> None:
        self._turns, self._timed = turns, timed

    def start(self, done: int, total: int) -> None:
        pass

    def step(self, iteration: int, loss: float, accuracy: float, images_per_s: float) -> None:
        pass

    def scoring(self, images: int, stopping: bool = False) -> None:
        pass

    def evaluated(self, row: dict[str, Any]) -> None:
        accuracy = row["eval_accuracy"]
        self._turns.note({"iteration": row["iteration"], "accuracy": accuracy, "evaluation_ms": 1e3 * self._timed.seconds})

    def end(self) -> None:
        pass


def _ours(config: TrainConfig, dataset: Dataset, turns: Turns) -> None:
    fabric = make_fabric("cpu", config.amp)
    assert config.eval_every is not None
    assert dataset.test is not None
    timed = _Timed(eval_loader(dataset.test, dataset, fabric, config))
    fit(
        build_model(config, dataset),
        _Loader(train_loader(config, dataset, fabric), config.eval_every, turns),
        config,
        fabric=fabric,
        num_classes=len(dataset.classes),
        evaluation=timed,
        reporter=_Reporter(turns, timed),
    )


def _plain(config: TrainConfig, dataset: Dataset, turns: Turns, border: str) -> None:
    config = config.model_copy(update={"channels_last": False})
    fabric = make_fabric("cpu", "off")  # for the loaders alone
    source = build_model(config, dataset)
    options = config.model_options | ({"border": border} if config.model.startswith("multiscale") else {})
    model = plain(describe(build_model(config.model_copy(update={"model_options": options}), dataset)))
    copy_weights(source, model)
    optimiser = build_optimizer(model, config)
    peaks = [group["lr"] for group in optimiser.param_groups]
    assert config.eval_every is not None
    assert dataset.test is not None
    loader = _Loader(train_loader(config, dataset, fabric), config.eval_every, turns)
    timed = _Timed(eval_loader(dataset.test, dataset, fabric, config))
    total = config.total_iterations(loader.batches_per_epoch)
    model.train()
    for iteration in range(total):
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * lr_factor(config, iteration, total)
        x, y = loader.batch(iteration)
        loss = cross_entropy(model(x), y, label_smoothing=config.smoothing)
        optimiser.zero_grad()
        loss.backward()
        with use("reference"):  # Muon's update by PyTorch's operations
            optimiser.step()
        if (iteration + 1) % config.eval_every == 0 or iteration + 1 == total:
            accuracy = _accuracy(model, timed)
            turns.note({"iteration": iteration + 1, "accuracy": accuracy, "evaluation_ms": 1e3 * timed.seconds})


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Batches) -> float:
    model.eval()
    hits, count = 0, 0
    for x, y in batches:
        hits += int((model(x).argmax(1) == y).sum())
        count += y.numel()
    model.train()
    return 100 * hits / count


def work(job: dict[str, Any], ready: Ready, turns: Turns) -> None:
    torch.set_num_threads(job["threads"])
    dataset = load_dataset(job["data"], data_dir=Path(job["data_dir"]), val_fraction=0.0)
    channels, size, _ = dataset.train.shape
    facts = DataFacts(job["data"], len(dataset.train), len(dataset.classes), channels, size)
    changes = {"model": job["model"], "seed": job["seed"], "eval_every": job["eval_every"], "val_fraction": 0.0}
    config = recipes.get(RECIPE)(facts)
    config = config.model_copy(update=changes | ({"iterations": job["iterations"]} if job["iterations"] else {}))
    ready(
        {
            "data_title": dataset.title,
            "data_fingerprint": dataset.fingerprint,
            "iterations": config.iterations,
            "config": config.model_dump(mode="json"),
        }
    )
    torch.manual_seed(config.seed)
    if job["kind"] == "ours":
        _ours(config, dataset, turns)
    else:
        _plain(config, dataset, turns, job["border"])
    turns.begin_step()  # hands over the last part


if __name__ == "__main__":
    serve(work)
