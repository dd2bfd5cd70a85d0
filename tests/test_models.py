"""Every registered network, by its registry entry: a new network file is tested here without a new test."""

from __future__ import annotations

import copy
import io
from functools import lru_cache
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.errors import ConfigError, UnknownNameError
from sepnet.measure import count
from sepnet.models import FeatureNetwork, StagedNetwork, create_model, list_models, model_card, models
from sepnet.models._card import TOLERANCE
from sepnet.nn import FlattenMLPHead

NAMES = list_models()

# The paper's own counts as printed, by units: Wang et al. 2018, Table 2 (N = 32), Table 3 (two units), Tables 4 and 5 (three).
PRINTED = {
    "alexnet_units": {(32,): 288, (32, 64): 864, (32, 64, 128): 2016},
    "mobilenet_units": {(32,): 41, (32, 64): 114, (32, 64, 128): 251},
    "multiscale_concat": {(32,): 91, (32, 64): 246, (32, 64, 128): 529},
    "multiscale_add": {(32,): 91, (32, 64): 246, (32, 64, 128): 529},
    # Tables 3-6 print 6640 for it; no choice of widths that we found gives that, and its card says so.
    "googlenet_units": {(32,): 1216},
}

# A network's tests run one after another, so that it is built once.
every_model = pytest.mark.parametrize("name", NAMES, scope="module")

# The same code as the network beside it, deeper or wider: what is slow is tested on the smaller one alone.
LARGER = {
    "resnet101": "resnet50",
    "resnext101_32x4d": "resnext50_32x4d",
    "dsrnet50": "dsrnet50_printed",
    "separable_cnn_printed": "separable_cnn",
}
every_kind = pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGER], scope="module")

# None of their published figures is met: the paper counts another network than it prints, or only the units.
ODD = {"separable_cnn_printed", "dsrnet50_printed", *PRINTED}

LARGE = 64
"""Pixels a side from which on a forward pass takes seconds: there shapes and counts are tested without values (meta device)."""


def size_of(name: str) -> int:
    """Side of the test images: the network's own, or for one made for large images the least multiple of 8 that it takes."""
    card = model_card(name)
    return card.native_size[1] if card.native_size[1] <= LARGE else -(-card.min_size // 8) * 8


@lru_cache(maxsize=1)
def _built(name: str) -> StagedNetwork:
    return fresh(name)


def fresh(name: str, **options: Any) -> StagedNetwork:
    network = create_model(name, **{"input_size": size_of(name), **options})
    assert isinstance(network, StagedNetwork)
    return network


def build(name: str) -> StagedNetwork:
    """A network for the test images, with 10 classes."""
    return copy.deepcopy(_built(name))


def without_values(name: str, **options: Any) -> nn.Module:
    """Shapes only: a network of 138 million weights costs nothing."""
    with torch.device("meta"):
        return create_model(name, **options)


def with_plain_values(name: str, **options: Any) -> nn.Module:
    """Like ``fresh``, without the time that random weights take: each weight is 1/fan-in, normalisation leaves as it is."""
    network = without_values(name, **{"input_size": size_of(name), **options}).to_empty(device="cpu")
    for key, value in network.state_dict().items():
        value.fill_(1 / max(1, value[0].numel()) if value.ndim > 1 else float(key.endswith(("weight", "running_var"))))
    return network


def images(name: str, batch: int, *, channels: int | None = None, size: int | None = None) -> Tensor:
    return torch.randn(batch, channels or model_card(name).native_size[0], *[size or size_of(name)] * 2)


def randomise_statistics(network: nn.Module) -> None:
    """Running statistics as training would leave them: fresh ones (0 and 1) would hide a normalisation that is left out."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.5)


def trained_like(name: str) -> StagedNetwork:
    """In evaluation mode and double precision, so that equal means equal."""
    network = build(name).double().eval()
    randomise_statistics(network)
    return network


def test_there_are_networks() -> None:
    assert {"multiscale_concat", "multiscale_add"} <= set(NAMES)


@every_kind
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("which", ["native", "minimum", "odd"])
def test_forward_of_one_image(name: str, channels: int, which: str) -> None:
    card = model_card(name)
    size = {"native": size_of(name), "minimum": card.min_size, "odd": max(card.min_size + 1, size_of(name) - 3)}[which]
    network = with_plain_values(name, in_channels=channels, num_classes=7, input_size=size).eval()
    logits = network(images(name, 1, channels=channels, size=size))
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()


@every_model
@pytest.mark.parametrize("size", [96, 225])
def test_forward_of_large_images(name: str, size: int) -> None:
    network = without_values(name, num_classes=7, input_size=size).eval()
    assert network(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 7)


@every_model
def test_smaller_than_the_minimum_is_refused(name: str) -> None:
    too_small = model_card(name).min_size - 1
    with pytest.raises(ConfigError, match=rf"^model {name}: .*\b{too_small}\b"):
        create_model(name, input_size=too_small)


@every_model
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = build(name).train()
    F.cross_entropy(network(images(name, 4)), torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{key} takes no part"
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, f"{key} has no influence"


@every_model
def test_counts_are_those_of_the_card(name: str) -> None:
    card = model_card(name)
    channels, size, _ = card.native_size
    network = without_values(name, num_classes=card.num_classes, in_channels=channels, input_size=size)
    counts = count(network, card.native_size)
    assert (counts.params_trainable, counts.params_total, counts.macs) == (card.params_trainable, card.params_total, card.macs)


@every_model
def test_published_figures_are_met_or_the_difference_is_explained(name: str) -> None:
    card = model_card(name)
    assert card.published or card.published_params, "a network without a published count: say so in this test"
    for figure in card.published:
        off = abs(getattr(card, figure.quantity) / figure.value - 1)
        assert figure.source
        assert off <= TOLERANCE or figure.difference, f"{figure.value:,} is off by {off:.1%}"
        assert off > TOLERANCE / 10 or not figure.difference, "nothing to explain"
    assert any(abs(getattr(card, f.quantity) / f.value - 1) <= TOLERANCE for f in card.published) or name in ODD


@every_model
def test_default_network_is_that_of_the_card(name: str) -> None:
    options = models.get(name).options
    card = model_card(name)
    assert (options["in_channels"], options["input_size"]) == card.native_size[:2]
    assert card.native_size[1] == card.native_size[2]


@every_model
def test_published_counts_are_those_printed(name: str) -> None:
    card = model_card(name)
    assert (card.published_params is not None) == (name in PRINTED), "put the paper's printed counts into PRINTED"
    if card.published_params is not None:
        printed = PRINTED[name]
        assert {units: card.published_params(units) for units in printed} == printed


def test_the_printed_count_that_follows_from_nothing_is_admitted() -> None:
    assert "6640" in model_card("googlenet_units").published_note


@every_model
def test_card_is_filled_in(name: str) -> None:
    card = model_card(name)
    assert card.paper
    assert card.where
    assert card.summary
    assert card.readings, "every paper here leaves something open; the card says how it was read"
    differences = [figure.difference for figure in card.published]
    assert not any("\n" in text for text in (card.summary, card.where, card.published_note, *card.readings, *differences))


@every_kind
def test_same_seed_same_weights(name: str) -> None:
    torch.manual_seed(5)
    first = fresh(name).state_dict()
    torch.manual_seed(5)
    second = fresh(name).state_dict()
    assert all(torch.equal(second[key], value) for key, value in first.items())


@every_kind
def test_release_and_state_dict_round_trip(name: str) -> None:
    network = trained_like(name).float()
    x = images(name, 2)
    expected = network(x)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    stored = {
        "safetensors": safetensors.torch.load(safetensors.torch.save(network.state_dict())),
        "torch": torch.load(io.BytesIO(file.getvalue()), weights_only=True),
    }
    for kind, state in stored.items():
        other = with_plain_values(name).eval()
        assert not torch.equal(other(x), expected)
        other.load_state_dict(state, strict=True)
        assert torch.equal(other(x), expected), kind


@every_kind
def test_image_does_not_depend_on_its_batch(name: str) -> None:
    network = trained_like(name)
    x = images(name, 5).double()
    torch.testing.assert_close(torch.cat([network(image[None]) for image in x]), network(x), rtol=1e-10, atol=1e-12)


@every_kind
def test_channels_last_is_the_same_network(name: str) -> None:
    batch = 8 if size_of(name) < 16 else 2  # fewer leave the normalisation of a 1x1 map ill-conditioned
    x = images(name, batch).double()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = build(name).double().train().to(memory_format=layout)
        for module in network.modules():
            if isinstance(module, nn.Dropout):  # it draws its mask in the order of the memory
                module.p = 0.0
        torch.manual_seed(1)
        logits = network(x.to(memory_format=layout))
        F.cross_entropy(logits, torch.arange(batch)).backward()
        results.append([logits.detach(), *(p.grad for p in network.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@every_model
def test_forward_is_features_then_head(name: str) -> None:
    network = trained_like(name)
    x = images(name, 2).double()
    features = network.forward_features(x)
    assert features.ndim == 4
    assert features.shape[1] == network.feature_info[-1].channels
    assert torch.equal(network.forward_head(features), network(x))
    hidden = network.forward_head(features, pre_logits=True)
    assert hidden.ndim == 2
    assert hidden.shape[0] == len(x)
    if name != "squeezenet":  # its classifier is a convolution with ReLU that stands before the average
        assert torch.equal(network.get_classifier()(hidden), network(x))


@every_model
def test_image_of_another_size_is_refused_or_classified(name: str) -> None:
    network = build(name).eval()
    x = images(name, 1, size=2 * size_of(name))
    if any(isinstance(module, FlattenMLPHead) for module in network.modules()):
        with pytest.raises(ValueError, match="build the network with the input_size of its images"):
            network(x)
    else:
        assert network(x).shape == (1, 10)


@every_model
def test_features_only_maps_are_as_announced(name: str) -> None:
    network = with_plain_values(name, features_only=True)
    assert isinstance(network, FeatureNetwork)
    x = images(name, 2)
    maps = network.eval()(x)
    assert len(maps) == len(network.feature_info)
    for feature_map, info in zip(maps, network.feature_info, strict=True):
        assert feature_map.shape == (2, info.channels, x.shape[2] // info.reduction, x.shape[3] // info.reduction)
        assert isinstance(network.get_submodule(info.module), nn.Module)


@every_model
@pytest.mark.parametrize("size", [32, 64, 224])
def test_pyramid_of_the_usual_sizes(name: str, size: int) -> None:
    network = without_values(name, features_only=True, input_size=size)
    assert isinstance(network, FeatureNetwork)
    maps = network(torch.zeros(1, 3, size, size, device="meta"))
    reductions = [info.reduction for info in network.feature_info]
    assert reductions == sorted(reductions)
    assert len(maps) >= 2
    for feature_map, info in zip(maps, network.feature_info, strict=True):
        assert feature_map.shape[1] == info.channels
        # within 4 pixels of the image: SqueezeNet's first convolution and poolings have no border
        assert all(abs(side - size / info.reduction) <= 4 / info.reduction + 1 for side in feature_map.shape[2:])


@every_kind
def test_features_only_picks_levels_and_takes_the_networks_weights(name: str) -> None:
    full = trained_like(name)
    x = images(name, 2).double()
    everything: dict[str, Tensor] = {}
    for info in full.feature_info:
        full.get_submodule(info.module).register_forward_hook(lambda _, __, y, at=info.module: everything.update({at: y.clone()}))
    assert torch.equal(full.forward_features(x), everything[full.feature_info[-1].module])
    last = len(full.feature_info) - 1
    for indices, kept in (((0,), [0]), ((-1,), [last]), ((0, -1), [0, last])):
        part = without_values(name, features_only=True, out_indices=indices, input_size=size_of(name)).double().eval()
        missing, left_over = part.load_state_dict(full.state_dict(), strict=False, assign=True)
        assert missing == []
        assert not set(left_over) & set(part.state_dict())
        assert part.feature_info == tuple(full.feature_info[i] for i in kept)
        for got, index in zip(part(x), kept, strict=True):
            assert torch.equal(got, everything[full.feature_info[index].module])


@every_model
@pytest.mark.parametrize("indices", [(99,), (-99,), (1, 0), (0, 0), (), "0", (None,)], ids=repr)
def test_bad_out_indices(name: str, indices: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^model {name}: [^\n]+$"):
        without_values(name, features_only=True, out_indices=indices)


def test_out_indices_without_features_only() -> None:
    with pytest.raises(ConfigError, match="out_indices needs features_only=True"):
        create_model(NAMES[0], out_indices=(0,))


@every_model
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_classes", 0),
        ("num_classes", 2.0),
        ("num_classes", True),
        ("in_channels", -1),
        ("in_channels", "three\nlines"),
        ("input_size", 0),
        ("input_size", None),
        ("input_size", 2**62),
        ("units", ()),
        ("units", (32, 0)),
        ("units", (32, "64")),
        ("units", 32),
        ("units", "32"),
        ("residual", "no"),
        ("rate", -1),
        ("rate", 1.5),
        ("strides", (1, 2)),
        ("strides", (1, 1, 1, 1, 1, 1, 1, 1, 0)),
        ("stem", "large"),
        ("dropout", 1.0),
        ("dropout", "half"),
        ("width", 0),
        ("width", "wide"),
        ("large_kernel", 7),
        ("aux", 1),
        ("transform_input", "yes"),
        ("border", "twice"),
        ("no_such\noption", 1),
    ],
)
def test_bad_option_is_one_line(name: str, option: str, value: Any) -> None:
    # Some of these options are not every network's own; there the message says so.
    with pytest.raises(ConfigError) as caught:
        create_model(name, **{option: value})
    message = str(caught.value)
    assert message.startswith(f"model {name}")
    assert message.isprintable()
    if option not in models.get(name).options:
        assert "has no option" in message
    elif value not in ((), 2**62):  # nothing to show; and too large a network is reported by its memory
        shown = value[-1] if isinstance(value, tuple) else value
        assert str(shown).partition("\n")[0] in message, "the message shows the value"


def test_unknown_network_offers_the_close_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean .*multiscale_concat"):
        create_model("multiscale_conct")
