"""Colour images in bfloat16, five of which share a vector with AVX-512: they come together and go apart by permutations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_tools import LIBRARY, Problem, every_isa, instruction_set, limits, needs_library, poisoned_memory, threads
from sepnet.kernels import _native
from sepnet.kernels._geometry import Geometry

pytestmark = needs_library

ONE = Geometry((1, 1), ((3, 3),), ((1, 1),), ((1, 1),), False)
TWO = Geometry((1, 1), ((3, 3), (5, 5)), ((1, 1), (2, 2)), ((1, 1), (1, 1)), False)
MULTIPLIER = Geometry((1, 1), ((3, 3), (3, 3)), ((1, 1), (1, 1)), ((1, 1), (1, 1)), True)
LATTICE = Geometry((2, 2), ((3, 3),), ((2, 2),), ((2, 2),), False)
NARROWER = Geometry((1, 2), ((5, 3),), ((0, 0),), ((1, 3),), False)


def amid_nan(x: Tensor) -> Tensor:
    """The same values with NaN in memory before and behind them."""
    memory = torch.full((len(x) + 2, *x.shape[1:]), torch.nan, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    memory[1:-1] = x
    return memory[1:-1]


@every_isa
@pytest.mark.parametrize("of", [ONE, TWO, MULTIPLIER, LATTICE, NARROWER], ids=str)
@pytest.mark.parametrize("batch", [5, 6, 10, 13])
@pytest.mark.parametrize("size", [(7, 9), (16, 7)])
def test_integers_are_exact(isa: str, of: Geometry, batch: int, size: tuple[int, int]) -> None:
    problem = Problem(of, batch, 3, size, batch, integers=True)
    x, weight, bias, grad = problem.tensors(torch.bfloat16)
    limit = limits(x, weight, bias, grad, of)
    x, grad = amid_nan(x), amid_nan(grad)
    with instruction_set(isa), threads(2), poisoned_memory():
        y = _native.depthwise_forward(LIBRARY, x, weight, bias, of)
        grad_x, grad_weight, grad_bias = _native.depthwise_backward(LIBRARY, x, weight, grad, of, (True, True, True))
    for name, got in (("y", y), ("grad_x", grad_x), ("grad_weight", grad_weight), ("grad_bias", grad_bias)):
        assert got is not None
        limit.check(name, got, stored_as=torch.bfloat16 if name in {"y", "grad_x"} else None)


@every_isa
def test_what_is_not_finite_stays_in_its_image_and_channel(isa: str) -> None:
    x, weight, _, _ = Problem(ONE, 5, 3, (8, 8), 0, integers=False).tensors(torch.bfloat16)
    x[2, 1, 7, 7] = torch.nan
    x[3, 0, 0, 0] = torch.inf
    with instruction_set(isa), poisoned_memory():
        y = _native.depthwise_forward(LIBRARY, x, weight, None, ONE)
    wrong = (~y.isfinite()).nonzero().tolist()
    assert wrong == [[2, 1, r, c] for r in (6, 7) for c in (6, 7)] + [[3, 0, r, c] for r in (0, 1) for c in (0, 1)]
