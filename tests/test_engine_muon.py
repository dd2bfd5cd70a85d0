"""The orthogonalising optimiser against a singular value decomposition and against its formulas written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sepnet.engine import build_optimizer
from sepnet.engine.muon import Muon, _directions_together, orthogonalise
from sepnet.engine.optim import hidden_matrices
from training_tools import Synthetic, config, run, tiny_net


@pytest.mark.parametrize("shape", [(8, 8), (16, 5), (5, 16), (1, 9), (384, 64)])
def test_singular_values_come_near_one_and_the_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.linalg.qr(torch.randn(max(shape), min(shape)))[0] * torch.linspace(0.3, 1, min(shape))
    matrix = matrix if shape[0] >= shape[1] else matrix.T
    result = orthogonalise(matrix, steps=5).float()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ result @ v.T
    assert result.shape == shape
    assert 0.6 < rotated.diagonal().min() <= rotated.diagonal().max() < 1.3
    assert (rotated - rotated.diagonal().diag()).abs().max() < 0.05


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("decades", [0, 1, 2])
@pytest.mark.parametrize("shape", [(48, 64), (48, 192), (192, 48)])
def test_the_iteration_in_bf16_is_that_in_float64(shape: tuple[int, int], decades: int, steps: int) -> None:
    """Square and wide matrices, which take different ways to the same; singular values over several decades."""
    short = min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, short))[0] for side in shape)
    matrix = left * torch.logspace(0, -decades, short) @ right.T
    exact = matrix.double() / matrix.norm()
    for _ in range(steps):
        gram = exact @ exact.T
        exact = 3.4445 * exact - 4.7750 * gram @ exact + 2.0315 * gram @ gram @ exact
    error = (orthogonalise(matrix, steps=steps) - exact).norm() / exact.norm()
    assert error < 0.06


def test_the_length_of_the_gradient_does_not_matter() -> None:
    matrix = torch.randn(6, 9)
    torch.testing.assert_close(orthogonalise(matrix), orthogonalise(1024 * matrix), rtol=0.02, atol=0.02)
    assert not orthogonalise(torch.zeros(3, 4)).any()


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.Linear(6, 3),
    )


def test_which_weights_are_matrices() -> None:
    model = network()
    assert [id(w) for w in hidden_matrices(model)] == [id(model[0].weight), id(model[4].weight)]
    orthogonal, decayed, vectors = build_optimizer(model, config(opt="muon", weight_decay=0.1)).param_groups
    assert [len(g["params"]) for g in (orthogonal, decayed, vectors)] == [2, 2, 5]
    assert (orthogonal["weight_decay"], decayed["weight_decay"], vectors["weight_decay"]) == (0.1, 0.1, 0.0)
    assert sum(len(g["params"]) for g in (orthogonal, decayed, vectors)) == len(list(model.parameters()))


def test_a_step_equals_the_formulas() -> None:
    """Two steps: the second sees the momentum of the first."""
    torch.manual_seed(0)
    model = network()
    other = copy.deepcopy(model)
    settings = config(opt="muon", lr=0.1, momentum=0.8, weight_decay=0.2, muon_lr=0.03, muon_momentum=0.9, muon_weight_decay=0.5)
    optimizer = build_optimizer(model, settings)
    hidden = {id(w) for w in hidden_matrices(other)}
    memory = {id(p): torch.zeros_like(p) for p in other.parameters()}
    for step in range(2):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in model.parameters()]
        for p, q, g in zip(model.parameters(), other.parameters(), gradients, strict=True):
            p.grad = g.clone()
            m = memory[id(q)]
            with torch.no_grad():
                if id(q) in hidden:
                    m.copy_(0.9 * m + 0.1 * g)
                    direction = orthogonalise((0.1 * g + 0.9 * m).flatten(1)).view(q.shape)
                    rows, columns = q.flatten(1).shape
                    q.mul_(1 - 0.03 * 0.5).sub_(0.03 * max(1, rows / columns) ** 0.5 * direction)
                else:
                    g = g + (0.2 * q if q.ndim > 1 else 0)
                    m.copy_(0.8 * m + g)
                    q.sub_(0.1 * (g + 0.8 * m))
        optimizer.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_both_rates_follow_the_schedule() -> None:
    model = tiny_net()
    seen: list[list[float]] = []

    class Noting(Muon):
        def step(self, closure: None = None) -> None:
            seen.append([group["lr"] for group in self.param_groups])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sepnet.engine.optim.Muon", Noting)
        run(config(opt="muon", iterations=4, lr=0.4, muon_lr=0.02, sched="triangular"), model=model)
    assert seen == [pytest.approx([0.02 * f, 0.4 * f, 0.4 * f]) for f in (1, 0.75, 0.5, 0.25)]


def test_learns() -> None:
    result = run(config(opt="muon", iterations=100, sched="triangular"), evaluation=Synthetic(seed=1, batches=20))
    assert result.last is not None
    assert result.last.accuracy > 90


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 0.12)])  # in bf16 each is within 0.06 of the exact one
def test_matrices_of_several_shapes_go_through_together(bf16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do on a GPU: tall and wide ones, convolutions, and one beyond the padding of the others."""
    monkeypatch.setattr("sepnet.engine.muon.prefers_bf16", lambda device: bf16)
    updates = [torch.randn(*shape) for shape in [(12, 40), (40, 12), (8, 3, 3, 3), (300, 20), (5, 5)]]
    for update, direction in zip(updates, _directions_together(updates), strict=True):
        alone = orthogonalise(update.flatten(1)).view(update.shape)
        assert direction.shape == update.shape
        assert (direction.float() - alone.float()).norm() < tolerance * alone.float().norm()


@pytest.mark.parametrize("opt", ["muon", "sgd", "adam", "adamw"])
def test_a_learning_rate_that_is_a_tensor_is_that_number(opt: str) -> None:
    """As a recorded step has it, on a GPU."""
    results = []
    for as_tensor in (False, True):
        torch.manual_seed(0)
        model = network()
        optimizer = build_optimizer(model, config(opt=opt))
        if as_tensor:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"])
        for step in range(3):
            model(torch.full((2, 2, 6, 6), 0.1 * step + 0.1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)
