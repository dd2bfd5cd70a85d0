"""sepnet.measure.count against values worked out by hand, and the network left as it was."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from sepnet.measure import Counts, LayerCounts, count


@pytest.mark.parametrize(
    ("module", "shape", "trainable", "total", "macs"),
    [
        # 3*3*3 weights x 8 filters + 8 biases; 27 products x 8 filters x 5x5 places
        (nn.Conv2d(3, 8, 3, padding=1), (3, 5, 5), 224, 224, 5_400),
        # one 3x3 filter a channel; 9 products x 4 channels x 3x3 places of the 6x6 map at stride 2
        (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False), (4, 6, 6), 36, 36, 324),
        # two groups of 2 -> 3 channels; dilation 2 leaves 4x4 of 8x8
        (nn.Conv2d(4, 6, 3, dilation=2, groups=2, bias=False), (4, 8, 8), 108, 108, 18 * 6 * 16),
        # a kernel that is not square: 1x5, on 3x7 leaves 3x3
        (nn.Conv2d(2, 3, (1, 5), bias=False), (2, 3, 7), 30, 30, 10 * 3 * 9),
        # 12 inputs x 5 outputs + 5 biases
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), 65, 65, 60),
        # scale and shift are trained, running mean and variance are not; num_batches_tracked is no parameter
        (nn.BatchNorm2d(6), (6, 4, 4), 12, 24, 0),
        # nothing to count
        (nn.MaxPool2d(2), (1, 4, 4), 0, 0, 0),
    ],
    ids=["conv", "depthwise-stride-2", "grouped-dilated", "1x5", "linear", "batchnorm", "no-parameters"],
)
def test_counts_by_hand(module: nn.Module, shape: tuple[int, int, int], trainable: int, total: int, macs: int) -> None:
    counts = count(module, shape)
    assert (counts.params_trainable, counts.params_total, counts.macs) == (trainable, total, macs)
    assert counts.input_shape == shape


class Twice(nn.Module):
    """Applies its layers out of the order they are defined in, and one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.shared = nn.Conv2d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.shared(self.shared(x)).flatten(1))
        return y


def test_rows_follow_the_execution() -> None:
    counts = count(Twice(), (1, 2, 2))
    conv = LayerCounts("shared", "Conv2d", (1, 2, 2), 9, 36)
    assert counts.layers == (conv, conv, LayerCounts("last", "Linear", (2,), 10, 8))
    assert counts.macs == 80
    assert counts.params_trainable == 19  # the shared layer's weights are there once


def test_frozen_parameters_count_in_the_total_only() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[0].weight.requires_grad_(False)
    counts = count(model, (1, 3, 3))
    assert (counts.params_trainable, counts.params_total) == (6, 12)
    assert counts.layers[0].params == 2


def test_double_precision_model() -> None:
    assert count(nn.Conv2d(1, 1, 1).double(), (1, 2, 2)).macs == 4


def test_counts_as_json() -> None:
    counts = count(Twice(), (1, 2, 2))
    values = json.loads(json.dumps(counts.to_dict()))
    layers = tuple(LayerCounts(**{**row, "output_shape": tuple(row["output_shape"])}) for row in values.pop("layers"))
    assert Counts(**{**values, "input_shape": tuple(values["input_shape"])}, layers=layers) == counts


def half_frozen() -> nn.Sequential:
    """A network that trains with one normalisation held in evaluation mode, as fine-tuning does."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4)).train()
    model[1].eval()
    return model


@pytest.mark.parametrize("shape", [(3, 8, 8), (5, 8, 8)], ids=["good", "refused"])
def test_network_is_left_as_it_was(shape: tuple[int, int, int]) -> None:
    model = half_frozen()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    seed = torch.get_rng_state()
    if shape[0] == 3:
        count(model, shape)
    else:
        with pytest.raises(RuntimeError, match="channels"):
            count(model, shape)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), seed)
