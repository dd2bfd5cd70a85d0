"""Contenders in processes of their own, stepping in turns: neither allocator settings nor thread pools of one disturb another."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["WorkerError", "race", "worker"]

HERE = Path(__file__).parent
SETTLE = 0.05  # seconds between two turns, in which the threads of the last one stop spinning


class WorkerError(Exception):
    """A contender could not be built or died; one line."""


class Worker:
    """A running worker process: ``facts`` about what it has built, then steps."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process, self._log = process, log
        self.facts: dict[str, Any] = {}
        self.pace = 1.0  # milliseconds of a step, as the warm-up found it

    def ask(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line, wait for the answer.

        Raises:
            WorkerError: the worker failed, or is no more.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"ended with status {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def steps(self, count: int) -> list[float]:
        """Milliseconds of each of ``count`` steps."""
        times: list[float] = self.ask({"steps": count})["ms"]
        return times

    def warm_up(self, count: int = 3) -> None:
        """Steps outside the clock."""
        self.pace = min(self.steps(count))

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


@contextmanager
def worker(script: str, job: Mapping[str, Any], python: str = sys.executable) -> Iterator[Worker]:
    """Start a worker on its job; it is gone at the end of the block.

    Raises:
        WorkerError: it could not be started or built.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
    with tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.Popen(
                [python, str(HERE / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise WorkerError(f"cannot start {python}: {error.strerror}") from error
        try:
            started = Worker(process, log)
            started.facts = started.ask(job)
            yield started
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def race(
    workers: Mapping[str, Worker], *, rounds: int, seconds: float, most: int = 200
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Milliseconds of each step of each turn, one a round, the workers in another order each; and why those that failed did.

    Args:
        workers: warmed up.
        seconds: length of a turn; a worker takes as many steps in it as fit by its pace, from 1 to ``most``. The first step of a
            turn, which finds the caches full of the others' data, is not counted.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in workers}
    failed: dict[str, str] = {}
    names, order = list(workers), random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            if name in failed:
                continue
            time.sleep(SETTLE)
            count = max(1, min(most, round(1e3 * seconds / workers[name].pace)))
            try:
                times[name].append(workers[name].steps(1 + count)[1:])
            except WorkerError as error:
                failed[name] = str(error)
    return {name: taken for name, taken in times.items() if name not in failed}, failed
