"""A loss or a weight that is no longer finite stops the run, and never replaces a good checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sepnet.engine import load_checkpoint
from sepnet.errors import NonFiniteLossError
from training_tools import Synthetic, config, run, same_weights, tiny_net


class Poisoned(Synthetic):
    """One pixel of batch ``at`` is ``value``."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self._at, self._value = at, value

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        x, y = super().batch(iteration)
        if iteration == self._at:
            x[0, 0, 0, 0] = self._value
        return x, y


def finite(state: Any) -> bool:
    """Every number in nested dicts and lists."""
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(state.isfinite().all())
    if isinstance(state, dict):
        return all(finite(v) for v in state.values())
    return all(finite(v) for v in state) if isinstance(state, list) else True


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"opt": "adam"}, {"clip_grad": 1.0}], ids=str)
def test_loss(tmp_path: Path, value: float, settings: dict[str, Any]) -> None:
    chosen = config(checkpoint_seconds=0, **settings)
    last = tmp_path / "last.pt"
    with pytest.raises(NonFiniteLossError) as caught:
        run(chosen, loader=Poisoned(7, value), run_dir=tmp_path)
    message = str(caught.value)
    assert "at iteration 8" in message
    assert "--lr" in message
    assert message.endswith(f"the last good checkpoint is {last}")
    assert "\n" not in message
    saved = load_checkpoint(last)
    assert saved["state"]["iteration"] == 7
    assert finite(saved)
    # with the cause gone, the run goes on as if it had never been there
    resumed = run(chosen, run_dir=tmp_path, resume=True)
    assert same_weights(resumed.model.state_dict(), run(chosen).model.state_dict())


def test_without_a_checkpoint_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"of an earlier run")
    with pytest.raises(NonFiniteLossError) as caught:
        run(config(), loader=Poisoned(0, float("nan")), run_dir=tmp_path)
    assert "checkpoint" not in str(caught.value)


def spoil_gradient(model: torch.nn.Module, at: int) -> None:
    """The gradient of one bias is NaN in step ``at``: the loss of that step is finite, the weights after it are not."""
    steps = iter(range(10_000))
    model.get_parameter("fc.bias").register_hook(lambda g: g * float("nan") if next(steps) == at else g)


def test_weights_alone(tmp_path: Path) -> None:
    model = tiny_net()
    spoil_gradient(model, 5)
    with pytest.raises(NonFiniteLossError, match=r"^fc\.bias is no longer finite at iteration 6"):
        run(config(checkpoint_seconds=0), model=model, run_dir=tmp_path)
    saved = load_checkpoint(tmp_path / "last.pt")
    assert saved["state"]["iteration"] == 5
    assert finite(saved)


@pytest.mark.parametrize("evaluated", [True, False])
def test_weights_of_the_last_step_without_a_folder(evaluated: bool) -> None:
    model = tiny_net()
    spoil_gradient(model, 11)
    with pytest.raises(NonFiniteLossError, match="at iteration 12"):
        run(config(), model=model, evaluation=Synthetic(seed=1) if evaluated else None)


def test_running_statistics_alone(tmp_path: Path) -> None:
    model = tiny_net()

    def overflow(module: torch.nn.Module, *_: object) -> None:
        if module.num_batches_tracked == 4:
            module.running_var.data.fill_(float("inf"))

    model.bn.register_forward_hook(overflow)
    with pytest.raises(NonFiniteLossError, match=r"bn\.running_var is no longer finite at iteration 4"):
        run(config(checkpoint_seconds=0), model=model, run_dir=tmp_path)
    assert load_checkpoint(tmp_path / "last.pt")["state"]["iteration"] == 3


def test_a_rate_far_too_high(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="--lr"):
        run(config(lr=1e30, iterations=50), model=tiny_net(norm=False), run_dir=tmp_path)
