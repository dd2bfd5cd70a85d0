"""The benchmark of Muon's update: that its contenders do the same."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmark_scripts import script, written
from sepnet.engine.optim import hidden_matrices


def test_muon(tmp_path: Path) -> None:
    bench = script("muon")
    bench.main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    (row,) = written(tmp_path, "muon-1-thread")["figures"]
    assert row["network"] == "multiscale_concat"
    assert {row[who]["n"] for who in (bench.OURS, bench.OPERATIONS, bench.TORCH, bench.STEP)} == {5}


def test_every_contender_moves_the_same_matrices() -> None:
    bench = script("muon")
    moved = [p.shape.numel() for p in hidden_matrices(bench.network("separable_cnn"))]
    model = bench.with_gradients("separable_cnn")
    before = [p.detach().clone() for p in hidden_matrices(model)]
    bench.build_optimizer(model, bench.CONFIG).step()
    assert [p.numel() for p, old in zip(hidden_matrices(model), before, strict=True) if not torch.equal(p, old)] == moved
    step = bench.torchs("separable_cnn")
    step(0)
    weights = step.__closure__[0].cell_contents.param_groups[0]["params"]
    assert [p.numel() for p in weights] == moved
