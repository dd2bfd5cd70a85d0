"""Planes of pairs: bfloat16 where the processor multiplies two taps at once. That all geometries agree with float64 is tested with
the others; here is what pairs could get wrong and random problems seldom meet.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernel_tools import (
    ISAS,
    LIBRARY,
    Problem,
    channels_last,
    depthwise_by_definition,
    instruction_set,
    limits,
    needs_library,
    poisoned_memory,
    threads,
)
from sepnet.kernels import _native
from sepnet.kernels._geometry import Geometry

PAIRS = "avx512_bf16"
pytestmark = [
    needs_library,
    pytest.mark.skipif(PAIRS not in ISAS, reason="this processor multiplies no pairs of bfloat16"),
]


@pytest.fixture(autouse=True)
def multiplied() -> Iterator[None]:
    """Also where the processor takes so long for them that the kernels multiply floats."""
    with instruction_set(PAIRS):
        yield


def geometry(*kernels: int, stride: int = 1, dilation: int = 1) -> Geometry:
    pads = tuple((dilation * (k // 2), dilation * (k // 2)) for k in kernels)
    return Geometry((stride, stride), tuple((k, k) for k in kernels), pads, ((dilation, dilation),) * len(kernels), False)


def both_ways(x: Tensor, weight: Tensor, grad: Tensor, of: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    with poisoned_memory():
        y = _native.depthwise_forward(LIBRARY, x, weight, None, of)
        grad_x, grad_weight, _ = _native.depthwise_backward(LIBRARY, x, weight, grad, of, (True, True, False))
    assert grad_x is not None
    assert grad_weight is not None
    return y, grad_x, grad_weight


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(90, 91), (133, 64)])
@pytest.mark.parametrize(
    "of", [geometry(5), geometry(7), geometry(3, 5), geometry(5, stride=2), geometry(7, stride=2), geometry(5, dilation=3)], ids=str
)
def test_maps_that_are_cut_into_bands(of: Geometry, size: tuple[int, int], count: int) -> None:
    """Each band has its rows above and below, and its own odd row at the end."""
    x, weight, _, grad = Problem(of, 1, 21, size, 0, integers=False).tensors(torch.bfloat16)
    limit = limits(x, weight, torch.zeros(grad.shape[1]), grad, of)
    with threads(count):
        y, grad_x, grad_weight = both_ways(x, weight, grad, of)
    limit.check("y", y)
    limit.check("grad_x", grad_x)
    limit.check("grad_weight", grad_weight)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "of", [geometry(3), geometry(5), geometry(7), geometry(3, 5), geometry(5, stride=2), geometry(5, dilation=2)], ids=str
)
@pytest.mark.parametrize("side", [9, 12])
def test_what_is_not_finite_reaches_the_taps_that_see_it_and_no_others(of: Geometry, value: float, side: int) -> None:
    """The row below that of an odd last tap lies in the other half of its pairs."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 32, side, side), torch.rand(32 * sum(h * w for h, w in of.kernels)) + 0.5
    height, width = of.output_size(side, side)
    grad = torch.randn(2, 32 * len(of.kernels), height, width)
    x[0, 3, 4, 5] = x[1, 30, side - 1, 0] = value
    grad[0, 7, height // 2, 1] = grad[1, 31, 0, width - 1] = value
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    exact = depthwise_by_definition(*wide, None, of)
    exact.backward(grad.double())
    y, grad_x, grad_weight = both_ways(channels_last(x.bfloat16()), weight, channels_last(grad.bfloat16()), of)
    for name, got, wanted in (("y", y, exact), ("grad_x", grad_x, wide[0].grad), ("grad_weight", grad_weight, wide[1].grad)):
        assert wanted is not None
        assert torch.equal(got.isfinite().flatten(), wanted.isfinite().flatten()), name


def test_weights_are_rounded_as_pytorch_rounds_them() -> None:
    torch.manual_seed(0)
    of, problem = geometry(5), torch.randn(4, 48, 16, 16).bfloat16()
    weight = torch.randn(48 * 25)
    weight[0], weight[1] = torch.nan, 3.4e38  # beyond bfloat16's largest number
    x, grad = channels_last(problem), channels_last(torch.randn(4, 48, 16, 16).bfloat16())
    fine, rounded = both_ways(x, weight, grad, of), both_ways(x, weight.bfloat16().float(), grad, of)
    assert fine[0].isnan()[:, 0].all()
    for got, wanted in zip(fine[:2], rounded[:2], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(fine[2], rounded[2])
