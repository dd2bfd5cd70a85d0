"""Image folders as people keep them: capitals, runs among the classes, links in rings, a test set alone, swapped files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sepnet.data import AugmentConfig, Dataset, Preprocessing, Split, TrainLoader, check_folder, load_dataset
from sepnet.errors import ConfigError, DataError

Load = Callable[..., Dataset]


def write(path: Path, seed: int, height: int = 12, width: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def fill(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 8, first: int = 0) -> Path:
    for number, name in enumerate(classes):
        for i in range(count):
            write(root / name / f"{i:03d}.bmp", first + 1000 * number + i)
    return root


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loader(root: Path, **options: object) -> Dataset:
        return load_dataset(str(root), **({"cache_dir": tmp_path / "cache", "size": 12} | options))  # type: ignore[arg-type]

    return loader


def images(data: Dataset) -> int:
    return sum(len(split) for split in (data.train, data.val, data.test) if split is not None)


def refused(root: Path, load: Load, **options: object) -> str:
    with pytest.raises(DataError) as error:
        load(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the cache tells files apart ----


def test_swapped_files_of_equal_size_and_time_are_read_again(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets")
    cat, dog = root / "cat" / "000.bmp", root / "dog" / "000.bmp"
    for path in (cat, dog):
        os.utime(path, ns=(10**18, 10**18))
    assert cat.stat().st_size == dog.stat().st_size
    before = load(root)
    cat.rename(tmp_path / "spare")
    dog.rename(cat)
    (tmp_path / "spare").rename(dog)
    after = load(root)
    assert after.fingerprint != before.fingerprint
    assert after.fingerprint == load(root, cache_dir=tmp_path / "fresh").fingerprint


def test_a_file_rewritten_in_place_with_its_old_time_is_read_again(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets")
    path = root / "cat" / "000.bmp"
    before, stat = load(root), path.stat()
    write(path, 4711)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert load(root).fingerprint != before.fingerprint


# ---- what is a class, what a split ----


@pytest.mark.parametrize("files", [("run.json",), ("last.pt", "config.yaml")])
def test_folders_that_hold_runs_are_no_classes(tmp_path: Path, load: Load, files: tuple[str, ...]) -> None:
    root = fill(tmp_path / "pets")
    for run in (root / "runs" / "first", root / "alone"):
        write(run / "plots" / "a.png", 1)
        for name in files:
            (run / name).write_text("{}")
    write(root / "runs" / "overview.png", 2)
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert images(data) == 16
    (note,) = [note for note in data.notes if "runs of sepnet" in note]
    assert "alone" in note
    assert "runs" in note


def test_a_lone_config_makes_no_run(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets")
    (root / "cat" / "config.yaml").write_text("{}")
    assert load(root).classes == ("cat", "dog")


@pytest.mark.parametrize("names", [("Train", "Valid", "Test"), ("training", "VALIDATION", "testing"), ("TRAIN", "val", "Testing")])
def test_split_names_in_any_spelling(tmp_path: Path, load: Load, names: tuple[str, str, str]) -> None:
    root = tmp_path / "pets"
    for i, (name, count) in enumerate(zip(names, (6, 2, 3), strict=True)):
        fill(root / name, count=count, first=100 * i)
    data = load(root)
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (12, 4, 6)


@pytest.mark.parametrize(("first", "second"), [("Train", "train"), ("val", "Validation")])
def test_two_folders_for_one_split(tmp_path: Path, load: Load, first: str, second: str) -> None:
    root = tmp_path / "pets"
    for i, name in enumerate({"train", first, second}):
        fill(root / name, count=2, first=100 * i)
    message = refused(root, load)
    assert "more than one folder" in message
    assert first in message
    assert second in message


def test_hidden_folders_are_noted_when_they_hold_images(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets")
    write(root / ".eel" / "a.png", 1)
    (root / ".git" / "objects").mkdir(parents=True)
    (note,) = [note for note in load(root).notes if "hidden" in note]
    assert "1 hidden folder(s)" in note
    assert ".eel" in note


# ---- links ----


def test_links_to_ancestors_and_other_classes_are_not_followed(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "self").symlink_to(root / "cat")
    (root / "dog" / "cats").symlink_to(root / "cat")
    (root / "kitty").symlink_to(root / "cat")
    (root / "dog" / "ring.png").symlink_to(root / "dog" / "ring.png")
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert images(data) == 16
    assert any(note.startswith("4 link(s)") for note in data.notes)


def test_rings_of_links_within_a_class_end(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets")
    folders = [root / "cat" / f"part{i}" for i in range(8)]
    for i, folder in enumerate(folders):
        write(folder / "a.png", 5000 + i)
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert images(load(root)) == 16 + 8


def test_links_to_a_store_beside_the_splits_are_followed(tmp_path: Path, load: Load) -> None:
    root = tmp_path / "pets"
    fill(root / "store")
    (root / "train").mkdir()
    for name in ("cat", "dog"):
        (root / "train" / name).symlink_to(root / "store" / name)
    assert images(load(root)) == 16


def test_a_split_folder_that_leads_out_of_the_root_is_not_read(tmp_path: Path, load: Load) -> None:
    root = tmp_path / "pets"
    fill(root / "train")
    fill(tmp_path / "secret", first=500)
    (root / "test").symlink_to(tmp_path / "secret")
    data = load(root)
    assert images(data) == 16
    assert any("passed over: test" in note for note in data.notes)


# ---- a set to evaluate on ----


def test_a_test_set_alone_is_read_whole(tmp_path: Path, load: Load) -> None:
    root = tmp_path / "pets"
    fill(root / "val", count=3)
    assert "no class folders in train" in refused(root, load)
    data = load(root, whole=True)
    assert data.test is not None
    assert (len(data.test), data.val, data.train is data.test) == (6, None, True)
    fill(root / "Test", ("cat",), count=2, first=500)
    data = load(root, whole=True)
    assert data.classes == ("cat",)
    assert len(data.test or []) == 2


def test_a_flat_folder_is_read_whole(tmp_path: Path, load: Load) -> None:
    assert len(load(fill(tmp_path / "pets"), whole=True).test or []) == 16


def test_classes_of_the_network_number_the_labels(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets", ("dog", "eel"), count=3)
    data = load(root, whole=True, classes=("eel", "cat", "dog"))
    assert data.classes == ("eel", "cat", "dog")
    assert data.test is not None
    assert data.test.labels.tolist() == [0, 0, 0, 2, 2, 2]
    eel = torch.from_numpy(np.array(Image.open(root / "eel" / "000.bmp"))).permute(2, 0, 1)
    assert torch.equal(data.test.images[0], eel)
    assert "eel" in refused(root, load, whole=True, classes=("cat", "dog"))


def test_classes_number_a_registered_set_too() -> None:
    plain = load_dataset("digits")
    turned = load_dataset("digits", whole=True, classes=(*reversed(plain.classes), "ten"))
    assert turned.test is not None
    assert plain.test is not None
    assert torch.equal(turned.test.labels, 9 - plain.test.labels)
    with pytest.raises(DataError, match="9"):
        load_dataset("digits", classes=plain.classes[:-1])


def test_nothing_readable_to_evaluate_on(tmp_path: Path, load: Load) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "a.png").write_text("x")
    assert "can be read" in refused(tmp_path / "pets", load, whole=True)


# ---- notes ----


def test_many_small_classes_are_one_note_a_split(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets", tuple(f"kind{i:02d}" for i in range(30)), count=1)
    fill(root, first=50_000)
    notes = [note for note in load(root).notes if "too few" in note]
    assert len(notes) == 2
    assert all("30 class(es)" in note and "kind00" in note and "25 more" in note and "kind20" not in note for note in notes)


def test_many_classes_without_training_images_are_one_problem(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "test", tuple(f"kind{i:02d}" for i in range(20)), count=1, first=50_000)
    (problem,) = check_folder(tmp_path / "pets").problems
    assert "20 class(es) in test" in problem


@pytest.mark.parametrize(("long", "noted"), [(1, False), (3, True)])
def test_long_images_are_noted(tmp_path: Path, load: Load, long: int, noted: bool) -> None:
    root = fill(tmp_path / "pets", count=20)
    for i in range(long):
        write(root / "cat" / f"{i:03d}.bmp", 900 + i, 12, 30)
    for _ in range(2):  # decoded, and from the cache
        assert any("more than half of their area" in note for note in load(root).notes) == noted
    assert any("more than half of their area" in note for note in check_folder(root).notes) == noted


def test_images_with_two_labels_are_noted_once(tmp_path: Path, load: Load) -> None:
    root = fill(tmp_path / "pets")
    shutil.copy(root / "cat" / "000.bmp", root / "dog" / "wrong.bmp")
    shutil.copy(root / "cat" / "001.bmp", root / "cat" / "again.bmp")
    (note,) = [note for note in load(root).notes if "more than one class" in note]
    assert note.startswith("2 image(s)")
    report = check_folder(root)
    assert report.conflicts == (("cat/000.bmp", "dog/wrong.bmp"),)
    assert report.duplicates == (("cat/001.bmp", "cat/again.bmp"),)
    shutil.copy(root / "cat" / "000.bmp", root / "cat" / "more.bmp")
    assert ("cat/000.bmp", "cat/more.bmp") in check_folder(root).duplicates, "of a conflict only the files of one class"


@pytest.mark.parametrize("side", [8, 9])
def test_a_cutout_as_large_as_the_image(side: int) -> None:
    split = Split(torch.zeros(4, 3, 8, 10, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    preprocessing = Preprocessing((8, 10), 3, "crop", (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ConfigError, match=f"cutout={side} .*8x10"):
        TrainLoader(split, preprocessing, batch_size=2, seed=0, augment=AugmentConfig(cutout=side))
