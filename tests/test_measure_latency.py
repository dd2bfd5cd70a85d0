"""sepnet.measure.measure_latency: what it times, and the network left as it was."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from sepnet.measure import measure_latency


class Sleeper(nn.Module):
    """Takes as many milliseconds as it is told, pass by pass, and notes what it was given."""

    def __init__(self, milliseconds: list[float]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.milliseconds = milliseconds
        self.seen: list[tuple[tuple[int, ...], torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        time.sleep(self.milliseconds[len(self.seen)] / 1000)
        self.seen.append((tuple(x.shape), y.dtype, self.training))
        return y


def test_warm_up_is_not_counted_and_the_mode_is_put_back() -> None:
    model = Sleeper([60.0, 60.0, 2.0, 2.0, 2.0, 2.0, 20.0]).train()
    model.layer.eval()
    found = measure_latency(model, (3, 4, 4), batch_size=2, device="cpu", warmup=2, repeats=5)
    assert model.seen == [((2, 3, 4, 4), torch.float32, False)] * 7
    assert (found.n, found.batch_size) == (5, 2)
    assert 2 <= found.median_ms == found.p50_ms < found.p90_ms <= found.p99_ms < 55
    assert found.median_ms < found.mean_ms
    assert found.std_ms > 3
    assert model.training
    assert not model.layer.training


def test_bf16_and_one_pass() -> None:
    model = Sleeper([0.0])
    found = measure_latency(model, (3, 4, 4), device="cpu", warmup=0, repeats=1, amp=True)
    assert model.seen[0][1] == torch.bfloat16
    assert (found.n, found.std_ms) == (1, 0.0)


def test_random_numbers_are_left_alone() -> None:
    model = nn.Conv2d(3, 2, 1)
    state = torch.get_rng_state()
    measure_latency(model, (3, 4, 4), device="cpu", warmup=1, repeats=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"repeats": 0}, {"warmup": -1}])
def test_nothing_to_time(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        measure_latency(nn.Identity(), (3, 4, 4), device="cpu", **wrong)
