"""``sepnet models``, ``info`` and ``data``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cli_runner import error_of, invoke
from sepnet.data import datasets
from sepnet.models import list_models, model_card


def test_models_lists_every_network() -> None:
    text = invoke("models").stdout
    for name in list_models():
        row = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{model_card(name).params_trainable:,}" in row


def test_models_as_json() -> None:
    found = json.loads(invoke("models", "multi", "--json").stdout)
    assert [entry["name"] for entry in found] == list_models("multi")
    assert all(entry["macs"] == model_card(entry["name"]).macs for entry in found)


def test_info_compares_with_what_was_published() -> None:
    text = invoke("info", "vgg16").stdout
    for part in ("1,000 classes", "138,357,544", "138,000,000", "+0.3 %", "Sun et al. 2020"):
        assert part in text
    odd = invoke("info", "separable_cnn_printed").stdout
    assert "here +99.4 %: the text counts the block of 512 channels once" in odd
    assert json.loads(invoke("info", "vgg16", "--json").stdout)["published"][0]["value"] == 138e6


def test_info_of_another_network_is_not_compared() -> None:
    for words in (("--classes", 10), ("--input", "3x32x32"), ("--model-kwargs", "dropout=0.1")):
        assert "138,000,000" not in invoke("info", "vgg16", *words).stdout


def test_models_without_a_match() -> None:
    assert "multiscale_concat" in error_of("models", "densenet")


@pytest.mark.parametrize("name", list_models())
def test_info_counts_what_the_card_says(name: str) -> None:
    facts = json.loads(invoke("info", name, "--json").stdout)
    card = model_card(name)
    assert (facts["params_trainable"], facts["params_total"], facts["macs"]) == (
        card.params_trainable,
        card.params_total,
        card.macs,
    )
    assert sum(layer["macs"] for layer in facts["layers"]) == facts["macs"]


def test_info_for_a_person() -> None:
    text = invoke("info", "multiscale_concat").stdout
    for part in ("Wang", "886,459", "stages.0.pw", "529", "identity", "residual=True, border=once"):
        assert part in text


def test_info_of_another_shape() -> None:
    words = ("--input", "1x28x28", "--classes", 7, "--model-kwargs", "units=[32,64]")
    facts = json.loads(invoke("info", "multiscale_concat", *words, "--json").stdout)
    assert facts["input_shape"] == [1, 28, 28]
    assert facts["layers"][-1]["output_shape"] == [7]
    assert facts["published_params"] == 246  # MNIST's two units, Table 3


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ("32", "3x32x32"),
        ("3x32", "3x32x32"),
        ("3x-1x32", "3x32x32"),
        ("٣x32x32", "3x32x32"),
        ("0x32x32", "channels go from"),
        ("3x32x99999", "from 1 to"),
        ("3x100000x100000", "from 1 to"),
        ("3x32x40", "square"),
        ("3x2x2", "input_size"),
        ("3x32x32\n", "\\n"),
    ],
)
def test_info_of_a_bad_shape(shape: str, hint: str) -> None:
    assert hint in error_of("info", "multiscale_concat", "--input", shape)


def test_info_of_an_unknown_network() -> None:
    assert "did you mean multiscale_add" in error_of("info", "multiscale_ad")
    assert "--classes" in error_of("info", "multiscale_add", "--classes", 0)


def test_data_list() -> None:
    found = json.loads(invoke("data", "list", "--json").stdout)
    assert [entry["name"] for entry in found] == list(datasets)
    assert all(entry["summary"] for entry in found)
    assert "digits" in invoke("data", "list").stdout


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for i in range(3):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (40 * i, 90, len(name) * ord(name[0]) % 256)).save(path)
    return tmp_path


def test_data_check(images: Path) -> None:
    assert "nothing to mend" in invoke("data", "check", images, "--strict").stdout
    assert json.loads(invoke("data", "check", images, "--json").stdout)["classes"] == ["cat", "dog"]


def test_data_check_finds_what_is_to_mend(images: Path) -> None:
    (images / "cat" / "text.png").write_text("no image")
    result = invoke("data", "check", images)
    assert "text.png" in result.stdout
    assert result.stdout.splitlines()[-1] == "there is something to mend (exit code 1 with --strict)"
    strict = invoke("data", "check", images, "--strict", exit_code=1)
    assert strict.stdout.splitlines()[-1] == "there is something to mend"
    found = json.loads(invoke("data", "check", images, "--strict", "--json", exit_code=1).stdout)
    assert [name for name, _ in found["unreadable"]] == ["cat/text.png"]


def test_data_check_of_nothing() -> None:
    assert "nowhere" in error_of("data", "check", "nowhere")
