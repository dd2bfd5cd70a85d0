"""Runs as a user of the Python functions meets them: folders that change, two runs at once, weights swapped, a single path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sepnet
import sepnet.api
import sepnet.recipes
from sepnet.api._lock import writing_alone
from sepnet.data import load_dataset
from sepnet.errors import CheckpointError, ConfigError, DataError

SHORT: dict[str, Any] = {"iterations": 4, "size": 8, "model_options": {"units": [4, 8]}, "device": "cpu"}


def draw(root: Path, classes: tuple[str, ...] = ("cat", "dog"), images: int = 20) -> Path:
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (12, 10), (80 * shade + i, i, 5)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An image folder and the folder of a run on it."""
    base = tmp_path_factory.mktemp("trained")
    images = draw(base / "images")
    return images, sepnet.train(str(images), output=base / "run", **SHORT).folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_same_images_are_scored_again(trained: tuple[Path, Path]) -> None:
    images, run = trained
    again = sepnet.evaluate(run)
    assert again.split == "test"
    assert again.scores["images"] == 6  # 15 % of 40
    assert sepnet.evaluate(run, str(images)).scores == again.scores


def test_a_folder_that_changed_has_no_test_images_any_more(trained: tuple[Path, Path], tmp_path: Path) -> None:
    images, run = trained
    mine, theirs = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, mine)
    shutil.copytree(run, theirs)
    note = theirs / "data.json"
    note.write_text(note.read_text().replace(str(images), str(mine)))
    Image.new("RGB", (9, 9), (255, 0, 9)).save(mine / "cat" / "new.png")
    with pytest.raises(DataError, match=r"has changed since .* was trained on it"):
        sepnet.evaluate(theirs)


def test_another_folder_is_scored_whole(trained: tuple[Path, Path], tmp_path: Path) -> None:
    found = sepnet.evaluate(trained[1], str(draw(tmp_path / "held-out", ("dog",), 7)))
    assert (found.split, found.scores["images"]) == ("whole", 7)
    assert [row["support"] for row in found.scores["per_class"]] == [0, 7]


def test_a_foreign_class_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="emu"):
        sepnet.evaluate(trained[1], str(draw(tmp_path / "others", ("dog", "emu"))))


def test_a_run_on_squashed_images_is_scored_on_squashed_images(tmp_path: Path) -> None:
    images = draw(tmp_path / "images")
    for file in images.rglob("*.png"):  # what tells the classes apart lies where a crop to the centre cuts it off
        wide = Image.new("RGB", (48, 12), (90, 90, int(file.stem)))
        wide.paste((255, 0, 0) if file.parent.name == "cat" else (0, 0, 255), (0, 0, 12, 12))
        wide.save(file)
    data = load_dataset(str(images), size=8, mode="squash")
    config = sepnet.recipes.TrainConfig(data=str(images), size=8, iterations=60, batch_size=16, model_options={"units": [8, 16]})
    run = sepnet.api.run_training(config, data, tmp_path / "run", device="cpu")
    again = sepnet.evaluate(run.folder)
    assert again.scores["accuracy"] == run.record.result["test"]["accuracy"] == 100
    assert again.split == "test", "the fingerprint is the same only if the images are"
    assert sepnet.evaluate(run.folder, str(images)).split == "test"
    shutil.rmtree(images / "cat")
    assert sepnet.evaluate(run.folder, str(images)).scores["accuracy"] == 100, "a folder scored whole"


def test_predict_takes_one_path(trained: tuple[Path, Path]) -> None:
    file = trained[0] / "cat" / "1.png"
    for source in (file, str(file), [file]):
        (prediction,) = sepnet.predict(trained[1], source)
        assert prediction.path == file
        assert sum(p for _, p in prediction.top) == pytest.approx(1)


def test_weights_of_another_run_of_the_same_network(trained: tuple[Path, Path], tmp_path: Path) -> None:
    other = sepnet.train(str(trained[0]), output=tmp_path / "other", seed=1, **SHORT).folder
    shutil.copy(trained[1] / "model.safetensors", other)
    with pytest.raises(CheckpointError, match="holds other weights than"):
        sepnet.load_release(other)


def test_one_run_at_a_time_writes(tmp_path: Path) -> None:
    with writing_alone(tmp_path / "run"), pytest.raises(ConfigError, match="another run is writing into"):
        sepnet.train("digits", output=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


def test_a_run_is_named_after_its_folder(trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Path(shutil.copytree(trained[0], tmp_path / "birds"))
    monkeypatch.chdir(images)
    assert sepnet.train(".", **SHORT).folder == Path("runs/birds")
    second = sepnet.train(".", **SHORT)  # the first run lies in the data now
    assert second.folder == Path("runs/birds-2")
    assert second.record.classes == 2


def test_a_run_whose_augmentation_ends_at_once_is_one_with_flips_and_shifts(tmp_path: Path) -> None:
    images = str(draw(tmp_path / "images"))
    settings = {**SHORT, "hflip": "random", "shift": 1}
    light = sepnet.train(images, output=tmp_path / "light", **settings, cutout=0)
    ended = sepnet.train(images, output=tmp_path / "ended", **settings, brightness=0.9, augment_until=0)
    strong = sepnet.train(images, output=tmp_path / "strong", **settings, brightness=0.9, augment_until=0.5)
    assert ended.record.history[-1]["train_loss"] == light.record.history[-1]["train_loss"]
    assert strong.record.history[-1]["train_loss"] != light.record.history[-1]["train_loss"]


def test_of_another_folder_with_splits_the_named_one_is_scored(trained: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "divided"
    for split, images in (("train", 9), ("test", 4)):
        draw(other / split, images=images)
    found = sepnet.evaluate(trained[1], str(other))
    assert (found.split, found.scores["images"]) == ("test", 8)
    found = sepnet.evaluate(trained[1], str(other), split="train")
    assert (found.split, found.scores["images"]) == ("train", 18)
    found = sepnet.evaluate(trained[1], str(other), split="val")
    assert (found.split, found.scores["images"]) == ("test", 8), "there is none: the next best, and its name"
