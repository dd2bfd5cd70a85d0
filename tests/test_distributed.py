"""Two processes on this machine, started by torchrun, train one network together."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import sepnet
import two_processes
from sepnet.data import load_dataset
from sepnet.engine import evaluate, load_checkpoint
from training_tools import CLASSES, FABRIC, Synthetic, config, parts_in, run, same_weights, tiny_net

Results = tuple[dict[str, Any], dict[str, Any]]


def launch(folder: Path, seeds: int) -> Results:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(two_processes.__file__)
    with subprocess.Popen(
        [*command, str(script), str(folder), str(seeds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as launcher:
        try:
            said = launcher.communicate(timeout=300)[0]
        except subprocess.TimeoutExpired:
            launcher.terminate()  # it takes the two processes with it, which a kill would leave behind
            raise
    assert launcher.returncode == 0, said
    first, second = (torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2))
    return first, second


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Results:
    return launch(folder, seeds=1)


def test_the_data_are_shared_without_overlap(ranks: Results) -> None:
    alone = two_processes.shares(0, 1)
    for kind in ("train", "eval"):
        for whole, one, other in zip(alone[kind], ranks[0]["shares"][kind], ranks[1]["shares"][kind], strict=True):
            assert sorted(one + other) == sorted(whole)
            assert not set(one) & set(other)
            assert len(one) == len(other)


def test_gradients_are_averaged(ranks: Results) -> None:
    one, other = (rank["gradients"] for rank in ranks)
    assert same_weights(one["model"], other["model"])
    alone = run(config(iterations=4, clip_grad=0.5, ema=0.5), model=tiny_net(seed=0, norm=False))
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(one["model"][name], value, rtol=1e-4, atol=1e-6)
    for row, expected in zip(one["history"], alone.history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert row["train_accuracy"] == pytest.approx(expected["train_accuracy"])


def test_scores_are_those_of_one_process(ranks: Results) -> None:
    alone = asdict(evaluate(tiny_net().eval(), Synthetic(seed=1), CLASSES, FABRIC, tta=True))
    assert ranks[0]["scores"] == ranks[1]["scores"]
    assert ranks[0]["scores"].pop("loss") == pytest.approx(alone.pop("loss"), rel=1e-5)
    assert ranks[0]["scores"] == alone


def test_only_the_first_process_writes(ranks: Results, folder: Path) -> None:
    assert ranks[0]["writes"] > 5
    assert ranks[1]["writes"] == 0
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith("digits")) == ["digits0"]
    assert parts_in(folder / "digits0") == []


def test_the_network_learns_and_is_the_same_everywhere(ranks: Results, folder: Path) -> None:
    one, other = (rank["train"] for rank in ranks)
    assert same_weights(one["model"], other["model"])
    assert one["accuracy"] == other["accuracy"]
    assert one["processes"] == 2
    test = load_dataset("digits").test
    assert test is not None
    assert one["images"] == [len(test)]  # each once
    release = sepnet.load_release(folder / "digits0").model.state_dict()
    assert same_weights(dict(release), one["model"])
    alone = sepnet.train("digits", output=folder / "alone", device="cpu", **two_processes.SETTINGS)
    accuracy = alone.record.result["test"]["accuracy"]
    assert accuracy > 80
    assert one["accuracy"][0] == pytest.approx(accuracy, abs=6)  # the deviation between seeds is 2 points


def test_a_run_resumes_to_the_bit(ranks: Results, folder: Path) -> None:
    for rank in ranks:
        whole, parts = rank["resumed"]["whole"], rank["resumed"]["parts"]
        assert same_weights(whole["model"], parts["model"])
        assert (whole["history"], whole["last"]) == (parts["history"], parts["last"])
    assert same_weights(ranks[0]["resumed"]["whole"]["model"], ranks[1]["resumed"]["whole"]["model"])
    assert load_checkpoint(folder / "parts" / "last.pt")["state"]["iteration"] == 12


def test_a_loss_that_is_not_finite_ends_all(ranks: Results) -> None:
    said = [rank["not finite"] for rank in ranks]
    assert said[0].startswith("the loss of another process is not finite at iteration 3")
    assert said[1].startswith("the loss became nan at iteration 3")


@pytest.mark.slow
def test_accuracy_over_seeds(tmp_path: Path) -> None:
    seeds = 5
    both = launch(tmp_path, seeds)[0]["train"]["accuracy"]
    alone = []
    for seed in range(seeds):
        done = sepnet.train("digits", output=tmp_path / f"alone{seed}", device="cpu", seed=seed, **two_processes.SETTINGS)
        alone.append(done.record.result["test"]["accuracy"])
    error = (statistics.variance(both) / seeds + statistics.variance(alone) / seeds) ** 0.5
    assert abs(statistics.mean(both) - statistics.mean(alone)) < 3 * max(error, 0.3)
