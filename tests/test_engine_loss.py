"""The training loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.engine.loss import AUXILIARY_WEIGHT, classification_loss
from training_tools import CLASSES, Synthetic, TinyNet, config, run


class TwoAnswers(TinyNet):
    """While training it answers with an auxiliary classifier too."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return (logits, self.auxiliary(self.conv(x).mean((2, 3)))) if self.training else logits


def test_one_answer_is_plain_cross_entropy() -> None:
    logits, target = torch.randn(6, 4), torch.randint(4, (6,))
    loss, answer = classification_loss(logits, target, smoothing=0.1)
    assert answer is logits
    assert torch.equal(loss, F.cross_entropy(logits, target, label_smoothing=0.1))


def test_auxiliary_answers_weigh_less() -> None:
    answers = tuple(torch.randn(6, 4) for _ in range(3))
    target = torch.randint(4, (6,))
    loss, answer = classification_loss(answers, target, smoothing=0.2)
    assert answer is answers[0]
    main, *others = (F.cross_entropy(a, target, label_smoothing=0.2) for a in answers)
    torch.testing.assert_close(loss, main + AUXILIARY_WEIGHT * sum(others))


def test_half_precision_is_summed_in_float32() -> None:
    loss, _ = classification_loss((torch.randn(6, 4).bfloat16(), torch.randn(6, 4).bfloat16()), torch.randint(4, (6,)))
    assert loss.dtype is torch.float32


def test_the_engine_trains_and_evaluates_a_network_of_two_answers() -> None:
    model = TwoAnswers()
    before = model.auxiliary.weight.clone()
    result = run(config(iterations=60, ema=0.5), model=model, evaluation=Synthetic(seed=1))
    assert result.last is not None
    assert result.last.accuracy > 50
    assert not torch.equal(model.auxiliary.weight, before)
