"""The record of one run: what was run, on what, and what came out. Every table and plot is drawn from such records."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from sepnet._version import __version__
from sepnet.errors import CheckpointError, one_line
from sepnet.kernels import kernels_in_use

__all__ = ["Environment", "RunRecord", "environment", "load_record", "save_record", "source_commit"]


class Environment(BaseModel):
    """Versions and hardware of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sepnet: str
    python: str
    torch: str
    packages: dict[str, str]
    platform: str
    processor: str
    cores: int
    threads: int
    memory_gib: float | None
    device: str
    precision: str
    processes: int
    commit: str | None
    kernels: str = "PyTorch"  # what older records ran on


class RunRecord(BaseModel):
    """One run.

    Attributes:
        data_title: the data as it must be named wherever a figure stands ("CIFAR-10 (JPEG copy)").
        data_fingerprint: SHA-256 over contents, labels and class names.
        evaluated_on: split of the ``eval_`` columns of the history: "val" or "test".
        history: one row an evaluation: iteration, epoch, lr, train_loss, train_accuracy, eval_loss, eval_accuracy, seconds.
            A training image that is mixed of two (mixup, CutMix) counts as right if the class with the larger share is named.
        result: figures of the final weights by split: {"test": {"accuracy": .., "top5": .., "loss": .., "images": ..}, ...};
            "top3" stands beside "top5".
        seconds: wall time of training and its evaluations, start-up and final test left out.
        config: the resolved configuration.
        best_iteration: iteration with the best validation accuracy; None without validation, and in records of older versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    finished: str
    data_title: str
    data_fingerprint: str
    classes: int
    train_images: int
    input_shape: tuple[int, int, int]
    model: str
    params_trainable: int
    params_total: int
    macs: int
    config: dict[str, Any]
    iterations: int
    seconds: float
    evaluated_on: str | None
    history: list[dict[str, float | int | None]]
    result: dict[str, dict[str, Any]]
    environment: Environment
    notes: list[str] = []
    best_iteration: int | None = None

    @property
    def kept_best(self) -> int | None:
        """Iteration whose weights validation chose (``keep`` is "best"); None where the weights are those of the last iteration."""
        return self.best_iteration if self.config.get("keep") == "best" else None

    @property
    def batch_images(self) -> int | None:
        """Images a step, over all processes: never more than there are to train on; None where the record names no batch."""
        batch = self.config.get("batch_size")
        return min(batch, self.train_images) if isinstance(batch, int) else None


def environment(device: torch.device, precision: str, processes: int = 1) -> Environment:
    """What this process runs on; ``commit`` is that of a source checkout, None for an installed package."""
    names = ("numpy", "pillow", "lightning-fabric", "scikit-learn")
    return Environment(
        sepnet=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        packages={n: v for n in names if (v := _version(n)) is not None},
        platform=platform.platform(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=_memory_gib(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        precision=precision,
        processes=processes,
        commit=source_commit(),
        kernels=kernels_in_use(device),
    )


def now() -> str:
    """The time of a record: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """The command that made the record, without the path of the program."""
    program = Path(sys.argv[0]).name
    return shlex.join(["sepnet" if program == "__main__.py" else program, *sys.argv[1:]])


def save_record(record: RunRecord) -> bytes:
    """The record as indented JSON, ending in a newline."""
    # not pydantic's own writer: it refuses the surrogates that stand for undecodable bytes of a file name
    return (json.dumps(record.model_dump(mode="python"), indent=1, default=str) + "\n").encode()


def load_record(path: Path) -> RunRecord:
    """Read a record back.

    Raises:
        CheckpointError: it is not there, cut short, or of another form; one line.
    """
    try:
        return RunRecord.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"cannot read the record {one_line(path)}: {error.strerror}") from error
    except (ValueError, ValidationError) as error:
        raise CheckpointError(f"{one_line(path)} is not a run record of this version; delete it to run again") from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


@cache
def source_commit() -> str | None:
    """The commit of a source checkout, "-dirty" where the code differs from it; what lies in docs/ is not code.

    Asked for once a process, before its work begins: the checkout may move on while the code of its start is running.
    """
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    git = ["git", "-C", str(source)]
    try:
        commit = _output([*git, "describe", "--always", "--abbrev=12"])
        changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", "src", "setup.py", "pyproject.toml"])
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if commit and changed else commit or None


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
