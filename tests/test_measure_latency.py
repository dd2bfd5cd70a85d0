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
    found = measure_latency(model, (3, 4, 4), batch_size=2, device="cpu", warm_up=2, least=5, most=5)
    assert model.seen == [((2, 3, 4, 4), torch.float32, False)] * 7
    assert (found.n, found.batch_size) == (5, 2)
    assert 2 <= found.median_ms < found.p90_ms < 55
    assert found.median_ms < found.mean_ms
    assert found.sd_ms > 3
    assert model.training
    assert not model.layer.training


def test_bf16_and_as_many_passes_as_the_time_allows() -> None:
    model = Sleeper([0.0] + [10.0] * 20)
    found = measure_latency(model, (3, 4, 4), device="cpu", warm_up=1, least=2, most=20, seconds=0.05, bf16=True)
    assert model.seen[0][1] == torch.bfloat16
    assert 2 <= found.n <= 6


def test_random_numbers_are_left_alone() -> None:
    model = nn.Conv2d(3, 2, 1)
    state = torch.get_rng_state()
    measure_latency(model, (3, 4, 4), device="cpu", warm_up=1, least=2, most=2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"least": 1}, {"warm_up": 0}])
def test_nothing_to_time(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="least"):
        measure_latency(nn.Identity(), (3, 4, 4), device="cpu", **wrong)
