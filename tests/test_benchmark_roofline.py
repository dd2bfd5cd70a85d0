"""The roofline of training steps: that it counts what a network computes, whoever computes it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from contextlib import nullcontext
from pathlib import Path
from types import FunctionType
from unittest import mock

import pytest
import torch
from torch import nn

import sepnet.kernels
from benchmark_scripts import script
from kernel_pointwise_tools import by_kernels, in_both
from sepnet.kernels import pointwise_conv2d
from sepnet.kernels._calls import native_call
from sepnet.nn import depthwise, joined


def test_roofline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every convolution and normalisation is counted, joined or not, and the parts make up the step."""
    roofline = script("roofline")
    roofline.main(["--quick", "--networks", "separable_cnn", "--output", str(tmp_path), "--threads", "1"])
    assert "| separable_cnn |" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "roofline-1-thread.json").read_text())["figures"]
    assert row["step_ms"] == pytest.approx(sum(group["ms"] for group in row["groups"].values()), rel=1e-6)
    network = script("_describe").build("separable_cnn", size=32, num_classes=10).train()
    work = roofline.work_of(network, 32)
    assert len(work.products) == 3 * 10 - 1  # 9 dense and pointwise convolutions and a linear layer; the image wants no gradient
    macs = sum(flops for flops, _ in work.products) / 2
    assert 2.5 < macs / 31_397_888 < 3  # three passes of the card's, without the depthwise ones'
    assert work.values > 0


@pytest.mark.parametrize("size", [8, 16])
def test_roofline_counts_depthwise_layers_whoever_computes_them(size: int) -> None:
    """At 8x8 PyTorch does, in both directions, with AVX-512."""
    network = nn.Sequential(depthwise(64))
    network.in_channels = 64  # type: ignore[assignment]
    assert script("roofline").work_of(network, size).values == 4 * 64 * size**2  # x, y; x, dy: the image wants no gradient


def test_roofline_counts_what_is_pooled_with_the_normalisation() -> None:
    roofline = script("roofline")
    network = script("_describe").build("multiscale_concat", size=32, num_classes=10).train()
    work = roofline.work_of(network, 32)
    with mock.patch.object(joined, "pools", return_value=False):
        apart = roofline.work_of(network, 32)
    assert len(work.products) == len(apart.products) - 3 == 3 * 5  # two pointwise convolutions and three linear layers
    small, large = 6 * 32 * 32, 32 * 32 * 32  # values of the first unit's maps between the convolutions, before pooling
    assert apart.values - work.values == (5 * large + 3 * large // 4) - (5 * small + 2 * large // 4)


def test_roofline_knows_every_call_into_the_library() -> None:
    """But for the optimiser's: that of SGD is PyTorch's."""
    roofline = script("roofline")
    marked = native_call(lambda: None).__code__
    names = [m.name for m in pkgutil.iter_modules(sepnet.kernels.__path__) if not m.name.startswith(("_sepnet", "_triton"))]
    modules = [importlib.import_module(f"sepnet.kernels.{name}") for name in names]
    functions = [f for module in modules for f in vars(module).values() if isinstance(f, FunctionType)]
    calls = {f.__name__ for f in functions if f.__code__ is marked} - {"muon_step"}
    assert len(calls) >= 15
    for name in calls:
        assert any(name.startswith(known) for known in roofline._CALLS), name


@in_both
@pytest.mark.parametrize("name", ["separable_cnn", "dsrnet50_printed"])
def test_roofline_counts_what_products_do_of_a_normalisations_work(isa: str, dtype: torch.dtype, name: str) -> None:
    """As many multiplications as apart, and fewer values: statistics, and a map between that is not written."""
    roofline = script("roofline")
    network = script("_describe").build(name, size=32, num_classes=10).to(memory_format=torch.channels_last).train()
    found = []
    for summed in (True, False):  # where sums are not taken, they are not joined either
        taken = mock.patch.multiple(
            joined, joins_pointwise=lambda *_: False, summed_pointwise=lambda *conv: (pointwise_conv2d(*conv), None)
        )
        with by_kernels(isa, dtype), nullcontext() if summed else taken:
            found.append(roofline.work_of(network, 32, dtype == torch.bfloat16, images=32))
    work, apart = found
    assert sum(flops for flops, _ in work.products) == sum(flops for flops, _ in apart.products)
    assert 0.6 * apart.values < work.values < 0.9 * apart.values
