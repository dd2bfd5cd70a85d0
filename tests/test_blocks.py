"""The blocks of the papers' networks and of the baselines, against plain convolutions written out here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.errors import ConfigError
from sepnet.models import create_model
from sepnet.nn import Bottleneck, DilatedSeparableBlock, Fire, FlattenMLPHead, Inception, PoolHead, SeparableBlock, depthwise
from sepnet.nn.init import glorot_, he_normal_, spread_shifts_


def ready(block: Any) -> Any:
    """In evaluation mode and double precision, with statistics that are not 0 and 1."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return block.double().eval()


def norm(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var, weight, bias = (t[:, None, None] for t in (module.running_mean, module.running_var, module.weight, module.bias))
    return (x - mean) / torch.sqrt(var + module.eps) * weight + bias


def spread(weight: Tensor, dilation: int) -> Tensor:
    """A dilated kernel (C, 1, 3, 3) as the plain one (C, 1, 2D + 1, 2D + 1) with zeros between."""
    wide = torch.zeros(*weight.shape[:2], 2 * dilation + 1, 2 * dilation + 1, dtype=weight.dtype)
    wide[:, :, ::dilation, ::dilation] = weight
    return wide


@pytest.mark.parametrize("rate", [0, 1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_joint_module_is_a_wide_depthwise_then_a_pointwise_convolution(rate: int, stride: int) -> None:
    block = ready(DilatedSeparableBlock(3, 5, rate=rate, stride=stride))
    x = torch.randn(2, 3, 16, 15, dtype=torch.float64)
    wide = spread(block.dw.weight, 2 * rate + 1)
    y = F.conv2d(x, wide, stride=stride, padding=2 * rate + 1, groups=3)
    y = F.relu(norm(block.bn, F.conv2d(y, block.pw.weight)))
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rate", "covered"), [(0, 3), (1, 7), (2, 11), (3, 15)])
def test_equation_1_of_sun(rate: int, covered: int) -> None:
    """A filter of size 3 with rate d covers (3 + 1) d + 3 pixels."""
    x = torch.zeros(1, 1, 31, 31, requires_grad=True)
    DilatedSeparableBlock(1, 1, rate=rate).dw(x)[0, 0, 15, 15].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    assert rows.max() - rows.min() + 1 == covered == (3 + 1) * rate + 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_block(bias: bool, stride: int) -> None:
    block = ready(SeparableBlock(3, 5, stride=stride, bias=bias))
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    y = F.relu(norm(block.bn1, F.conv2d(x, block.dw.weight, block.dw.bias, stride=stride, padding=1, groups=3)))
    y = F.relu(norm(block.bn2, F.conv2d(y, block.pw.weight, block.pw.bias)))
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)
    assert (block.dw.bias is not None) == (block.pw.bias is not None) == bias


@pytest.mark.parametrize(
    ("in_channels", "spatial", "projects"),
    [
        (8, depthwise(4), False),
        (8, depthwise(4, stride=2, dilation=2), True),
        (6, depthwise(4), True),
        (8, nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), False),
    ],
    ids=["identity", "strided", "other channels", "grouped"],
)
def test_bottleneck(in_channels: int, spatial: nn.Conv2d, projects: bool) -> None:
    block = ready(Bottleneck(in_channels, 8, spatial))
    x = torch.randn(2, in_channels, 6, 6, dtype=torch.float64)
    y = F.relu(norm(block.bn1, F.conv2d(x, block.conv1.weight)))
    y = F.relu(norm(block.bn2, spatial(y)))
    y = norm(block.bn3, F.conv2d(y, block.conv3.weight))
    assert (block.downsample is not None) is projects
    shortcut = norm(block.downsample[1], F.conv2d(x, block.downsample[0].weight, stride=spatial.stride)) if projects else x
    torch.testing.assert_close(block(x), F.relu(shortcut + y), rtol=1e-12, atol=1e-12)


def test_input_is_left_as_it_was() -> None:
    for block in (Bottleneck(8, 8, depthwise(4)), Fire(8, 2, 4), Inception(8, 2, 2, 2, 2, 2, 2), SeparableBlock(8, 8)):
        x = torch.randn(2, 8, 6, 6)
        before = x.clone()
        block(x)
        assert torch.equal(x, before), type(block).__name__


def test_fire_and_inception_concatenate_their_branches() -> None:
    x = torch.randn(1, 6, 5, 5)
    assert Fire(6, 2, 4)(x).shape == (1, 8, 5, 5)
    inception = Inception(6, 1, 2, 3, 4, 5, 6)
    assert inception(x).shape == (1, 1 + 3 + 5 + 6, 5, 5)
    assert inception.branch3[1].conv.kernel_size == (5, 5)
    assert Inception(6, 1, 2, 3, 4, 5, 6, large_kernel=3).branch3[1].conv.kernel_size == (3, 3)


def test_pool_head_takes_any_map() -> None:
    head = PoolHead(6, 4)
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(head(x), head.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1)))
    torch.testing.assert_close(head(x, pre_logits=True), x.mean((2, 3)))


def test_flatten_head_of_any_depth() -> None:
    head = FlattenMLPHead(2 * 3 * 3, 4, (7,), dropout=0.5)
    x = torch.randn(8, 2, 3, 3)
    assert head.eval()(x, pre_logits=True).shape == (8, 7)
    zeros = [(head.train()(x, pre_logits=True) == 0).sum() for _ in range(2)]
    assert min(zeros) > (head.eval()(x, pre_logits=True) == 0).sum()


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: SeparableBlock(0, 4), "in_channels .* got 0"),
        (lambda: SeparableBlock(4, 4, stride=0), "stride .* got 0"),
        (lambda: DilatedSeparableBlock(4, 4, rate=-1), "rate .* got -1"),
        (lambda: DilatedSeparableBlock(4, 4, rate=True), "rate .* got True"),
        (lambda: Bottleneck(4, 0, depthwise(2)), "out_channels .* got 0"),
        (lambda: Fire(4, 0, 2), "squeeze .* got 0"),
        (lambda: Inception(4, 0, 1, 1, 1, 1, 1), "out_channels .* got 0"),
        (lambda: PoolHead(4, 0), "num_classes .* got 0"),
        (lambda: FlattenMLPHead(4, 2, dropout=1), "dropout .* got 1"),
    ],
)
def test_bad_sizes_show_the_value(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


def test_glorot_weights_of_keras() -> None:
    network = create_model("standard_cnn")
    weight = network.get_submodule("stages.2.conv").weight
    bound = math.sqrt(6 / (9 * 64 + 9 * 128))
    assert 0.98 * bound < weight.abs().max() <= bound
    assert all(not m.bias.any() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    layer = nn.Linear(30, 20)
    glorot_(layer)
    assert layer.weight.abs().max() <= math.sqrt(6 / 50)


def test_he_weights_count_the_fan_out_of_a_group() -> None:
    layers = nn.ModuleList([nn.Conv2d(64, 256, 3), nn.Conv2d(256, 256, 3, groups=256), nn.Linear(8, 8)])
    before = layers[2].weight.clone()
    he_normal_(layers)
    for layer, fan_out in ((layers[0], 9 * 256), (layers[1], 9)):
        assert abs(layer.weight.std() / math.sqrt(2 / fan_out) - 1) < 0.1
        assert not layer.bias.any()
    assert torch.equal(layers[2].weight, before)


@pytest.mark.parametrize("rate", [0, 1, 2])
def test_an_output_of_the_dilated_network_sees_pixels_a_multiple_of_the_dilation_apart(rate: int) -> None:
    """What the reading of the paper's rate means for small images: strides do not mix the remainders."""
    network = ready(create_model("dilated_separable", rate=rate, input_size=32))
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    network.forward_features(x)[0, :, 1, 2].square().sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert {len(set((seen[:, axis] % (2 * rate + 1)).tolist())) for axis in (0, 1)} == {1}
    assert len(seen) > 20


@pytest.mark.parametrize(("side", "reduction"), [(32, 8), (64, 8), (127, 8), (128, 16), (224, 16)])
def test_the_dilated_network_reduces_large_images_more(side: int, reduction: int) -> None:
    assert create_model("dilated_separable", input_size=side).feature_info[-1].reduction == reduction


def test_strides_of_the_dilated_network_are_free() -> None:
    flat, steep = (create_model("dilated_separable", strides=s, input_size=16) for s in ((1,) * 9, (2, 2, 2, 2, 1, 1, 1, 1, 1)))
    steep.load_state_dict(flat.state_dict())
    assert [i.reduction for i in flat.feature_info] == [1]
    assert [(i.channels, i.reduction) for i in steep.feature_info] == [(32, 2), (64, 4), (128, 8), (1024, 16)]


def test_spread_shifts_of_the_first_unit_only() -> None:
    plain, spread = (create_model("multiscale_add", units=(4, 8), in_channels=1, input_size=8, spread=s) for s in (0, 2.0))
    first, second = (spread.get_submodule(f"stages.{i}.bn").bias for i in (0, 1))
    assert first.abs().max() <= 2
    assert first.std() > 0.5
    assert not second.any()
    assert not plain.get_submodule("stages.0.bn").bias.any()
    unit = nn.Sequential(nn.BatchNorm2d(50), nn.Conv2d(50, 3, 1))
    before = unit[1].bias.clone()
    spread_shifts_(unit, 1.0)
    assert torch.equal(unit[1].bias, before)


@pytest.mark.parametrize("spread", [-1, True, "1", math.inf, math.nan])
def test_a_spread_that_is_none_is_refused(spread: Any) -> None:
    with pytest.raises(ConfigError, match="spread must be a number of at least 0"):
        create_model("multiscale_concat", spread=spread)
