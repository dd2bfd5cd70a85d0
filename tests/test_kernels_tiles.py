"""Pointwise convolution of bf16 maps with AMX against float64 and PyTorch; and who takes it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_pointwise_tools import AMX, check_native, needs_tiles, tensors
from kernel_tools import ISAS, LIBRARY, instruction_set, needs_library, threads
from sepnet.kernels import _choice_pointwise, _pointwise, use
from sepnet.kernels._choice_pointwise import Way, pointwise_way
from sepnet.kernels._native_pointwise import pointwise_forward
from sepnet.nn.conv import pointwise

pytestmark = needs_library

TILED = st.sampled_from([32, 64, 96, 128, 288, 544])


@needs_tiles
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 4), TILED, st.integers(1, 20), st.integers(1, 20)),
    TILED,
    st.integers(1, 5),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(0, 99),
)
def test_tiles_agree_with_float64(
    shape: tuple[int, int, int, int], outputs: int, count: int, want: tuple[bool, bool, bool], seed: int
) -> None:
    """Of weights rounded to bf16; the gradients of weight and bias are float32's."""
    with instruction_set(AMX), threads(count):
        check_native(shape, outputs, want, seed, torch.bfloat16)


@needs_tiles
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((2, 1056, 9, 31), 320), ((1, 1024, 3, 3), 32), ((3, 32, 40, 41), 1312), ((1, 32, 1, 1), 2048), ((8, 32, 33, 32), 64)],
)
def test_more_tiles_than_are_packed_together(count: int, shape: tuple[int, int, int, int], outputs: int) -> None:
    """Panels, steps of pixels, bands, and weights of which each thread takes a part."""
    with instruction_set(AMX), threads(count):
        check_native(shape, outputs, dtype=torch.bfloat16)


@needs_tiles
def test_tiles_let_what_is_no_number_through_to_its_own_pixel() -> None:
    x, weight, _, _ = tensors((1, 32, 5, 7), 64)
    x[0, 3, 4, 6] = float("nan")
    with instruction_set(AMX):
        y = pointwise_forward(LIBRARY, x.bfloat16(), weight, None)
    assert y[0, :, 4, 6].isnan().all()
    assert y.isnan().sum() == 64


@needs_tiles
@pytest.mark.parametrize(("inputs", "outputs"), [(33, 32), (32, 40)])
def test_part_of_a_tile_is_refused(inputs: int, outputs: int) -> None:
    x, weight, _, _ = tensors((1, inputs, 5, 7), outputs)
    with instruction_set(AMX), pytest.raises(ValueError, match="the kernels do not take 35 pixels"):
        pointwise_forward(LIBRARY, x.bfloat16(), weight, None)


@pytest.mark.skipif(not ISAS, reason="no library")
def test_bf16_without_tiles_is_refused() -> None:
    x, weight, _, _ = tensors((1, 32, 5, 7), 32)
    for isa in (isa for isa in ISAS if isa != AMX):
        with instruction_set(isa), pytest.raises(ValueError, match="bfloat16"):
            pointwise_forward(LIBRARY, x.bfloat16(), weight, None)


@needs_tiles
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_under_autocast(input_dtype: torch.dtype, with_bias: bool) -> None:
    """As PyTorch's: rounded maps, gradients of the weights in float32 and of the input in its own type."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 9, 9, dtype=input_dtype, requires_grad=True)  # NCHW
    layer = pointwise(64, 96, bias=with_bias).to(memory_format=torch.channels_last)
    leaves = [x, *layer.parameters()]
    results = []
    for mode in ("native", "reference"):
        with (
            instruction_set(AMX),
            use(mode),  # type: ignore[arg-type]
            torch.autocast("cpu", torch.bfloat16),
            mock.patch.object(_pointwise, "pointwise_forward", wraps=pointwise_forward) as called,
        ):
            y = layer(x)
            assert called.called == (mode == "native")
        assert y.dtype == torch.bfloat16
        results.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
    for ours, theirs, leaf in zip(results[0], results[1], [None, *leaves], strict=True):
        assert ours.dtype == theirs.dtype
        assert leaf is None or ours.dtype == leaf.dtype
        assert leaf is None or leaf is x or ours.stride() == leaf.stride()
        assert (ours - theirs).double().norm() <= 0.01 * theirs.double().norm()


@pytest.mark.parametrize(
    ("dtype", "shape", "outputs", "taken"),
    [
        (torch.bfloat16, (128, 64, 8, 8), 96, True),
        (torch.bfloat16, (128, 64, 8, 8), 95, False),
        (torch.bfloat16, (128, 60, 8, 8), 96, False),
        (torch.float32, (128, 64, 8, 8), 96, False),
        (torch.bfloat16, (1, 32, 1, 1), 32, True),
        (torch.bfloat16, (16, 512, 4, 4), 480, True),
        (torch.bfloat16, (16, 512, 4, 4), 512, False),
        (torch.bfloat16, (17, 512, 4, 4), 512, True),
    ],
)
def test_way_with_tiles_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...], outputs: int, taken: bool
) -> None:
    monkeypatch.setattr(_choice_pointwise, "instructions", lambda: "AVX512")
    monkeypatch.setattr(_choice_pointwise, "processor_has", lambda feature: feature == "amx_bf16")
    for bias in (False, True):
        assert (pointwise_way(dtype, shape, outputs, bias, tiles=True) is Way.KERNELS) == taken
