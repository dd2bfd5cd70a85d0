"""The recorder: what it writes down, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sepnet.engine._recorder import Program, Recorder, UnrecordableError


def record(function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], inputs: tuple[Tensor, Tensor], known: list[Tensor]) -> Program:
    recorder = Recorder(inputs, known)
    return recorder.program(recorder.run(function))  # type: ignore[arg-type]


def test_tensors_from_nowhere_and_values_are_refused() -> None:
    x, y, outside = torch.ones(3), torch.arange(3), torch.ones(3)
    with pytest.raises(UnrecordableError, match=r"\(3,\) comes from nowhere"):
        record(lambda x, y: (x + outside,), (x, y), [])
    with pytest.raises(UnrecordableError, match="depends on values"):
        record(lambda x, y: (x * x.sum().item(),), (x, y), [])
    with pytest.raises(UnrecordableError, match="depends on values"):
        record(lambda x, y: (x[y > 1],), (x, y), [])
    with pytest.raises(UnrecordableError, match="taken for the same"):
        record(lambda x, y: (y, (z := (x * 2)[None]).detach().t_(), z), (x, y), [])
    program = record(lambda x, y: (x + outside, x * 2), (x, y), [outside])
    outside.fill_(5)
    assert [t.tolist() for t in program(torch.zeros(3), y)] == [[5, 5, 5], [0, 0, 0]]


def test_views_of_what_is_known_follow_its_values() -> None:
    weight = torch.zeros(2, 3)
    program = record(lambda x, y: (x @ weight.t()[1:], weight[0] + 0), (torch.ones(1, 2), torch.ones(1)), [weight])
    weight.copy_(torch.arange(6.0).reshape(2, 3))
    product, row = program(torch.ones(1, 2), torch.ones(1))
    assert product.tolist() == (torch.ones(1, 2) @ weight.t()[1:]).tolist()
    assert row.tolist() == [0, 1, 2]


def test_changes_in_place_are_part_of_it() -> None:
    counter = torch.zeros(())

    def count(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        counter.add_(1)
        z = x * 2
        z[0].mul_(10)
        return z, counter * 1

    program = record(count, (torch.ones(2), torch.ones(1)), [counter])
    assert counter.item() == 1
    z, seen = program(torch.tensor([1.0, 3.0]), torch.ones(1))
    assert (z.tolist(), seen.item(), counter.item()) == ([20, 6], 2, 2)
