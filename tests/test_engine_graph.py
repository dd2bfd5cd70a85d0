"""The training step as a CUDA graph: it trains as the step it was recorded from. They need a GPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepnet.engine import TrainingStep, make_fabric
from sepnet.engine._graph import WARM_UP, GraphedStep
from sepnet.engine._rates import rates_as_tensors
from sepnet.engine.checkpoint import load_checkpoint
from sepnet.models import create_model
from training_tools import CrashError, Synthetic, config, run

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STEPS = WARM_UP + 5


@needs_gpu
def test_the_groups_have_rates_on_the_device_only_while_a_step_is_recorded() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2).cuda())], lr=0.25, fused=True)
    with rates_as_tensors(optimizer, [torch.tensor(0.5).cuda()]):
        assert optimizer.param_groups[0]["capturable"] is True
    assert optimizer.param_groups[0]["capturable"] is False
    assert optimizer.param_groups[0]["lr"] == 0.25


def batches(count: int = STEPS, classes: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 3, 16, 16, generator=generator).cuda(), torch.randint(classes, (16,), generator=generator).cuda())
        for _ in range(count)
    ]


def softened(y: Tensor, classes: int = 5) -> Tensor:
    """Probabilities, as of images that are mixed: a quarter of the next image's label."""
    sharp = torch.nn.functional.one_hot(y, classes).float()
    return 0.75 * sharp + 0.25 * sharp.roll(1, 0)


def trained(graph: bool, soft: bool = False, **changes: Any) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses after a few steps at a falling rate, in float32."""
    torch.manual_seed(0)
    model = create_model("mobilenet_units", units=(8, 16), num_classes=5, input_size=16)
    step = TrainingStep(model, config(amp="off", **changes), make_fabric("cuda", "off"))
    assert isinstance(step._update, GraphedStep)
    if not graph:
        step._update = step._compute
    losses = [step(x, softened(y) if soft else y, 1 - i / STEPS)[0].item() for i, (x, y) in enumerate(batches())]
    assert not graph or step._update._recording is not None  # type: ignore[union-attr]
    assert all(isinstance(group["lr"], float) for group in step.optimizer.param_groups)
    return copy.deepcopy(model.state_dict()), losses


@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {"opt": "sgd", "lr": 0.05},
        {"opt": "adam", "lr": 0.01},
        {"opt": "adamw", "lr": 0.01, "clip_grad": 1.0},
        {"opt": "muon", "lr": 0.05, "ema": 0.9, "smoothing": 0.1},
        {"opt": "muon", "lr": 0.05, "smoothing": 0.1, "soft": True},
    ],
    ids=["sgd", "adam", "adamw", "muon", "labels of mixed images"],
)
def test_a_graph_trains_as_the_step_it_was_recorded_from(changes: dict[str, Any]) -> None:
    weights, losses = trained(False, **changes)
    graphed, graphed_losses = trained(True, **changes)
    assert graphed_losses == pytest.approx(losses, rel=0.02, abs=0.02)
    for name, value in weights.items():
        torch.testing.assert_close(graphed[name], value, rtol=0.05, atol=0.02, msg=name)


class OnGpu(Synthetic):
    """The same batches, on the GPU."""

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        x, y = super().batch(iteration)
        return x.cuda(), y.cuda()


@needs_gpu
def test_a_checkpoint_of_a_graphed_run_holds_plain_rates_and_is_resumed(tmp_path: Path) -> None:
    fabric = make_fabric("cuda", "off")
    settings = config(iterations=2 * STEPS, opt="adam", lr=0.01, eval_every=STEPS, checkpoint_seconds=0)
    whole = run(settings, loader=OnGpu(), fabric=fabric, evaluation=OnGpu())
    with pytest.raises(CrashError):
        run(settings, loader=Cut(), fabric=fabric, evaluation=OnGpu(), run_dir=tmp_path)
    saved = load_checkpoint(tmp_path / "last.pt")
    assert saved["state"]["iteration"] == STEPS + 1
    assert all(isinstance(group["lr"], float) for group in saved["optimizer"]["param_groups"])
    resumed = run(settings, loader=OnGpu(), fabric=fabric, evaluation=OnGpu(), run_dir=tmp_path, resume=True)
    assert resumed.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=0.05)


class Cut(OnGpu):
    """Fails at a batch in the middle."""

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        if iteration == STEPS + 1:
            raise CrashError
        return super().batch(iteration)


@needs_gpu
def test_dropout_differs_from_replay_to_replay() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(768, 5))
    step = TrainingStep(model, config(opt="sgd", lr=1e-9, amp="off"), make_fabric("cuda", "off"))
    x, y = batches(1)[0]
    losses = {step(x, y)[0].item() for _ in range(STEPS)}
    assert len(losses) > 3
