"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

import sepnet
from sepnet.models import create_model

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    path = next(p for p in EXAMPLES if p.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


detection = load("detection_head")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_help(path: Path) -> None:
    source = str(Path(sepnet.__file__).resolve().parents[1])
    result = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": source}, check=True
    )
    assert "--model" in result.stdout


@pytest.mark.parametrize("model", ["multiscale_concat", "dilated_separable", "separable_cnn"])
def test_detector_learns_on_the_pyramid_of(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    detector = detection.make_detector(model, 32)
    assert all(4 <= level.reduction <= 32 for level in detector.backbone.feature_info)
    losses = detection.train(detector, 32, 20, batch_size=8)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert 0 <= detection.recall(detector, 32, count=8) <= 100
    assert "step   20" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["dsrnet50", "mobilenet_v1", "squeezenet"])
def test_predictions_stand_in_the_order_of_the_default_boxes(model: str) -> None:
    with torch.device("meta"):
        detector = detection.make_detector(model, 64)
        scores, offsets = detector(torch.zeros(2, 3, 64, 64))
    assert scores.shape == (2, len(detector.default_boxes(64)), 4)
    assert offsets.shape == (2, len(detector.default_boxes(64)), 4)


def test_what_is_matched_is_decoded_to_the_same_boxes() -> None:
    detector = detection.make_detector("multiscale_concat", 64)
    defaults = detector.default_boxes(64)
    _, boxes, classes = detection.make_images(8, 64, torch.Generator().manual_seed(3))
    for box, label in zip(boxes, classes, strict=True):
        if len(box) > 1 and detection.overlaps(box[:1], box[1:]).max() >= 0.3:
            continue  # one would rightly be taken for the other
        targets, offsets = detection.match(defaults, box, label)
        scores = 20 * torch.nn.functional.one_hot(targets, 4).float()
        found, kinds, _ = detection.detect(scores, offsets, defaults, limit=len(box))
        order = found[:, 0].argsort()
        expected = box[:, 0].argsort()
        torch.testing.assert_close(found[order], box[expected], rtol=1e-4, atol=1e-3)
        assert torch.equal(kinds[order], label[expected])


def test_weights_of_a_trained_classifier(tmp_path: Path) -> None:
    classifier = create_model("separable_cnn", num_classes=7)
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    detector = detection.make_detector("separable_cnn", 64, tmp_path / "model.safetensors")
    state = detector.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in classifier.state_dict().items() if key in state)
    with pytest.raises(SystemExit, match=r"is not of dilated_separable: stages\.\d\.\w+\.\w+ does not fit"):
        detection.make_detector("dilated_separable", 64, tmp_path / "model.safetensors")
