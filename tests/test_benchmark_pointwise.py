"""The benchmark of pointwise convolutions: what it measures, and that wrong results are not timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark_scripts import script, written


def test_pointwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("pointwise")
    bench.Product.SIDE = 64
    found = bench.shapes_of(["separable_cnn", "dsrnet50_printed"])
    labels = {shape.label(): users for shape, users in found.items()}
    assert labels["128 x 64 x 16x16 to 128, bias"] == ["separable_cnn"]  # behind a depthwise convolution of stride 2
    assert all(shape.batch == (8 if shape.height > 32 else shape.batch) for shape in found)
    assert "128 x 6 x 32x32 to 32" in {shape.label() for shape in bench.shapes_of(["multiscale_concat"])}  # in training pooled
    bench.main(["--quick", "--threads", "1", "--networks", "separable_cnn", "--output", str(tmp_path)])
    content = written(tmp_path, "pointwise-1-thread")
    for row in content["figures"]:
        assert row["networks"] == ["separable_cnn"]
        assert row["torch_linear"]["n"] == 5
        assert row["ratio"] > 0
    case = bench.Case(bench.Shape(2, 8, 4, 4, 8, True), "fp32")
    case.check()
    right = bench.pointwise_conv2d
    monkeypatch.setattr(bench, "pointwise_conv2d", lambda *operands: 1.1 * right(*operands))
    with pytest.raises(ArithmeticError, match="2 x 8 x 4x4 to 8, bias, fp32: the output is off by"):
        case.check()
