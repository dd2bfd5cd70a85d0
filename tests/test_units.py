"""The units of Wang et al. 2018 against a reference written from Table 1, Eq. 2 and 3 with plain loops, and against Table 2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.nn import ConvBNReLU, FlattenMLPHead, InceptionUnit, MultiScaleUnit, SeparableUnit, StandardUnit, depthwise

Array = NDArray[np.float64]

M, N = 3, 4  # input channels, width

every_merge = pytest.mark.parametrize("merge", ["concat", "add"])
every_border = pytest.mark.parametrize("border", ["once", "layer"])


def make(merge: Any, **options: Any) -> MultiScaleUnit:
    """In evaluation mode and double precision, with running statistics that are not 0 and 1."""
    unit = MultiScaleUnit(M, N, merge, **options).double().eval()
    nn.init.normal_(unit.bn.running_mean)
    nn.init.uniform_(unit.bn.running_var, 0.5, 2.0)
    nn.init.normal_(unit.bn.weight)
    nn.init.normal_(unit.bn.bias)
    return unit


def as_array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def slide(image: Array, kernels: Array, pad: int) -> Array:
    """(C, H, W) with one kernel (k, k) a channel, zeros outside."""
    k = kernels.shape[-1]
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((len(image), padded.shape[1] - k + 1, padded.shape[2] - k + 1))
    for c in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                out[c, i, j] = (padded[c, i : i + k, j : j + k] * kernels[c]).sum()
    return out


def reference(unit: MultiScaleUnit, image: Array, merge: str, residual: bool, border: str) -> Array:
    """One image (M, H, W) through the unit, step by step as its docstring says."""
    small, large1, large2 = (as_array(d.weight)[:, 0] for d in (unit.dw_small, unit.dw_large1, unit.dw_large2))
    a = slide(image, small, 1)
    if border == "once":
        b = slide(slide(image, large1, 2), large2, 0)
    else:
        b = slide(slide(image, large1, 1), large2, 1)
    x = image if residual else np.zeros_like(image)
    merged = np.concatenate([x + a, x + b]) if merge == "concat" else x + a + b
    y = np.einsum("oc,chw->ohw", as_array(unit.pw.weight)[:, :, 0, 0], merged)
    mean, var, scale, shift = (
        as_array(t)[:, None, None] for t in (unit.bn.running_mean, unit.bn.running_var, unit.bn.weight, unit.bn.bias)
    )
    y = np.maximum((y - mean) / np.sqrt(var + unit.bn.eps) * scale + shift, 0)
    h, w = y.shape[1] // 2, y.shape[2] // 2
    return y[:, : 2 * h, : 2 * w].reshape(len(y), h, 2, w, 2).max(axis=(2, 4))


@every_merge
@every_border
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (2, 2)], ids=str)
def test_unit_equals_the_reference(merge: str, border: str, residual: bool, size: tuple[int, int]) -> None:
    unit = make(merge, residual=residual, border=border)
    x = torch.randn(2, M, *size, dtype=torch.float64)
    y = as_array(unit(x))
    assert y.shape == (2, N if merge == "concat" else 2 * N, size[0] // 2, size[1] // 2)
    assert y.shape[1] == unit.out_channels
    for got, image in zip(y, as_array(x), strict=True):
        np.testing.assert_allclose(got, reference(unit, image, merge, residual, border), rtol=1e-12, atol=1e-12)


def composed(unit: MultiScaleUnit) -> Tensor:
    """The 5x5 kernels (M, 1, 5, 5) of the stacked branch: each second 3x3 kernel moved over the first."""
    kernels = torch.zeros(M, 1, 5, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            kernels[:, :, i : i + 3, j : j + 3] += unit.dw_large2.weight[:, :, i : i + 1, j : j + 1] * unit.dw_large1.weight
    return kernels.detach()


@every_merge
def test_stacked_branch_padded_once_is_one_5x5_convolution(merge: str) -> None:
    unit = make(merge, border="once")
    x = torch.randn(2, M, 7, 6, dtype=torch.float64)
    folded = F.conv2d(x, composed(unit), padding=2, groups=M)
    torch.testing.assert_close(unit.stacked(x), folded, rtol=1e-12, atol=1e-12)


def test_whole_add_unit_padded_once_is_one_5x5_convolution() -> None:
    unit = make("add", border="once")
    kernels = composed(unit)
    kernels[:, :, 1:4, 1:4] += unit.dw_small.weight.detach()
    kernels[:, :, 2, 2] += 1  # the identity
    x = torch.randn(2, M, 8, 8, dtype=torch.float64)
    merged = F.conv2d(x, kernels, padding=2, groups=M)
    torch.testing.assert_close(unit(x), F.relu(unit.bn(unit.pw(merged))), rtol=1e-12, atol=1e-12)


def test_stacked_branch_padded_at_each_layer_differs_at_the_border_only() -> None:
    unit = make("add", border="layer")
    x = torch.randn(2, M, 8, 8, dtype=torch.float64)
    stacked = unit.stacked(x)
    folded = F.conv2d(x, composed(unit), padding=2, groups=M)
    torch.testing.assert_close(stacked[:, :, 1:-1, 1:-1], folded[:, :, 1:-1, 1:-1], rtol=1e-12, atol=1e-12)
    assert (stacked - folded)[:, :, 0].abs().max() > 1e-3


def convolution_weights(unit: nn.Module) -> int:
    return sum(m.weight.numel() for m in unit.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("m", "n"), [(3, 32), (64, 64), (7, 5)])
def test_parameters_per_input_channel_are_those_of_table_2(m: int, n: int) -> None:
    assert convolution_weights(MultiScaleUnit(m, n, "concat")) == m * (27 + 2 * n)
    assert convolution_weights(MultiScaleUnit(m, n, "add")) == m * (27 + 2 * n)
    assert convolution_weights(StandardUnit(m, n)) == m * 9 * n
    assert convolution_weights(SeparableUnit(m, n)) == m * (n + 9)
    # The 3x3 and 5x5 of an inception unit stand behind 1x1 convolutions of width N, so 38N an input channel holds for m = N only.
    assert convolution_weights(InceptionUnit(n, n)) == n * 38 * n


@pytest.mark.parametrize(
    ("unit", "out_channels"),
    [
        (StandardUnit(M, N), N),
        (SeparableUnit(M, N), N),
        (InceptionUnit(M, N), 4 * N),
        (MultiScaleUnit(M, N, "concat"), N),
        (MultiScaleUnit(M, N, "add"), 2 * N),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_units_halve_the_map(unit: Any, out_channels: int) -> None:
    assert unit.out_channels == out_channels
    assert unit(torch.randn(2, M, 9, 6)).shape == (2, out_channels, 4, 3)


def test_no_convolution_has_a_bias_that_the_normalisation_would_undo() -> None:
    units = [StandardUnit(M, N), SeparableUnit(M, N), InceptionUnit(M, N), MultiScaleUnit(M, N, "add")]
    assert all(m.bias is None for unit in units for m in unit.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 3)])
def test_depthwise_keeps_the_size_and_the_channels_apart(kernel: int, dilation: int) -> None:
    layer = depthwise(2, kernel, dilation=dilation)
    x = torch.randn(1, 2, 9, 9)
    y = layer(x)
    assert y.shape == x.shape
    x[:, 1] = 0
    assert torch.equal(layer(x)[:, 0], y[:, 0])


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: MultiScaleUnit(0, N, "add"), "in_channels .* got 0"),
        (lambda: MultiScaleUnit(M, -2, "add"), "width .* got -2"),
        (lambda: MultiScaleUnit(M, N, "sum"), "merge .* got 'sum'"),
        (lambda: MultiScaleUnit(M, N, "add", border=None), "border .* got None"),
        (lambda: MultiScaleUnit(M, N, "add", residual=1), "residual .* got 1"),
        (lambda: SeparableUnit(M, 2.5), "width .* got 2.5"),
        (lambda: StandardUnit(0, N), "in_channels .* got 0"),
        (lambda: InceptionUnit(M, True), "out_channels .* got True"),
        (lambda: ConvBNReLU(M, N, 0), "kernel_size .* got 0"),
        (lambda: FlattenMLPHead(0, 10), "in_features .* got 0"),
        (lambda: FlattenMLPHead(8, 0), "num_classes .* got 0"),
    ],
)
def test_bad_sizes_show_the_value(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


def test_head_shows_both_sizes_when_they_do_not_fit() -> None:
    head = FlattenMLPHead(2 * 4 * 4, 10)
    assert head(torch.randn(3, 2, 4, 4)).shape == (3, 10)
    assert head(torch.randn(3, 2, 4, 4), pre_logits=True).shape == (3, 192)
    with pytest.raises(ValueError, match=r"\(3, 2, 5, 5\) hold 50 values an image, the head expects 32"):
        head(torch.randn(3, 2, 5, 5))
