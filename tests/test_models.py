"""Every registered network, by its registry entry: a new network file is tested here without a new test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet.errors import ConfigError, UnknownNameError
from sepnet.measure import count
from sepnet.models import FeatureNetwork, StagedNetwork, create_model, list_models, model_card, models
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

every_model = pytest.mark.parametrize("name", NAMES)


def build(name: str, **options: Any) -> StagedNetwork:
    network = create_model(name, **options)
    assert isinstance(network, StagedNetwork)
    return network


def images(name: str, batch: int, *, channels: int | None = None, size: int | None = None) -> Tensor:
    native = model_card(name).native_size
    return torch.randn(batch, channels or native[0], size or native[1], size or native[2])


def randomise_statistics(network: nn.Module) -> None:
    """Running statistics as training would leave them: fresh ones (0 and 1) would hide a normalisation that is left out."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.5)


def trained_like(name: str, **options: Any) -> StagedNetwork:
    """In evaluation mode and double precision, so that equal means equal."""
    network = build(name, **options).double().eval()
    randomise_statistics(network)
    return network


def test_there_are_networks() -> None:
    assert {"multiscale_concat", "multiscale_add"} <= set(NAMES)


@every_model
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("which", ["native", "minimum", "odd"])
def test_forward_of_one_image(name: str, channels: int, which: str) -> None:
    card = model_card(name)
    size = {"native": card.native_size[1], "minimum": card.min_size, "odd": card.native_size[1] - 3}[which]
    network = build(name, in_channels=channels, num_classes=7, input_size=size).eval()
    logits = network(images(name, 1, channels=channels, size=size))
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()


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
    counts = count(build(name), card.native_size)
    assert (counts.params_trainable, counts.params_total, counts.macs) == (card.params_trainable, card.params_total, card.macs)


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
    assert not any("\n" in text for text in (card.summary, card.where, card.published_note, *card.readings))


@every_model
def test_same_seed_same_weights(name: str) -> None:
    torch.manual_seed(5)
    first = build(name).state_dict()
    torch.manual_seed(5)
    second = build(name).state_dict()
    assert all(torch.equal(second[key], value) for key, value in first.items())


@every_model
def test_release_and_state_dict_round_trip(name: str, tmp_path: Path) -> None:
    network = trained_like(name)
    x = images(name, 2).double()
    expected = network(x)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    stored = {
        "safetensors": load_file(tmp_path / "model.safetensors"),
        "torch": torch.load(tmp_path / "model.pt", weights_only=True),
    }
    for kind, state in stored.items():
        other = build(name).double().eval()
        assert not torch.equal(other(x), expected)
        other.load_state_dict(state, strict=True)
        assert torch.equal(other(x), expected), kind


@every_model
def test_image_does_not_depend_on_its_batch(name: str) -> None:
    network = trained_like(name)
    x = images(name, 5).double()
    torch.testing.assert_close(torch.cat([network(image[None]) for image in x]), network(x), rtol=1e-10, atol=1e-12)


@every_model
def test_channels_last_is_the_same_network(name: str) -> None:
    x = images(name, 3).double()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        network = build(name).double().train().to(memory_format=layout)
        logits = network(x.to(memory_format=layout))
        F.cross_entropy(logits, torch.arange(3)).backward()
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
    assert torch.equal(network.head.get_submodule("classifier")(hidden), network(x))


@every_model
def test_image_of_another_size_is_refused_or_classified(name: str) -> None:
    network = build(name).eval()
    x = images(name, 1, size=2 * model_card(name).native_size[1])
    if isinstance(network.head, FlattenMLPHead):
        with pytest.raises(ValueError, match="build the network with the input_size of its images"):
            network(x)
    else:
        assert network(x).shape == (1, 10)


@every_model
def test_features_only_maps_are_as_announced(name: str) -> None:
    network = create_model(name, features_only=True)
    assert isinstance(network, FeatureNetwork)
    x = images(name, 2)
    maps = network.eval()(x)
    assert len(maps) == len(network.feature_info) == len(network.stages)
    for feature_map, info in zip(maps, network.feature_info, strict=True):
        assert feature_map.shape == (2, info.channels, x.shape[2] // info.reduction, x.shape[3] // info.reduction)
        assert isinstance(network.get_submodule(info.module), nn.Module)


@every_model
def test_features_only_picks_stages_and_takes_the_networks_weights(name: str) -> None:
    full = trained_like(name)
    x = images(name, 2).double()
    last = len(full.stages) - 1
    everything = [full.stages[: i + 1](x) for i in range(last + 1)]
    for indices, kept in (((0,), [0]), ((-1,), [last]), ((0, -1), [0, last])):
        part = create_model(name, features_only=True, out_indices=indices).double().eval()
        missing, left_over = part.load_state_dict(full.state_dict(), strict=False)
        assert missing == []
        assert all(key.startswith(("head.", "stages.")) for key in left_over)
        assert len(part.feature_info) == len(kept)
        for got, index in zip(part(x), kept, strict=True):
            assert torch.equal(got, everything[index])


@every_model
@pytest.mark.parametrize("indices", [(99,), (-99,), (1, 0), (0, 0), (), "0", (None,)], ids=repr)
def test_bad_out_indices(name: str, indices: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^model {name}: [^\n]+$"):
        create_model(name, features_only=True, out_indices=indices)


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
