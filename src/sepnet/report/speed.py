"""The record of one measurement of speed: which network, how long a batch took, and on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sepnet.errors import CheckpointError, one_line
from sepnet.report.record import Environment

__all__ = ["SpeedRecord", "hardware", "load_speed", "save_speed"]


def hardware(environment: Environment) -> str:
    """What a figure of speed holds for, in a few words: device, precision, and threads of a processor."""
    if environment.device != "cpu":
        return f"{environment.device}, {environment.precision}"
    threads = f"{environment.threads} thread{'s' if environment.threads != 1 else ''}"
    return f"{environment.processor}, {threads}, {environment.precision}"


class SpeedRecord(BaseModel):
    """Forward passes of one network on one device.

    Attributes:
        model, options, classes: what was built.
        input_shape: (C, H, W) of one image.
        n: timed passes, after ``warm_up`` others.
        median_ms, mean_ms, sd_ms, p10_ms, p90_ms: milliseconds a batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    finished: str
    model: str
    options: dict[str, Any]
    classes: int
    input_shape: tuple[int, int, int]
    batch_size: int = Field(ge=1)
    bf16: bool
    warm_up: int
    n: int
    median_ms: float = Field(gt=0)
    mean_ms: float
    sd_ms: float
    p10_ms: float
    p90_ms: float
    environment: Environment

    @property
    def ms_per_image(self) -> float:
        """The median pass over the images in it, in milliseconds."""
        return self.median_ms / self.batch_size

    @property
    def sd_per_image(self) -> float:
        """Standard deviation of the passes over the images in one, in milliseconds."""
        return self.sd_ms / self.batch_size


def save_speed(record: SpeedRecord) -> bytes:
    """The record as indented JSON, ending in a newline."""
    return (json.dumps(record.model_dump(mode="python"), indent=1) + "\n").encode()


def load_speed(path: Path) -> SpeedRecord:
    """Read a record back.

    Raises:
        CheckpointError: it is not there, cut short, or of another form; one line.
    """
    try:
        return SpeedRecord.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"cannot read the record {one_line(path)}: {error.strerror}") from error
    except (ValueError, ValidationError) as error:
        raise CheckpointError(f"{one_line(path)} is no record of speed of this version; delete it to measure again") from error
