"""A worker that steps a network in PyTorch: sepnet's own engine, or the plain network of torch.nn modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from _child import Turns, serve
from _plain import plain

Ready = Callable[[dict[str, Any]], None]
CLASSES = 10
FOR_EVER = 10**9


def _batch(job: dict[str, Any], channels_last: bool) -> tuple[Tensor, Tensor]:
    x = torch.randn(job["batch"], 3, job["size"], job["size"])
    y = torch.randint(CLASSES, (job["batch"],))
    return (x.contiguous(memory_format=torch.channels_last) if channels_last else x), y


def _facts(model: nn.Module) -> dict[str, Any]:
    return {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}


class _OneBatch:
    """The loader of a run: the same batch again and again, and with each a step begins."""

    batches_per_epoch = FOR_EVER

    def __init__(self, batch: tuple[Tensor, Tensor], turns: Turns) -> None:
        self._batch, self._turns = batch, turns

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        self._turns.begin_step()
        return self._batch


def train_ours(job: dict[str, Any], ready: Ready, turns: Turns) -> None:
    """A run of the engine itself, with all that it does in a step."""
    from _describe import build
    from sepnet.engine import FitConfig, fit, make_fabric

    fabric = make_fabric("cpu", job["amp"])
    model = build(job["network"], size=job["size"], num_classes=CLASSES)
    ready(_facts(model))
    config = FitConfig(iterations=FOR_EVER, lr=job["lr"], warmup=0, sched="constant", checkpoint_seconds=FOR_EVER)
    fit(model, _OneBatch(_batch(job, True), turns), config, fabric=fabric, num_classes=CLASSES)


def train_plain(job: dict[str, Any], ready: Ready, turns: Turns) -> None:
    """The loop of PyTorch's tutorials."""
    model, (x, y) = _plain_network(job)
    ready(_facts(model))
    optimiser = torch.optim.SGD(model.parameters(), lr=job["lr"], momentum=0.9, nesterov=True, weight_decay=5e-4)
    while True:
        turns.begin_step()
        with torch.autocast("cpu", torch.bfloat16, enabled=job["bf16"]):
            loss = cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def forward_ours(job: dict[str, Any], ready: Ready, turns: Turns) -> None:
    from _describe import build
    from sepnet.engine import make_fabric

    fabric = make_fabric("cpu", job["amp"])
    model = build(job["network"], size=job["size"], num_classes=CLASSES).to(memory_format=torch.channels_last).eval()
    x, _ = _batch(job, True)
    ready(_facts(model))
    with torch.inference_mode(), fabric.autocast():
        _forward_for_ever(model, x, turns)


def forward_plain(job: dict[str, Any], ready: Ready, turns: Turns) -> None:
    model, (x, _) = _plain_network(job)
    model.eval()
    ready(_facts(model))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=job["bf16"]):
        _forward_for_ever(model, x, turns)


def _forward_for_ever(model: nn.Module, x: Tensor, turns: Turns) -> None:
    while True:
        turns.begin_step()
        model(x)


def _plain_network(job: dict[str, Any]) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model: nn.Module = plain(job["layers"])
    if job["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    return model, _batch(job, job["channels_last"])


WORK = {
    ("train", "ours"): train_ours,
    ("train", "plain"): train_plain,
    ("forward", "ours"): forward_ours,
    ("forward", "plain"): forward_plain,
}


def work(job: dict[str, Any], ready: Ready, turns: Turns) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    WORK[job["task"], job["kind"]](job, ready, turns)


if __name__ == "__main__":
    serve(work)
