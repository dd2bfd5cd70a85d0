"""Muon's step by the kernels: against its formulas in float64, and the optimiser that uses it against PyTorch's operations."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kernel_tools import ISAS, LIBRARY, instruction_set, multiplies_halves, needs_library, poisoned_memory, threads
from sepnet.engine import build_optimizer, make_fabric
from sepnet.engine._step import TrainingStep
from sepnet.engine.muon import NEWTON_SCHULZ_STEPS, QUINTIC, Muon, orthogonalise
from sepnet.engine.optim import hidden_matrices
from sepnet.kernels import Iterations, Update, _native_muon, muon_step, same_places, use, watching
from sepnet.kernels._muon import why_torch_iterates
from sepnet.kernels._native_muon import muon_step as native_step
from training_tools import config

pytestmark = [
    needs_library,
    pytest.mark.skipif(LIBRARY is not None and LIBRARY.isa == "baseline", reason="PyTorch iterates without vector instructions"),
]

FLOAT = Iterations(*QUINTIC, NEWTON_SCHULZ_STEPS, torch.float32)
HALF = FLOAT._replace(dtype=torch.bfloat16)
has_halves = pytest.mark.skipif(
    LIBRARY is None or not multiplies_halves(LIBRARY.isa), reason="no instructions for products of bf16"
)
every_isa = pytest.mark.parametrize("isa", ISAS)
HALF_ISAS = [isa for isa in ISAS if multiplies_halves(isa)]
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 96, 127, 129, 200]))


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a processor has AMX and the kernels may not use it they would leave bf16 to PyTorch."""
    monkeypatch.setattr("sepnet.kernels._muon.processor_has", lambda name: False)


def exactly(matrix: Tensor, iterations: Iterations = FLOAT) -> Tensor:
    x = matrix.double()
    x = x / x.norm().clamp(min=1e-7)
    a, b, c, steps, _ = iterations
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def distance(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def direction(matrix: Tensor, iterations: Iterations) -> Tensor:
    result = torch.full_like(matrix, float("nan"))
    with poisoned_memory():
        native_step(LIBRARY, [Update(result, matrix, None, 1.0)], iterations, 0.0, 0.0)
    return result


@every_isa
@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIDES, SIDES, st.integers(1, 3), st.integers(0, 99))
def test_agrees_with_float64(isa: str, rows: int, columns: int, steps: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    iterations = FLOAT._replace(steps=steps)
    with instruction_set(isa), threads(1):
        assert distance(direction(matrix, iterations), exactly(matrix, iterations)) < 1e-4


@every_isa
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", [(300, 320), (321, 290), (257, 700)])
def test_all_threads_share_a_large_one(isa: str, count: int, shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    with instruction_set(isa), threads(count):
        assert distance(direction(matrix, FLOAT), exactly(matrix)) < 1e-4


@pytest.mark.parametrize("isa", HALF_ISAS)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("decades", [0, 1, 2])
@pytest.mark.parametrize("shape", [(48, 64), (64, 64), (65, 200), (200, 65), (384, 512), (131, 130)])
def test_in_bf16_it_deviates_little(isa: str, shape: tuple[int, int], decades: int, steps: int) -> None:
    """Singular values over several decades, of matrices whose sides fill tiles and do not."""
    short = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, short))[0] for side in shape)
    matrix = left * torch.logspace(0, -decades, short) @ right.T
    iterations = HALF._replace(steps=steps)
    with instruction_set(isa):
        assert distance(direction(matrix, iterations), exactly(matrix, iterations)) < 0.04


@pytest.mark.skipif("avx512_bf16_amx" not in ISAS, reason="this processor has no AMX")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIDES, SIDES, st.sampled_from([31, 32, 33]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_tiles_agree_with_vectors(rows: int, columns: int, edge: int, steps: int, count: int, seed: int) -> None:
    """Of any size, and with sides about those of a tile: sums in another order, which are rounded to bf16 seven times at most."""
    generator = torch.Generator().manual_seed(seed)
    for shape in ((rows, columns), (edge, columns), (rows, edge), (edge, edge)):
        matrix = torch.randn(shape, generator=generator)
        found = []
        for isa in ("avx512_bf16_amx", "avx512_bf16_floats"):
            with instruction_set(isa), threads(count):
                found.append(direction(matrix, HALF._replace(steps=steps)).double())
        assert distance(*found) < 0.02
        assert (found[0] - found[1]).abs().max() <= 0.03 * found[1].abs().max()


@every_isa
@pytest.mark.parametrize("iterations", [FLOAT, pytest.param(HALF, marks=has_halves)])
def test_threads_change_no_bit(isa: str, iterations: Iterations) -> None:
    if iterations is HALF and not multiplies_halves(isa):
        pytest.skip("no products of bf16")
    matrix = torch.randn(270, 300)
    with instruction_set(isa):
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(direction(matrix, iterations))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("shape", [(6, 5, 1, 1), (7, 4, 3, 3), (40, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_momentum_decay_and_rate(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    """Convolutions, too, in whose memory the columns stand in another order."""
    weight, gradient, mean = (torch.randn(shape) for _ in range(3))
    if len(shape) == 4:
        weight, gradient, mean = (t.contiguous(memory_format=memory_format) for t in (weight, gradient, mean))
    moved = 0.9 * mean + 0.1 * gradient
    ahead = 0.1 * gradient + 0.9 * moved
    wanted = 0.75 * weight.double() - 0.5 * exactly(ahead.flatten(1)).view(shape)
    assert not muon_step([Update(weight, gradient, mean, -0.5)], FLOAT, momentum=0.9, keep=0.75)
    torch.testing.assert_close(mean, moved, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-4, atol=1e-4)


def test_without_a_gradient_nothing_turns() -> None:
    weight = torch.randn(5, 9)
    before = weight.clone()
    assert not muon_step([Update(weight, torch.zeros(5, 9), torch.zeros(5, 9), 1.0)], FLOAT, momentum=0.9, keep=0.5)
    assert torch.equal(weight, before / 2)
    tiny = torch.full((5, 9), 1e-12)
    assert distance(direction(tiny, FLOAT), exactly(tiny)) < 1e-4


def test_a_gradient_that_is_none_reaches_the_weight() -> None:
    gradient = torch.randn(8, 8)
    gradient[3, 4] = float("nan")
    assert direction(gradient, FLOAT).isnan().all()


def test_autograd_learns_that_a_weight_has_changed() -> None:
    weight, mean = nn.Parameter(torch.randn(4, 6)), torch.zeros(4, 6)
    versions = weight._version, mean._version
    y = (weight * weight).sum()
    with torch.no_grad():
        assert not muon_step([Update(weight, torch.randn(4, 6), mean, -0.1)], FLOAT, momentum=0.9)
    assert weight._version > versions[0]
    assert mean._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("iterations", [FLOAT, pytest.param(HALF, marks=has_halves)])
def test_several_weights_at_once_are_each_as_alone(iterations: Iterations, count: int) -> None:
    """One that all threads share, some that one has to itself, and one that is given back."""
    shapes = [(8, 3, 3, 3), (300, 400), (5, 40), (64, 64), (40, 5)]
    weights, gradients, means = ([torch.randn(shape) for shape in shapes] for _ in range(3))
    updates = [
        Update(w.clone(), g, m.clone(), -0.1 * (i + 1)) for i, (w, g, m) in enumerate(zip(weights, gradients, means, strict=True))
    ]
    strange = Update(torch.randn(6, 5).T, torch.randn(6, 5).T, torch.randn(6, 5).T, 1.0)
    with threads(count):
        assert muon_step([*updates[:2], strange, *updates[2:]], iterations, momentum=0.9, keep=0.5) == [strange]
    for i, (w, g, m) in enumerate(zip(weights, gradients, means, strict=True)):
        with threads(1):
            assert not muon_step([Update(w, g, m, -0.1 * (i + 1))], iterations, momentum=0.9, keep=0.5)
        assert torch.equal(updates[i].weight, w)
        assert torch.equal(updates[i].mean, m)  # type: ignore[arg-type]


def test_what_the_kernels_do_not_take_is_left_alone() -> None:
    weight, gradient, mean = torch.randn(6, 8), torch.randn(6, 8), torch.zeros(6, 8)
    before = weight.clone()

    def refused(*tensors: Tensor | None, iterations: Iterations = FLOAT) -> bool:
        update = Update(*tensors, 1.0)  # type: ignore[arg-type]
        return muon_step([update], iterations, momentum=0.9) == [update]

    assert refused(weight.double(), gradient.double(), mean.double())
    assert refused(weight, gradient, mean, iterations=FLOAT._replace(steps=4))
    assert refused(weight, torch.randn(8, 6).T, mean)
    assert refused(weight.T, gradient.T, mean.T)
    assert refused(torch.randn(6, 16)[:, ::2], gradient, mean)
    assert refused(torch.randn(6), torch.randn(6), None)
    assert refused(torch.empty(0, 6), torch.empty(0, 6), None)
    with use("reference"):
        assert refused(weight, gradient, mean)
    with FlopCounterMode(display=False):
        assert refused(weight, gradient, mean)
    for steps, dtype in ((0, torch.float32), (3, torch.float16), (3, torch.float64)):
        assert refused(weight, gradient, mean, iterations=FLOAT._replace(steps=steps, dtype=dtype))
    with watching(lambda function, args: function(*args)):
        assert refused(weight, gradient, mean)
    assert torch.equal(weight, before)
    assert not mean.any()
    assert muon_step([], FLOAT) == []


def test_who_iterates_where(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Update(torch.randn(6, 8), torch.randn(6, 8), None, 1.0)
    with instruction_set("baseline"):
        assert why_torch_iterates(LIBRARY, torch.float32) is not None
        assert muon_step([update], FLOAT) == [update]
    assert why_torch_iterates(LIBRARY, torch.float32) is None
    assert (why_torch_iterates(LIBRARY, torch.bfloat16) is None) == multiplies_halves(LIBRARY.isa)
    monkeypatch.setattr("sepnet.kernels._muon.processor_has", lambda name: name == "amx_bf16")
    without = next(isa for isa in ISAS if not isa.endswith("_amx"))
    with instruction_set(without):
        assert why_torch_iterates(LIBRARY, torch.bfloat16) == "PyTorch's products are faster with AMX"
        assert muon_step([update], HALF) == [update]


def test_weights_that_share_memory_are_not_computed_at_once() -> None:
    weight, gradients, means = torch.randn(6, 8), torch.randn(2, 6, 8), torch.zeros(2, 6, 8)
    first, second = (Update(weight, gradients[i], means[i], 1.0) for i in range(2))
    assert muon_step([first, second], FLOAT, momentum=0.9) == [second]
    third = Update(torch.randn(6, 8), gradients[0], means[0], 1.0)
    assert muon_step([first, third], FLOAT, momentum=0.9) == [third]


def test_a_weight_of_two_layers_is_one_matrix() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 3))
    net[2].weight = net[0].weight
    assert [id(w) for w in hidden_matrices(net)] == [id(net[i].weight) for i in (0, 1, 3)]


def test_weights_elsewhere_do_not_ask_for_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU nobody is to be told that the CPU's kernels are missing."""
    monkeypatch.setattr("sepnet.kernels._muon.library", lambda: pytest.fail("asked"))
    update = Update(*(torch.empty(6, 8, device="meta") for _ in range(3)), 1.0)
    assert muon_step([update], FLOAT, momentum=0.9) == [update]


def test_same_places() -> None:
    a = torch.empty(4, 3, 2, 2)
    last = a.to(memory_format=torch.channels_last)
    assert same_places(a, torch.empty(4, 3, 2, 2))
    assert not same_places(a, last)
    assert same_places(last, last.clone())
    assert not same_places(a, torch.empty(4, 3, 4))
    assert same_places(torch.empty(4, 3, 1, 1), torch.empty(4, 3, 1, 1).to(memory_format=torch.channels_last))
    assert not same_places(torch.empty(4, 6)[:, :3])
    assert not same_places(torch.empty(4, 1).expand(4, 3))


def model() -> nn.Sequential:
    convolutions = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 48, 1)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(48 * 16, 20), nn.Linear(20, 10)).to(
        memory_format=torch.channels_last
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("iterated", [torch.float32, pytest.param(torch.bfloat16, marks=has_halves)])
def test_the_optimiser_is_the_same_with_and_without(iterated: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepnet.engine.muon.prefers_bf16", lambda device: iterated == torch.bfloat16)
    torch.manual_seed(0)
    first = model()
    moved = []
    for mode in ("native", "reference"):
        net = copy.deepcopy(first)
        optimizer = build_optimizer(net, config(opt="muon", lr=0.05, weight_decay=0.01, muon_weight_decay=0.1))
        generator = torch.Generator().manual_seed(1)
        with use(mode):  # type: ignore[arg-type]
            for _ in range(3):
                for p in net.parameters():
                    p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
                optimizer.step()
        moved.append([p.detach() - q.detach() for p, q in zip(net.parameters(), first.parameters(), strict=True)])
    for ours, theirs in zip(*moved, strict=True):
        assert (ours - theirs).norm() <= (0.08 if iterated == torch.bfloat16 else 1e-3) * theirs.norm()


@pytest.mark.parametrize("mode", ["native", "reference"])
def test_both_ways_orthogonalise(mode: str) -> None:
    matrix = torch.randn(24, 60)
    with use(mode):  # type: ignore[arg-type]
        assert distance(orthogonalise(matrix), exactly(matrix)) < 0.04


def test_the_optimiser_hands_all_its_matrices_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    right = _native_muon.muon_step

    def noting(lib: object, updates: list[Update], *rest: object) -> None:
        taken.extend(u.weight for u in updates)
        right(lib, updates, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(_native_muon, "muon_step", noting)
    step = TrainingStep(model(), config(opt="muon"), make_fabric("cpu", "off"))
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for calls in range(1, 6):  # as it is written, and recorded
        step(x, torch.tensor([0, 1, 2, 3]))
        assert [id(w) for w in taken] == calls * [id(w) for w in hidden_matrices(step.model)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_fused_update_of_the_rest(momentum: float, decay: float) -> None:
    """Nesterov's, by its formulas; and autograd learns of it."""
    shapes = [(5, 3, 2, 2), (7,), (), (4, 6)]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    weights[0].data = weights[0].data.contiguous(memory_format=torch.channels_last)
    group = {"params": weights, "lr": 0.1, "momentum": momentum, "weight_decay": decay, "orthogonal": False}
    optimizer, wanted = Muon([group]), [w.detach().clone() for w in weights]
    means = [torch.zeros_like(w) for w in wanted]
    for _ in range(3):
        for w, exact, mean in zip(weights, wanted, means, strict=True):
            w.grad = torch.randn_like(w)
            gradient = w.grad + decay * exact
            mean.mul_(momentum).add_(gradient)
            exact.sub_(0.1 * (gradient + momentum * mean))
        y = (weights[3] * weights[3]).sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()
    for w, exact in zip(weights, wanted, strict=True):
        torch.testing.assert_close(w.detach(), exact, rtol=1e-5, atol=1e-6)


def test_a_direction_that_wants_a_gradient_has_one() -> None:
    matrix = torch.randn(6, 9, requires_grad=True)
    orthogonalise(matrix).sum().backward()
    assert matrix.grad is not None
