"""Measurements of speed that a paper's tables need: one network, one shape of images, the device at hand."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sepnet.engine import atomic_write, make_fabric, prefers_bf16
from sepnet.errors import CheckpointError
from sepnet.measure import measure_latency
from sepnet.models import create_model, models
from sepnet.recipes import Paper, PaperTable
from sepnet.report import Environment, SpeedRecord, environment, hardware, load_speed, save_speed
from sepnet.report.record import command_line, now

__all__ = ["SpeedTest", "expected_seconds", "run_speed_test", "speed_records", "speed_tests", "this_hardware"]

SECONDS, LEAST, WARM_UP = 5.0, 10, 3
PROBE = 4  # images in the batch that the expected time is scaled up from


@dataclass(frozen=True)
class SpeedTest:
    """One network to be timed, as a table names it."""

    table: int
    data: str
    row: str
    model: str
    options: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    classes: int
    batch_size: int

    def path(self, output: Path, on: str) -> Path:
        """Where its record for the hardware ``on`` lies."""
        slug = re.sub(r"[^a-z0-9]+", "-", on.lower()).strip("-")[:80]
        return output / "records" / f"speed-{self.data}-{self.row}-{slug}.json"

    def build(self) -> nn.Module:
        """The network with random weights."""
        options = dict(self.options)
        if "input_size" in models.get(self.model).options:
            options.setdefault("input_size", self.input_shape[1])
        return create_model(self.model, num_classes=self.classes, in_channels=self.input_shape[0], **options)

    def fits(self, record: SpeedRecord) -> bool:
        """Whether a record is of this network, these images and this batch."""
        mine = (self.model, dict(self.options), self.input_shape, self.classes, self.batch_size)
        return mine == (record.model, record.options, record.input_shape, record.classes, record.batch_size)


def speed_tests(paper: Paper, tables: Sequence[int], rows: Sequence[str]) -> tuple[SpeedTest, ...]:
    """What the tables need that have a column of time."""
    timed = [table for number in tables if (table := paper.tables[number]).speed is not None]
    return tuple(_test(paper, table, row) for table in timed for row in table.rows if row in rows)


def _test(paper: Paper, table: PaperTable, row: str) -> SpeedTest:
    assert table.speed is not None
    assert table.data is not None
    config = paper.configure(table.data, row, next(iter(paper.recipes)), 0)
    speed = table.speed
    return SpeedTest(
        table.number, table.data, row, config.model, config.model_options, speed.input_shape, speed.classes, speed.batch_size
    )


def this_hardware(device: str) -> tuple[torch.device, Environment]:
    """The device that a name means, and what speeds measured on it hold for. Raises ConfigError."""
    target = make_fabric(device, "auto").device
    return target, environment(target, "bf16" if prefers_bf16(target) else "fp32")


def expected_seconds(test: SpeedTest, device: str) -> float:
    """About how long the measurement takes: a pass of few images, scaled up."""
    target, _ = this_hardware(device)
    batch = min(PROBE, test.batch_size)
    begin = time.perf_counter()
    found = measure_latency(
        test.build(),
        test.input_shape,
        batch_size=batch,
        device=target,
        bf16=prefers_bf16(target),
        warm_up=1,
        least=2,
        most=2,
    )
    built = time.perf_counter() - begin
    one = 1e-3 * found.median_ms * test.batch_size / batch
    return built + WARM_UP * one + max(SECONDS, LEAST * one)


def run_speed_test(test: SpeedTest, output: Path, device: str) -> SpeedRecord:
    """Measure, write the record, return it. Raises ConfigError, OutputError."""
    target, on = this_hardware(device)
    bf16 = prefers_bf16(target)
    found = measure_latency(
        test.build(),
        test.input_shape,
        batch_size=test.batch_size,
        device=target,
        bf16=bf16,
        warm_up=WARM_UP,
        least=LEAST,
        seconds=SECONDS,
    )
    record = SpeedRecord(
        command=command_line(),
        finished=now(),
        model=test.model,
        options=dict(test.options),
        classes=test.classes,
        environment=on,
        **found.to_dict(),
    )
    atomic_write(test.path(output, hardware(on)), lambda file: file.write(save_speed(record)))
    return record


def speed_records(test: SpeedTest, output: Path) -> list[SpeedRecord]:
    """What is recorded of a network, one record a device, in the order of the files' names."""
    found = []
    for path in sorted((output / "records").glob(f"speed-{test.data}-{test.row}-*.json")):
        try:
            record = load_speed(path)
        except CheckpointError:
            continue  # damaged, or of another version: measured again
        if test.fits(record) and test.path(output, hardware(record.environment)) == path:
            found.append(record)
    return found
