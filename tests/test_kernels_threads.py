"""The threads that the library computes in: PyTorch's team and a pool of its own, who takes which part, workspaces, forks."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernel_tools import LIBRARY, Problem, needs_library, threads
from sepnet.kernels import _library, _native, _native_norm
from sepnet.kernels._geometry import Geometry

PROBLEM = Problem(Geometry((1, 1), ((3, 3),), ((1, 1),), ((1, 1),), False), 4, 21, (15, 14), 0, False)


def everything(problem: Problem = PROBLEM) -> list[Tensor]:
    """All that the library computes, of one input."""
    x, weight, bias, grad = problem.tensors(torch.float32)
    ones = torch.ones(problem.channels)
    y, constants, argmax = _native_norm.norm_forward(LIBRARY, x, ones, ones, None, 1e-5, False, True)
    gradients = _native.depthwise_backward(LIBRARY, x, weight, grad, problem.geometry, (True, True, True))
    return [
        _native.depthwise_forward(LIBRARY, x, weight, bias, problem.geometry),
        *(g for g in gradients if g is not None),
        y,
        *_native_norm.norm_backward(LIBRARY, x, None, constants, argmax, grad, False, True)[:3],
    ]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(params=["PyTorch's team", "a pool of our own"])
def team(request: pytest.FixtureRequest) -> Iterator[None]:
    found = _library._team_of_torch()
    if request.param == "a pool of our own":
        LIBRARY.handle.sepnet_set_parallel(None, None)
    elif found is None:
        pytest.skip("PyTorch has no OpenMP team that could be found")
    yield
    LIBRARY.handle.sepnet_set_parallel(*(found or (None, None)))


class Worker(ctypes.Structure):
    """``sepnet_worker`` of csrc/internal.h."""

    _fields_ = [("index", ctypes.c_int64), ("done", ctypes.c_int64)]


def parts_by_thread(parts: int, count: int, slow: int) -> dict[int, list[int]]:
    """Of each thread its parts in order, where all begin at once and part ``slow`` ends last; by the index of the thread."""
    start, others, lock = threading.Barrier(min(parts, count)), threading.Semaphore(0), threading.Lock()
    taken: dict[int, list[int]] = {}

    def body(_: object, part: int, worker: Worker) -> None:  # no exception would leave it
        with lock:
            taken.setdefault(worker.index, []).append(part if worker.done == len(taken.get(worker.index, [])) else -1)
        if worker.done == 0:
            start.wait(timeout=60)
        if part != slow:
            others.release()
        elif not all(others.acquire(timeout=60) for _ in range(parts - 1)):
            taken[worker.index].append(-1)

    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, Worker)(body)
    LIBRARY.handle.sepnet_run_parts(function, None, ctypes.c_int64(parts), ctypes.c_int64(count))
    return taken


@needs_library
@pytest.mark.usefixtures("team")
@pytest.mark.parametrize(("parts", "count"), [(8, 2), (7, 2), (9, 4), (7, 3), (200, 64)])
def test_a_thread_begins_with_its_own_parts_and_then_takes_those_of_others(parts: int, count: int) -> None:
    parts_by_thread(9, 9, -1)  # with more threads: those that are left over from it have no part in what follows
    firsts = {parts * seat // count for seat in range(count)}
    slow = max(firsts)
    found = parts_by_thread(parts, count, slow)
    assert {mine[0] for mine in found.values()} == firsts
    assert sorted(part for mine in found.values() for part in mine) == list(range(parts))
    assert [slow] in found.values()  # whose thread's other parts were computed by others


@needs_library
@pytest.mark.usefixtures("team")
@pytest.mark.parametrize(("parts", "count"), [(200, 100), (2, 5), (1, 5), (5, 1)])
def test_every_part_is_computed_once(parts: int, count: int) -> None:
    """With more threads than seats, with fewer parts than threads, by one."""
    found = parts_by_thread(parts, count, -1)
    assert sorted(found) == list(range(min(parts, count)))
    assert sorted(part for mine in found.values() for part in mine) == list(range(parts))


@needs_library
def test_both_teams_give_the_same_bits() -> None:
    found = _library._team_of_torch()
    with threads(3):
        expected = everything()
        LIBRARY.handle.sepnet_set_parallel(None, None)
        try:
            assert all(same(expected, everything()) for _ in range(5))
        finally:
            LIBRARY.handle.sepnet_set_parallel(*(found or (None, None)))


@needs_library
def test_each_thread_keeps_a_workspace_of_its_own() -> None:
    first = _native.workspace(1000)
    assert _native.workspace(500).data_ptr() == first.data_ptr()
    assert _native.workspace(first.numel() + 1).numel() > first.numel()
    others: list[Tensor] = []
    thread = threading.Thread(target=lambda: others.append(_native.workspace(10)))
    thread.start()
    thread.join()
    assert others[0].data_ptr() not in (first.data_ptr(), _native.workspace(10).data_ptr())


@needs_library
def test_a_large_workspace_is_not_kept() -> None:
    before = _native.workspace(10)
    most = _native._MOST_KEPT * max(2, torch.get_num_threads())
    assert _native.workspace(most + 1).numel() > most
    assert _native.workspace(10) is before


@needs_library
@pytest.mark.usefixtures("team")
def test_python_threads_compute_at_once_and_do_not_disturb_one_another() -> None:
    problems = [PROBLEM._replace(seed=seed, channels=9 + seed) for seed in range(3)]
    with threads(2):
        expected = [everything(problem) for problem in problems]
        wrong: list[int] = []

        def work(index: int) -> None:
            for _ in range(15):
                if not same(expected[index], everything(problems[index])):
                    wrong.append(index)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=60)
        assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.usefixtures("team")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_computes() -> None:
    """As the workers of a DataLoader are: one thread of their own, and none of the parent's pool. libgomp itself does not survive
    a fork with more than one (nor do PyTorch's operations), the pool of our own does.
    """
    with threads(2):
        expected = everything()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            with threads(1):
                alone = torch.allclose(everything()[0], expected[0])
            LIBRARY.handle.sepnet_set_parallel(None, None)
            with threads(2):
                status = 0 if alone and same(expected, everything()) else 2
        finally:
            os._exit(status)
    assert exit_code(child, seconds=60) == 0
    with threads(2):
        assert same(expected, everything())


def exit_code(child: int, seconds: float) -> int:
    """Of a child process; one that hangs is killed."""
    timer = threading.Timer(seconds, os.kill, (child, 9))
    timer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        timer.cancel()
