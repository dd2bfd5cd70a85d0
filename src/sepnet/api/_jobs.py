"""Several runs at a time, each in a process of its own that lives on from run to run.

The processes are started anew ("spawn"): CUDA does not survive a fork. Each waits at a pipe for what it is to run, and the main
process, which trains nothing itself, hands out the next run whenever one answers. One that dies takes only its run with it.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch

from sepnet.engine._interrupt import StopRequest
from sepnet.errors import ConfigError, SepnetError, one_line

__all__ = ["Failure", "Follower", "check_jobs", "run_jobs", "threads_each"]

MOST = 256
POLL = 0.2  # seconds between two looks at whether Ctrl-C was pressed
PATIENCE = 20.0  # seconds that a process has for its exit, once it has nothing left to do
STOPPED = 130  # exit status of a process that was told to stop and has saved its run

Task = TypeVar("Task")
Result = TypeVar("Result")
Told = TypeVar("Told", contravariant=True)
ToldResult = TypeVar("ToldResult", contravariant=True)


@dataclass(frozen=True)
class Failure:
    """Why a run has no result: one line, and where it came from (empty if its process died)."""

    reason: str
    trace: str = ""


class Follower(Protocol[Told, ToldResult]):
    """What ``run_jobs`` tells, in the main process."""

    def begin(self, task: Told, number: int) -> None:
        """A task is handed out, the ``number``-th of all."""

    def finished(self, task: Told, result: ToldResult) -> None:
        """A task is done."""

    def failed(self, task: Told, failure: Failure) -> None:
        """A task has failed; the others go on."""


def check_jobs(jobs: int) -> None:
    """Raises ConfigError unless so many runs can go on at a time in this process."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= MOST:
        raise ConfigError(f"--jobs must be a whole number from 1 to {MOST}, got {one_line(jobs)}")
    if jobs > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"--jobs {jobs} under torchrun: its processes share each run; choose one of the two")
    if jobs > 1 and multiprocessing.current_process().daemon:
        raise ConfigError(f"--jobs {jobs} in a daemonic process, which may start no others; call it from the main process")


def threads_each(jobs: int) -> int:
    """Threads of each of ``jobs`` processes, which share those of this one."""
    return max(1, torch.get_num_threads() // jobs)


def run_jobs(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, follower: Follower[Task, Result]) -> None:
    """Call ``work`` on every task in a process of its own, ``jobs`` at a time, in the order of ``tasks``.

    Args:
        work: a function of a module, or a ``partial`` of one; task and result can be pickled too.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the processes have saved their runs; a second Ctrl-C does not wait for that.
        ConfigError: no further process can be started.
    """
    crew = _Crew(work, min(jobs, len(tasks)), follower)
    with StopRequest() as stop:
        try:
            crew.run(deque(enumerate(tasks, start=1)), stop)
        except KeyboardInterrupt:
            crew.kill()
            raise
        finally:
            crew.dismiss()
    if stop.requested:
        raise KeyboardInterrupt


@dataclass(eq=False)
class _Worker(Generic[Task]):
    """A process and the task that it has."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None


class _Crew(Generic[Task, Result]):
    """The processes, seen from the main one."""

    def __init__(self, work: Callable[[Task], Result], size: int, follower: Follower[Task, Result]) -> None:
        self.work, self.size, self.follower = work, size, follower
        self.threads = threads_each(max(1, size))
        self.workers: list[_Worker[Task]] = []

    def run(self, waiting: deque[tuple[int, Task]], stop: StopRequest) -> None:
        """Hand out and collect until nothing is left; once a stop is requested, only collect."""
        told = False
        while True:
            if stop.requested and not told:
                waiting.clear()
                self._tell_to_stop()
                told = True
            while waiting and (worker := self._idle()) is not None:
                number, task = waiting.popleft()
                self.follower.begin(task, number)
                worker.task = task
                with contextlib.suppress(OSError):  # it has died: its end of the pipe says so below
                    worker.pipe.send(task)
            busy = [worker for worker in self.workers if worker.task is not None]
            if not busy:
                return
            answered = wait([worker.pipe for worker in busy], POLL)
            for worker in busy:
                if worker.pipe in answered:
                    self._collect(worker, stop)
            if not waiting:
                self.dismiss([worker for worker in self.workers if worker.task is None])  # its memory is free for the others

    def kill(self) -> None:
        """End all processes at once."""
        for worker in self.workers:
            worker.process.kill()

    def dismiss(self, which: Sequence[_Worker[Task]] | None = None) -> None:
        """Let processes end, all of them by default, and wait for that; what a busy one does is saved first."""
        leaving = list(self.workers if which is None else which)
        for worker in leaving:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()
        for worker in leaving:
            worker.process.join(None if worker.task is not None else PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            self.workers.remove(worker)

    def _idle(self) -> _Worker[Task] | None:
        """A process without a task, started if there may be one more; None while all are busy."""
        for worker in self.workers:
            if worker.task is None:
                return worker
        if len(self.workers) == self.size:
            return None
        context = multiprocessing.get_context("spawn")
        try:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self.work, self.threads), daemon=True)
            with _fit_to_spawn(self.threads):
                process.start()
        except OSError as error:
            raise ConfigError(f"cannot start a process; choose fewer --jobs: {error.strerror}") from error
        theirs.close()  # or its death would not be seen at ours
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def _collect(self, worker: _Worker[Task], stop: StopRequest) -> None:
        assert worker.task is not None
        task = worker.task
        try:
            answer, usable = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.pipe.close()
            self.workers.remove(worker)
            if not stop.requested:
                self.follower.failed(task, Failure(_cause_of_death(worker.process.exitcode)))
            return
        worker.task = None
        if not usable:
            self.dismiss([worker])
        if isinstance(answer, Failure):
            self.follower.failed(task, answer)
        else:
            self.follower.finished(task, answer)

    def _tell_to_stop(self) -> None:
        for worker in self.workers:
            worker.process.terminate()


def _cause_of_death(status: int | None) -> str:
    if status == STOPPED:
        return "its process was told to stop"
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
    short = " (memory may be short: fewer jobs need less)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{short}"


@contextlib.contextmanager
def _fit_to_spawn(threads: int) -> Iterator[None]:
    """What a process takes over from this one at its start.

    The number of threads stands in the environment, where OpenMP looks when torch is imported. ``__main__`` is hidden: the
    new process would import it again, and a script that does not ask for its ``__name__`` would run again with it. Signals
    are held back, until the new process can deal with them.
    """
    before, main = os.environ.get("OMP_NUM_THREADS"), sys.modules["__main__"]
    stops = {signal.SIGINT, signal.SIGTERM}
    mask = None
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # it would let the signals through when it is started by the first process
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# --- in the process that runs ------------------------------------------------------------------------------------------


def _serve(pipe: Connection, work: Callable[[Any], object], threads: int) -> None:
    """Run what comes through the pipe until it is closed, or a signal stops the process."""
    torch.set_num_threads(threads)
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    try:
        _let_signals_in()
        while True:
            pipe.send(_answer(work, pipe.recv()))
            _free_memory()
    except (EOFError, OSError):
        return  # the main process has nothing more to run, or is gone
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def _let_signals_in() -> None:
    """SIGTERM stops the process between two runs too. Ctrl-C reaches it from the terminal; the main process then sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _stop_without_parent() -> None:
    """Save and stop when the main process is gone, however it ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _answer(work: Callable[[Any], object], task: object) -> tuple[object, bool]:
    """The result, or the failure, and whether the process is good for another run: after an error of CUDA it is not."""
    try:
        return work(task), True
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return Failure(_reason(error), trace), isinstance(error, SepnetError)


def _reason(error: Exception) -> str:
    if isinstance(error, SepnetError):
        return one_line(error, 500)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return "out of memory; fewer jobs need less"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {one_line(error.filename)}" if error.filename is not None else "")
    return f"internal error: {type(error).__name__}: {one_line(error, 300)}"


def _free_memory() -> None:
    """The processes share the GPU: what the allocator keeps for one is missing to the others."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use
