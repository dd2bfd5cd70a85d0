"""Benchmarks whose contenders are processes: turns, failures, groups that fit into memory, and what is kept between calls."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import FOLDER, script, written

CHILD = """
import sys, time
from _child import serve
def work(job, ready, turns):
    print("a library says hello")
    if job["behaviour"] == "unbuildable":
        raise ValueError("two\\nlines")
    ready({"parameters": 3})
    for step in range(10**9):
        turns.begin_step()
        turns.note({"step": step})
        if job["behaviour"] == "dies" and step == 4:
            import os
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)
serve(work)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    path = tmp_path / "child.py"
    path.write_text(CHILD, encoding="utf-8")
    return str(path)


def test_workers_step_in_turns(child: str) -> None:
    workers = script("_workers")
    with (
        workers.worker(child, {"behaviour": "good", "threads": 1}) as good,
        workers.worker(child, {"behaviour": "dies", "threads": 1}) as dies,
    ):
        assert good.facts["parameters"] == 3
        assert good.ask({"steps": 2})["notes"] == [{"step": 0}, {"step": 1}]
        times, failed = workers.race({"good": good, "dies": dies}, rounds=3, seconds=0.0)
        assert [len(turn) for turn in times["good"]] == [1, 1, 1]
        assert list(times) == ["good"]
        assert failed == {"dies": "ended with status 7: last words"}
        assert good.ask({"end": True})["peak_mib"] > 1


def test_a_worker_that_cannot_be_built(child: str) -> None:
    workers = script("_workers")
    with (
        pytest.raises(workers.WorkerError, match=r"^ValueError: two lines$"),
        workers.worker(child, {"behaviour": "unbuildable", "threads": 1}),
    ):
        pass
    with pytest.raises(workers.WorkerError, match="cannot start"), workers.worker(child, {"threads": 1}, "/no/such/python"):
        pass


class FewTurns:
    """Ends the worker after some steps, as the parent would."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.notes: list[dict[str, Any]] = []

    def begin_step(self) -> None:
        if not self.left:
            raise StopIteration
        self.left -= 1

    def note(self, content: dict[str, Any]) -> None:
        self.notes.append(content)


@pytest.mark.parametrize("task", ["train", "forward"])
@pytest.mark.parametrize(
    "settings",
    [{"kind": "ours", "amp": "off"}, {"kind": "ours", "amp": "bf16"}, {"kind": "plain", "channels_last": True, "bf16": True}],
    ids=["ours", "ours in bf16", "plain"],
)
def test_torch_worker(task: str, settings: dict[str, Any]) -> None:
    describe, turns = script("_describe"), FewTurns(2)
    model = describe.build("mobilenet_units")
    job = {
        "task": task,
        "network": "mobilenet_units",
        "layers": describe.describe(model),
        "size": 32,
        "batch": 2,
        "threads": 1,
        "lr": 0.01,
    }
    facts: list[dict[str, Any]] = []
    with pytest.raises((StopIteration, RuntimeError)):
        script("_torch_worker").work(job | settings, facts.append, turns)
    assert turns.left == 0
    assert facts == [{"parameters": sum(p.numel() for p in model.parameters())}]


def test_train_step(tmp_path: Path) -> None:
    train_step = script("train_step")
    train_step.main(
        ["--quick", "--threads", "1", "--networks", "separable_cnn", "--contenders", "sepnet", "PyTorch", "--output", str(tmp_path)]
    )
    content = written(tmp_path, "train_step-1-thread")
    (row,) = content["figures"]
    assert row["network"] == "separable_cnn"
    assert row["failed"] == {}
    assert {name: f["parameters"] for name, f in row["contenders"].items()} == {"sepnet": 1_084_938, "PyTorch": 1_084_938}
    assert all(f["peak_mib"] >= f["idle_mib"] > 10 and f["images_per_s"] > 0 for f in row["contenders"].values())
    assert row["ratios"]["PyTorch"]["median"] > 0
    assert re.match(r"times faster than PyTorch: separable_cnn \d+\.\d\dx; ", content["headline"][0])


@pytest.mark.parametrize(
    ("free_gib", "groups", "failed"),
    [
        (100, [["sepnet", "PyTorch", "Keras"]], []),
        (1.5, [["sepnet", "PyTorch"], ["sepnet", "Keras"]], []),
        (0.5, [["sepnet"]], ["PyTorch", "Keras"]),
    ],
)
def test_contenders_that_do_not_fit_into_memory_run_in_groups(
    free_gib: float, groups: list[list[str]], failed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = script("_contest")
    raced: list[list[str]] = []

    class Ran:
        def __init__(self) -> None:
            self.facts = {"parameters": 1, "idle_mib": 1.0}

        def ask(self, _: object) -> dict[str, float]:
            return {"peak_mib": 2.0}

    def race(running: dict[str, Any], **_: object) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
        raced.append(list(running))
        pace = len(raced)
        # three turns, between which the machine changes its speed
        return {name: [[s * pace * (2.0 if name == "PyTorch" else 1.0)] * 2 for s in (1, 5, 3)] for name in running}, {}

    monkeypatch.setattr(contest, "_available_bytes", lambda: int(free_gib * 2**30))
    monkeypatch.setattr(contest, "_expected_bytes", lambda *_: 2**30)
    monkeypatch.setattr(contest, "_start", lambda *_: Ran())
    monkeypatch.setattr(contest, "race", race)
    args = argparse.Namespace(
        size=32, threads=1, rounds=1, seconds=0.0, peer_border="layer", contenders=["sepnet", "PyTorch", "Keras"], keras_python=None
    )
    outcome = contest.contest("mobilenet_units", "train", 2, args)
    assert raced == groups
    assert list(outcome.failed) == failed
    if not failed:
        assert outcome.ratio("PyTorch") == 2.0
        assert outcome.ratios["PyTorch"][1] == 0.0  # in every round
        assert outcome.ratio("Keras") == 1.0  # to the sepnet of its own group


def test_inference_names_the_best_peer() -> None:
    inference, contest = script("inference"), script("_contest")
    outcome = contest.Outcome("net", 1, ratios={"PyTorch": (4.0, 0.1), "PyTorch cl": (2.0, 0.1), "sepnet fp32": (0.5, 0.1)})
    for name, ms in (("sepnet", 1.0), ("sepnet fp32", 0.5), ("PyTorch", 4.0), ("PyTorch cl", 2.0)):
        figures = {"median_ms": ms, "p50_ms": ms, "p90_ms": ms, "p99_ms": ms, "images_per_s": 1 / ms, "images_per_s_sd": 0.0}
        outcome.figures[name] = figures
    assert inference.best_peer(outcome) == ("PyTorch cl", 4.0)
    assert inference.headline([outcome]) == [
        "batch 1, times faster than PyTorch as written: net 8.00x",
        "batch 1, than the best of PyTorch's ways: net 4.00x",
    ]
    assert "0.50 / 0.50 / 0.50" in inference.latency_table([outcome], list(outcome.figures))


# --- time to accuracy ------------------------------------------------------------------------------------------------------


def test_both_contenders_train_the_same() -> None:
    worker = script("_accuracy_worker")
    job = {
        "data": "digits",
        "data_dir": ".",
        "model": "mobilenet_units",
        "eval_every": 10,
        "iterations": 20,
        "threads": 1,
        "seed": 3,
    }
    notes = {}
    for kind in ("ours", "plain"):
        turns, facts = FewTurns(2), list[dict[str, Any]]()
        with pytest.raises(StopIteration):
            worker.work(job | {"kind": kind, "border": "layer"}, facts.append, turns)
        assert facts[0]["data_title"] == "digits (scikit-learn)"
        assert facts[0]["iterations"] == 20
        assert [note["iteration"] for note in turns.notes] == [10, 20]
        assert all(note["evaluation_ms"] > 0 for note in turns.notes)
        notes[kind] = [note["accuracy"] for note in turns.notes]
    assert notes["ours"][1] > 25
    assert notes["plain"] == pytest.approx(notes["ours"], abs=5)  # they differ by rounding alone


def test_finished_seeds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    timing, asked = script("time_to_accuracy"), list[int]()

    def race_to(args: argparse.Namespace, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        asked.append(seed)
        common = {
            "seed": seed,
            "reached": True,
            "iterations": 100,
            "accuracy": 73.0,
            "evaluation_ms": 500.0,
            "peak_mib": 1.0,
            "curve": [],
        }
        runs = [common | {"contender": "sepnet", "ms": 2500.0}, common | {"contender": "PyTorch", "ms": 6500.0 + 2000 * seed}]
        return runs, {"data_title": "CIFAR-10", "iterations": 5000}

    monkeypatch.setattr(timing, "race_to", race_to)
    options = ["--threads", "1", "--output", str(tmp_path)]
    timing.main([*options, "--seeds", "1"])
    timing.main([*options, "--seeds", "2"])
    assert asked == [0, 1]
    content = written(tmp_path, "time_to_accuracy-1-thread")
    assert len(content["figures"]["runs"]) == 4
    assert content["headline"] == [
        "multiscale_concat reaches 72.4 % after 2.0 s of training, a plain PyTorch loop after 7.0 s, "
        "that is 3.50 ± 0.71 times as long (n = 2)"
    ]
    capsys.readouterr()
    timing.main([*options, "--seeds", "2"])
    assert "all 2 seeds are in" in capsys.readouterr().err
    timing.main([*options, "--seeds", "1", "--target", "60"])
    assert asked == [0, 1, 0]


# --- all of them -----------------------------------------------------------------------------------------------------------


def test_commands_and_index(tmp_path: Path) -> None:
    run, bench = script("run"), script("_bench")
    args = run.parse(["--threads", "1", "2", "--only", "kernels", "augment", "time_to_accuracy", "--output", str(tmp_path)])
    shown = [[Path(words[1]).stem, *words[2:4]] for words in run.commands(args)]
    assert shown == [
        *(["time_to_accuracy", "--threads", n] for n in "12"),
        *(["kernels", "--threads", n] for n in "12"),
        ["augment", "--threads", "1"],
    ]
    with pytest.raises(SystemExit):
        run.parse(["--quick"])  # would write over the results
    report = bench.Report(
        name="some-2-threads",
        title="Some figures",
        intro="How.",
        body="A table.",
        headline=["it is fast"],
        figures=[{"a": 1}],
        options={},
        precision="fp32",
        machine={"load_at_start": 0.1},
    )
    bench.write(report, tmp_path)
    (tmp_path / "foreign.json").write_text("[]", encoding="utf-8")
    (tmp_path / "nothing").mkdir()
    bench.write(report, tmp_path / "elsewhere")
    assert run.main(["--index-only", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## [Some figures](some-2-threads.md)\n\n- it is fast\n" in page
    assert "## Other machines\n\n- [elsewhere](elsewhere): " in page
    assert "foreign" not in page
    assert "nothing" not in page
    assert "**Hardware:**" in page
