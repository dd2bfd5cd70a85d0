"""What the tests of pointwise convolution by the kernels share: tensors, and the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor

from kernel_tools import ISAS, LIBRARY, ROUNDING, SMALLEST, channels_last, instruction_set, poisoned_memory
from sepnet.kernels import _choice_pointwise, pointwise_conv2d
from sepnet.kernels._native_pointwise import pointwise_backward, pointwise_forward

AMX = "avx512_bf16_amx"
needs_tiles = pytest.mark.skipif(AMX not in ISAS, reason="this processor has no AMX")
WITH_PRODUCTS = [isa for isa in (AMX, "avx512_bf16") if isa in ISAS]  # of bf16
_none = [pytest.param("", marks=pytest.mark.skip(reason="this processor multiplies no bf16"))]
in_bf16 = pytest.mark.parametrize("isa", WITH_PRODUCTS or _none)
# both types that take over what normalisations do at their sides, and by which instruction set
in_both = pytest.mark.parametrize(
    ("isa", "dtype"), [*((isa, torch.bfloat16) for isa in WITH_PRODUCTS), *((isa, torch.float32) for isa in ISAS)]
)
without_products = next((isa for isa in ISAS if isa not in WITH_PRODUCTS), "")
ALL = (True, True, True)
U = ROUNDING[torch.float32]


def tensors(shape: tuple[int, int, int, int], outputs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and dL/dy."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    grad = normal(shape[0], outputs, *shape[2:])
    return channels_last(normal(*shape)), normal(outputs, shape[1], 1, 1), normal(outputs), channels_last(grad)


@contextmanager
def by_kernels(isa: str, dtype: torch.dtype) -> Iterator[None]:
    """By that instruction set, in autocast's type or in float32, which is the kernels' where there is AVX2."""
    chosen = mock.patch.object(_choice_pointwise, "instructions", return_value="AVX2")
    computed = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
    with instruction_set(isa), chosen if dtype == torch.float32 else nullcontext(), computed:
        yield


def check(got: Tensor, a: Tensor, b: Tensor, extra: Tensor | None = None) -> None:
    """``got`` is the matrix product of a and b, as near as a float32 sum of so many products is in any order, then in its type."""
    assert got.shape == (len(a), b.shape[1])
    a, b = a.double(), b.double()
    exact, size = a @ b, a.abs() @ b.abs()
    if extra is not None:
        exact, size = exact + extra.double(), size + extra.double().abs()
    slack = (a.shape[1] + 2) * U * size + SMALLEST
    if got.dtype == torch.bfloat16:
        slack = slack + ROUNDING[torch.bfloat16] * (exact.abs() + slack)
    assert ((got.double() - exact).abs() <= slack).all()


def rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def check_native(
    shape: tuple[int, int, int, int],
    outputs: int,
    want: tuple[bool, bool, bool] = ALL,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    x, weight, bias, grad = tensors(shape, outputs, seed)
    x, grad = x.to(dtype), grad.to(dtype)
    matrix = weight.flatten(1).to(dtype)
    with poisoned_memory():
        y = pointwise_forward(LIBRARY, x, weight, bias if want[2] else None)
        grad_x, grad_weight, grad_bias = pointwise_backward(LIBRARY, x, weight, grad, want)
    check(rows(y), rows(x), matrix.T, bias if want[2] else None)
    assert [t is not None for t in (grad_x, grad_weight, grad_bias)] == list(want)
    if grad_x is not None:
        assert grad_x.is_contiguous(memory_format=torch.channels_last)
        check(rows(grad_x), rows(grad), matrix)
    if grad_weight is not None:
        check(grad_weight.flatten(1), rows(grad).T, rows(x))
    if grad_bias is not None:
        check(grad_bias[None], torch.ones(1, len(rows(grad))), rows(grad))


def second_derivatives(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Of a penalty on the input's gradient, of which nothing but the weights knows, and of one on all gradients."""
    y = pointwise_conv2d(x, weight, bias)
    (first,) = torch.autograd.grad(y.float().sum(), x, create_graph=True)
    found = [*torch.autograd.grad(y.float().mean() + first.float().square().mean(), (x, weight, bias))]
    every = torch.autograd.grad(pointwise_conv2d(x, weight, bias).float().square().sum(), (x, weight, bias), create_graph=True)
    return [*found, *torch.autograd.grad(sum(g.float().square().mean() for g in every), (x, weight, bias))]
