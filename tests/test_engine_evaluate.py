"""The figures of an evaluation against scikit-learn and against computations by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.engine import EvalResult, evaluate
from training_tools import FABRIC, tiny_net


class Table(nn.Module):
    """An "image" (1, 1, C) is its own logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0]


def batches(logits: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(logits[:, None, None].split(size), labels.split(size), strict=True))


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    return torch.randn(103, 7) * 3, torch.randint(7, (103,))


@pytest.mark.parametrize("size", [1, 10, 103])
def test_figures_do_not_depend_on_the_batches(drawn: tuple[Tensor, Tensor], size: int) -> None:
    logits, labels = drawn
    result = evaluate(Table(), batches(logits, labels, size), 7, FABRIC)
    order = logits.argsort(1, descending=True)
    assert result.images == 103
    assert result.accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    for k in (3, 5):
        assert result.topk[k] == pytest.approx(100 * (order[:, :k] == labels[:, None]).any(1).float().mean().item())
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert [list(row) for row in result.confusion] == confusion_matrix(labels, logits.argmax(1)).tolist()
    assert result.accuracy_tta is None


def test_per_class_equals_scikit_learn(drawn: tuple[Tensor, Tensor]) -> None:
    logits, labels = drawn
    rows = evaluate(Table(), batches(logits, labels, 50), 7, FABRIC).per_class()
    expected = precision_recall_fscore_support(labels, logits.argmax(1), labels=range(7))
    for row, precision, recall, f1, support in zip(rows, *expected, strict=True):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((100 * precision, 100 * recall, 100 * f1))
        assert row["support"] == support


def test_a_class_without_images_has_no_figures() -> None:
    rows = EvalResult(loss=1.0, accuracy=100.0, topk={}, images=2, confusion=((2, 0), (0, 0))).per_class()
    assert rows[1] == {"precision": None, "recall": None, "f1": None, "support": 0}


def test_flipping_averages_the_logits_of_both_images() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.5], [0.0, 1.0, 3.0]])  # mirrored: columns 0 and 2 change places
    labels = torch.tensor([2, 2])
    result = evaluate(Table(), batches(logits, labels, 2), 3, FABRIC, tta=True)
    assert result.accuracy == 50
    assert result.accuracy_tta == 0  # both sums are largest, or equal, in column 0


def test_fewer_than_five_classes() -> None:
    result = evaluate(Table(), batches(torch.randn(9, 3), torch.randint(3, (9,)), 4), 3, FABRIC)
    assert result.topk == {3: 100, 5: 100}


def test_changes_nothing_in_the_network() -> None:
    model = tiny_net().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    evaluate(model, [(torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]))], 3, FABRIC)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="empty split"):
        evaluate(Table(), [], 3, FABRIC)
