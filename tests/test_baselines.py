"""The networks that the papers compare with: torchvision's weight files, stems, multipliers, auxiliary heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.errors import ConfigError
from sepnet.measure import count
from sepnet.models import FeatureNetwork, StagedNetwork, create_model
from sepnet.models._size import choose_stem
from torchvision_layouts import FIRE, INCEPTION, LAYOUTS, PUBLISHED, Shapes

every_layout = pytest.mark.parametrize("name", LAYOUTS)


def without_values(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options)


# --- torchvision's weight files ---------------------------------------------------------------------------------------


def parameters(shapes: Shapes) -> int:
    counted = {k: v for k, v in shapes.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    return sum(math.prod(shape) for key, shape in counted.items() if not key.startswith("aux"))


@every_layout
def test_layouts_have_the_sizes_that_torchvision_publishes(name: str) -> None:
    assert parameters(LAYOUTS[name]()) == PUBLISHED[name]


@every_layout
@pytest.mark.parametrize("statistics", ["with counters", "from before there were counters"])
def test_torchvisions_file_loads_unchanged(name: str, statistics: str) -> None:
    with torch.device("meta"):
        file = {key: torch.empty(shape) for key, shape in LAYOUTS[name]().items()}
    if statistics != "with counters":
        file = {key: value for key, value in file.items() if not key.endswith("num_batches_tracked")}
    for options in [{}, {"aux": True}] if name == "googlenet" else [{}]:
        network = without_values(name, num_classes=1000, **options)
        network.load_state_dict(file, strict=True, assign=True)  # without values there is nothing to copy


@every_layout
def test_state_dict_has_torchvisions_names_and_shapes(name: str) -> None:
    options = {"aux": True} if name == "googlenet" else {}
    network = without_values(name, num_classes=1000, **options)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == LAYOUTS[name]()


State = dict[str, Tensor]


def filled(shapes: Shapes) -> State:
    """Weights that keep the size of the values, and statistics that are not 0 and 1."""
    state: State = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, dtype=torch.float64) + 0.5
        elif len(shape) > 1:
            state[key] = torch.randn(shape, dtype=torch.float64) * (2 / math.prod(shape[1:])) ** 0.5
        else:
            state[key] = torch.randn(shape, dtype=torch.float64) * 0.2 + (0.8 if key.endswith("weight") else 0)
    return state


def conv(state: State, key: str, x: Tensor, **options: Any) -> Tensor:
    return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), **options)


def norm(state: State, key: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, var, weight, bias = (state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def residual_reference(state: State, x: Tensor, blocks: tuple[int, ...], groups: int) -> Tensor:
    x = F.max_pool2d(F.relu(norm(state, "bn1", conv(state, "conv1", x, stride=2, padding=3))), 3, 2, 1)
    for stage, number in enumerate(blocks):
        for block in range(number):
            key, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = F.relu(norm(state, f"{key}.bn1", conv(state, f"{key}.conv1", x)))
            y = F.relu(norm(state, f"{key}.bn2", conv(state, f"{key}.conv2", y, stride=stride, padding=1, groups=groups)))
            y = norm(state, f"{key}.bn3", conv(state, f"{key}.conv3", y))
            if not block:
                x = norm(state, f"{key}.downsample.1", conv(state, f"{key}.downsample.0", x, stride=stride))
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def squeeze_reference(state: State, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(conv(state, "features.0", x, stride=2)), 3, 2, ceil_mode=True)
    for place in FIRE:
        if place in (7, 12):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        y = F.relu(conv(state, f"features.{place}.squeeze", x))
        wide = conv(state, f"features.{place}.expand1x1", y), conv(state, f"features.{place}.expand3x3", y, padding=1)
        x = F.relu(torch.cat(wide, 1))
    return F.relu(conv(state, "classifier.1", x)).mean((2, 3))


def inception_reference(state: State, x: Tensor) -> Tensor:
    def unit(key: str, x: Tensor, **options: Any) -> Tensor:
        return F.relu(norm(state, f"{key}.bn", conv(state, f"{key}.conv", x, **options), eps=1e-3))

    x = F.max_pool2d(unit("conv1", x, stride=2, padding=3), 3, 2, ceil_mode=True)
    x = unit("conv3", unit("conv2", x), padding=1)
    for name in INCEPTION:
        if name in ("3a", "4a", "5a"):
            x = F.max_pool2d(x, 2 if name == "5a" else 3, 2, ceil_mode=True)
        key = f"inception{name}"
        branches = [unit(f"{key}.branch1", x)]
        branches += [unit(f"{key}.branch{i}.1", unit(f"{key}.branch{i}.0", x), padding=1) for i in (2, 3)]
        branches.append(unit(f"{key}.branch4.1", F.max_pool2d(x, 3, 1, 1)))
        x = torch.cat(branches, 1)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def vgg_reference(state: State, x: Tensor) -> Tensor:
    for i in range(31):
        if f"features.{i}.weight" in state:
            x = F.relu(conv(state, f"features.{i}", x, padding=1))
        elif i in (4, 9, 16, 23, 30):
            x = F.max_pool2d(x, 2)
    x = F.adaptive_avg_pool2d(x, state["classifier.0.weight"].shape[1] // 512 if x.shape[2] > 1 else 1).flatten(1)
    for i in (0, 3):
        x = F.relu(F.linear(x, state[f"classifier.{i}.weight"], state[f"classifier.{i}.bias"]))
    return F.linear(x, state["classifier.6.weight"], state["classifier.6.bias"])


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("resnet50", lambda state, x: residual_reference(state, x, (3, 4, 6, 3), 1)),
        ("resnext50_32x4d", lambda state, x: residual_reference(state, x, (3, 4, 6, 3), 32)),
        ("squeezenet", squeeze_reference),
        ("googlenet", inception_reference),
    ],
)
def test_loaded_weights_compute_what_torchvisions_network_does(name: str, reference: Callable[[State, Tensor], Tensor]) -> None:
    network = create_model(name, num_classes=1000, stem="imagenet", input_size=37).double().eval()
    state = filled(LAYOUTS[name]())
    network.load_state_dict(state)
    x = torch.randn(2, 3, 37, 37, dtype=torch.float64)
    torch.testing.assert_close(network(x), reference(state, x), rtol=1e-9, atol=1e-9)


def test_vgg_computes_what_its_table_says() -> None:
    network = create_model("vgg16", input_size=32).double().eval()  # its published head has 120 million weights
    state = filled({key: tuple(value.shape) for key, value in network.state_dict().items()})
    network.load_state_dict(state)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(x), vgg_reference(state, x), rtol=1e-9, atol=1e-9)


# --- stems ------------------------------------------------------------------------------------------------------------

RESIDUAL = ("resnet50", "resnext50_32x4d", "dsrnet50")
LAST_MAPS = {
    **{name: {32: 4, 64: 4, 96: 6, 128: 4, 224: 7} for name in (*RESIDUAL, "mobilenet_v1", "googlenet")},
    "squeezenet": {32: 8, 64: 8, 96: 12, 128: 7, 224: 13},
    "vgg16": {32: 1, 64: 2, 96: 3, 128: 4, 224: 7},
}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, maps in LAST_MAPS.items() for size in maps])
def test_stem_by_the_size_of_the_images(name: str, size: int) -> None:
    network = without_values(name, input_size=size)
    features = network.forward_features(torch.zeros(1, 3, size, size, device="meta"))
    assert features.shape[2:] == (LAST_MAPS[name][size],) * 2
    chosen = "small" if size < 64 else "medium" if size < 128 else "imagenet"
    asked = without_values(name, input_size=size, stem=chosen)
    assert [(k, v.shape) for k, v in asked.state_dict().items()] == [(k, v.shape) for k, v in network.state_dict().items()]


@pytest.mark.parametrize(
    ("size", "stem"), [(1, "small"), (63, "small"), (64, "medium"), (127, "medium"), (128, "imagenet"), (224, "imagenet")]
)
def test_limits_of_the_stems(size: int, stem: str) -> None:
    assert choose_stem(None, size) == stem
    assert choose_stem("medium", size) == "medium"


@pytest.mark.parametrize("name", LAST_MAPS)
@pytest.mark.parametrize("stem", ["small", "medium", "imagenet"])
def test_every_stem_at_one_size_and_its_minimum(name: str, stem: str) -> None:
    network = without_values(name, input_size=64, stem=stem)
    assert network(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"input_size \d+ is too small: .* takes at least \d+") as caught:
        create_model(name, input_size=1, stem=stem)
    least = int(str(caught.value).split()[-1])
    assert without_values(name, input_size=least, stem=stem)(torch.zeros(2, 3, least, least, device="meta")).shape == (2, 10)
    with pytest.raises(ConfigError, match=rf"input_size {least - 1} is too small"):
        create_model(name, input_size=least - 1, stem=stem)


def test_dilated_stem_is_the_papers_alone() -> None:
    paper, small = (without_values("dsrnet50", input_size=size).get_submodule("conv1") for size in (224, 32))
    assert (paper.kernel_size, paper.stride, paper.dilation) == ((7, 7), (2, 2), (3, 3))
    assert (small.kernel_size, small.stride, small.dilation) == ((3, 3), (1, 1), (1, 1))


def test_dsrnet_dilates_where_a_stage_halves_the_map() -> None:
    network = without_values("dsrnet50")
    spatial = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(m.groups == m.in_channels for m in spatial)
    assert [m.dilation[0] for m in spatial] == [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]
    assert all((m.dilation == (2, 2)) == (m.stride == (2, 2)) for m in spatial)


# --- MobileNet's multipliers (Howard et al. 2017, Tables 6 and 7) -------------------------------------------------------


@pytest.mark.parametrize(("width", "macs", "params"), [(1.0, 569, 4.2), (0.75, 325, 2.6), (0.5, 149, 1.3), (0.25, 41, 0.5)])
def test_width_multiplier(width: float, macs: int, params: float) -> None:
    counts = count(without_values("mobilenet_v1", width=width, num_classes=1000), (3, 224, 224))
    assert abs(counts.macs / 1e6 - macs) < 1
    assert abs(counts.params_trainable / 1e6 - params) < 0.05


@pytest.mark.parametrize(("size", "macs"), [(224, 569), (192, 418), (160, 290), (128, 186)])
def test_resolution_multiplier(size: int, macs: int) -> None:
    counts = count(without_values("mobilenet_v1", input_size=size, num_classes=1000), (3, size, size))
    assert abs(counts.macs / 1e6 - macs) < 1


def test_mobilenets_weights_fit_every_stem() -> None:
    large = without_values("mobilenet_v1").state_dict()
    for stem in ("small", "medium"):
        without_values("mobilenet_v1", stem=stem, input_size=32).load_state_dict(large, strict=True)


# --- GoogLeNet ---------------------------------------------------------------------------------------------------------


def test_auxiliary_heads_answer_in_training_alone() -> None:
    network = create_model("googlenet", aux=True, num_classes=7, input_size=16)
    x = torch.randn(2, 3, 16, 16)
    answers = network.train()(x)
    assert [a.shape for a in answers] == [(2, 7)] * 3
    sum(a.sum() for a in answers).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.eval()(x).shape == (2, 7)


def test_auxiliary_heads_read_the_maps_of_4a_and_4d() -> None:
    network = create_model("googlenet", aux=True, dropout=0.0, input_size=16).double().train()
    maps: dict[str, Tensor] = {}
    for name in ("inception4a", "inception4d"):
        network.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: maps.update({name: y}))
    heads: dict[str, Tensor] = {}
    for name in ("aux1", "aux2"):
        network.get_submodule(name).register_forward_hook(lambda _, x, __, name=name: heads.update({name: x[0]}))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    logits, *_ = network(x)
    assert heads["aux1"] is maps["inception4a"]
    assert heads["aux2"] is maps["inception4d"]
    plain = create_model("googlenet", dropout=0.0, input_size=16).double().train()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(plain(x), logits)


def test_the_papers_kernels() -> None:
    paper = count(without_values("googlenet", num_classes=1000, large_kernel=5), (3, 224, 224)).params_trainable
    # Table 1 of the paper, whose K is 1,024, without its first row, which is not that of a 7x7 convolution
    printed = 1024 * sum((112, 159, 380, 364, 437, 463, 580, 840, 1072, 1388, 1000))
    assert abs((paper - 64 * 3 * 7 * 7) / printed - 1) < 0.01


def test_transform_input_is_the_change_of_normalisation() -> None:
    network = create_model("googlenet", input_size=16, transform_input=True).double().eval()
    network.load_state_dict(create_model("googlenet", input_size=16).state_dict())
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen: list[Tensor] = []
    network.get_submodule("conv1").register_forward_hook(lambda _, x, __: seen.append(x[0]))
    network((pixels - mean) / std)
    torch.testing.assert_close(seen[0], (pixels - 0.5) / 0.5, rtol=1e-5, atol=1e-5)
    assert isinstance(create_model("googlenet", input_size=16, transform_input=True, features_only=True), FeatureNetwork)
    with pytest.raises(ConfigError, match="in_channels 1"):
        create_model("googlenet", in_channels=1, transform_input=True)


# --- dropout, weights at the start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg16", "squeezenet", "googlenet", "standard_cnn"])
def test_dropout_acts_in_training_alone(name: str) -> None:
    network: StagedNetwork = create_model(name, input_size=32)
    x = network.forward_features(torch.randn(2, 3, 32, 32)).detach()
    network.eval()
    assert torch.equal(network.forward_head(x), network.forward_head(x))
    network.train()
    assert not torch.equal(network.forward_head(x), network.forward_head(x))
    without: StagedNetwork = create_model(name, input_size=32, dropout=0.0).train()
    assert torch.equal(without.forward_head(x), without.forward_head(x))


@pytest.mark.parametrize("name", ["vgg16", "squeezenet"])
def test_networks_without_normalisation_keep_the_size_of_the_values(name: str) -> None:
    features = create_model(name, input_size=32).forward_features(torch.randn(4, 3, 32, 32))
    assert 0.05 < features.pow(2).mean().sqrt() < 20
