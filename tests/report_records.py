"""A run record for the tests of tables, plots and summaries."""

from __future__ import annotations

from typing import Any

from sepnet.report import Environment, RunRecord

ENVIRONMENT = Environment(
    sepnet="0.1.0",
    python="3.11.9",
    torch="2.13.0",
    packages={"numpy": "2.3.0"},
    platform="Linux",
    processor="Some CPU",
    cores=2,
    threads=1,
    memory_gib=8.0,
    device="cpu",
    precision="bf16",
    processes=1,
    commit="abc123",
)


def record(accuracy: float = 70.0, *, seed: int = 0, **changes: Any) -> RunRecord:
    """The record of a run of 200 iterations, evaluated each 100; ``changes`` are fields, and settings under ``config``."""
    iterations = changes.pop("iterations", 200)
    config = {"seed": seed, "batch_size": 128, "iterations": 200, "keep": "last", "patience": None} | changes.pop("config", {})
    history = [
        {"iteration": i, "train_loss": 2.0, "train_accuracy": 30.0, "eval_loss": 1.5, "eval_accuracy": accuracy * i / iterations}
        for i in range(100, iterations + 1, 100)
    ]
    fields: dict[str, Any] = {
        "command": "sepnet reproduce wang2018",
        "finished": "2026-01-02T03:04:05+00:00",
        "data_title": "CIFAR-10 (JPEG copy)",
        "data_fingerprint": "0123456789abcdef",
        "classes": 3,
        "train_images": 50_000,
        "input_shape": (3, 32, 32),
        "model": "net",
        "params_trainable": 1000,
        "params_total": 1010,
        "macs": 3_612_345,
        "config": config,
        "iterations": iterations,
        "seconds": 120.0,
        "evaluated_on": "test",
        "history": history,
        "result": {"test": {"accuracy": accuracy, "top5": 99.0, "loss": 0.5, "images": 10_000}},
        "environment": ENVIRONMENT,
    }
    return RunRecord(**(fields | changes))
