"""The side of a worker process: steps on demand, timed here. Needs the standard library only.

The parent (``_workers``) writes one line of JSON to start with, the job, then {"steps": n} for each turn, and {"end": true}. The
worker answers each line with one: facts about what it has built; {"ms": [...], "notes": [...]}, the time of each step and what it
had to say; its memory; or {"error": "..."} at any time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Turns", "UnavailableError", "serve"]


class UnavailableError(Exception):
    """What the contender needs is not installed; the message says how to get it."""


class _End(BaseException):
    """The parent wants no more steps; no except clause for errors is to swallow it."""


class Turns:
    """Called as every step begins; waits there while it is another contender's turn."""

    def __init__(self, answer: Callable[[dict[str, Any]], None]) -> None:
        self._answer = answer
        self._left = 0
        self._times: list[float] | None = None
        self._notes: list[dict[str, Any]] = []
        self._started = 0.0

    def note(self, content: dict[str, Any]) -> None:
        """Something for the parent to know, with the next answer."""
        self._notes.append(content)

    def begin_step(self) -> None:
        now = time.perf_counter()
        if self._times is not None:
            self._times.append(1e3 * (now - self._started))
        if not self._left:
            self._wait()
        self._left -= 1
        self._started = time.perf_counter()

    def _wait(self) -> None:
        if self._times is not None:
            self._answer({"ms": self._times, "notes": self._notes})
        order = json.loads(sys.stdin.readline() or '{"end": true}')
        if "end" in order:
            raise _End
        self._left, self._times, self._notes = order["steps"], [], []


def peak_mib() -> float:
    """The most memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # there, ru_maxrss counts what the parent held when it started this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def serve(work: Callable[[dict[str, Any], Callable[[dict[str, Any]], None], Turns], None]) -> None:
    """Run ``work(job, ready, turns)``: it builds what the job names, tells facts of it by ``ready``, and begins steps for ever."""
    channel = os.fdopen(os.dup(1), "w")  # standard output is the parent's; what libraries print goes to standard error
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        channel.write(json.dumps(content) + "\n")
        channel.flush()

    def ready(facts: dict[str, Any]) -> None:
        answer({**facts, "idle_mib": peak_mib()})

    try:
        work(json.loads(sys.stdin.readline()), ready, Turns(answer))
    except _End:
        answer({"peak_mib": peak_mib()})
    except UnavailableError as error:
        answer({"error": str(error)})
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]})
    finally:  # also on Ctrl-C, and when the parent is gone
        os._exit(0)  # frameworks may take long to put their threads away
