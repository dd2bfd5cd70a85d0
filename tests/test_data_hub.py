"""``hf:owner/name``: with a stand-in for the library everywhere, and with the library itself where it is installed."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import fake_hub
from cli_runner import error_of
from data_files import random_images
from fake_hub import ClassLabel, Image, Table, Value
from sepnet.data import Dataset, download_dataset, load_dataset
from sepnet.data import _hub as hub_module
from sepnet.data._types import ReadOptions
from sepnet.errors import (
    ConfigError,
    DataError,
    DataNotFoundError,
    DownloadError,
    ImageError,
    MissingExtraError,
    SepnetError,
    UnsafeFileError,
)

FEATURES = {"image": Image(), "label": ClassLabel(["cat", "dog"])}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def stored(count: int, seed: int, side: int = 12) -> list[dict[str, object]]:
    """Images as a table holds them."""
    return [{"bytes": png(pixels), "path": f"{i}.png"} for i, pixels in enumerate(random_images(count, seed, side, side, 3))]


def table(count: int, seed: int = 0, features: Mapping[str, Any] = FEATURES, **columns: list[Any]) -> Table:
    given = {"image": stored(count, seed), "label": [i % 2 for i in range(count)]} | columns
    return Table(features, {name: given[name] for name in features})


Install = Callable[..., None]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Lets the hub have these splits, whatever is asked for."""

    def install(kind: str = "parquet", error: BaseException | None = None, **splits: Table) -> None:
        def fetch(name: str, configuration: str | None) -> Mapping[str, Table]:
            if error is not None:
                raise error
            assert (name, configuration) in (("me/pets", None), ("me/pets", "small"))
            return splits

        monkeypatch.setitem(sys.modules, "datasets", fake_hub.library(fetch, str(tmp_path / "hub"), kind))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return install


def load(name: str = "hf:me/pets", **options: object) -> Dataset:
    return load_dataset(name, **({"val_fraction": 0, "size": 12} | options))  # type: ignore[arg-type]


def refused(kind: type[SepnetError] = DataError, name: str = "hf:me/pets") -> str:
    with pytest.raises(kind) as error:
        load(name)
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- what is read ----


def test_images_and_labels(hub: Install) -> None:
    hub(train=table(10), validation=table(4, 1), test=table(6, 2))
    data = load()
    assert (data.name, data.title, data.classes) == ("hf:me/pets", "hf:me/pets", ("cat", "dog"))
    assert data.val is not None
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (10, 4, 6)
    for split, seed in ((data.train, 0), (data.val, 1), (data.test, 2)):
        assert torch.equal(split.images, torch.from_numpy(random_images(len(split), seed, 12, 12, 3)).permute(0, 3, 1, 2))
        assert split.labels.tolist() == [i % 2 for i in range(len(split))]
    assert data.fingerprint == load("hf:me/pets:small").fingerprint
    assert data.notes == ()


def test_splits_that_are_missing_are_carved(hub: Install) -> None:
    hub(train=table(40))
    data = load(val_fraction=0.1)
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (30, 4, 6)


def test_it_is_decoded_once(hub: Install) -> None:
    hub(train=table(10))
    calls: list[tuple[int, int]] = []
    first = load(progress=lambda *step: calls.append(step))
    assert calls[-1] == (10, 10)
    calls.clear()
    assert load(progress=lambda *step: calls.append(step)).fingerprint == first.fingerprint
    assert calls == []
    hub(train=Table(FEATURES, table(10, 1).columns, "another"))
    assert load().fingerprint != first.fingerprint


def test_size_and_channels_are_those_of_the_images(hub: Install) -> None:
    greys = [{"bytes": png(pixels), "path": None} for pixels in random_images(10, 0, 30, 30)]
    hub(train=table(10, image=greys))
    assert load(size=None).train.images.shape[1:] == (1, 28, 28)


@pytest.mark.parametrize(
    ("features", "columns", "classes"),
    [
        ({"image": Image(), "label": Value("string")}, {"label": ["dog", "cat"] * 5}, ("cat", "dog")),
        ({"image": Image(), "label": Value("int64")}, {"label": [10, 9] * 5}, ("9", "10")),
        ({"img": Image(), "labels": ClassLabel(["a", "b"])}, {"img": stored(10, 0), "labels": [1, 0] * 5}, ("a", "b")),
        (
            {"image": Image(), "fine_label": ClassLabel(["a", "b"]), "coarse_label": ClassLabel(["x", "y"])},
            {"fine_label": [0, 1] * 5, "coarse_label": [0, 1] * 5},
            ("a", "b"),
        ),
        ({"mask": Image(), "image": Image(), "label": ClassLabel(["a", "b"])}, {"mask": stored(10, 3)}, ("a", "b")),
        ({"image": Image(), "label": ClassLabel(["a\nb", "b"])}, {}, ("a\\nb", "b")),
    ],
)
def test_columns_are_told_by_their_types(
    hub: Install, features: dict[str, Any], columns: dict[str, list[Any]], classes: tuple[str, ...]
) -> None:
    hub(train=table(10, 0, features, **columns))
    data = load()
    assert data.classes == classes
    assert torch.equal(data.train.images[0], torch.from_numpy(random_images(10, 0, 12, 12, 3)[0]).permute(2, 0, 1))


def test_images_without_labels_are_left_out(hub: Install) -> None:
    hub(train=table(10, label=[0, 1, None, -1, *[0, 1] * 3]), test=table(4, 1, label=[-1] * 4), unsupervised=table(3))
    data = load()
    assert len(data.train) + len(data.test or []) == 8
    assert data.train.labels.unique().tolist() == [0, 1]
    notes = " / ".join(data.notes)
    assert "2 of the 10 images of train have no label" in notes
    assert "4 of the 4 images of test" in notes
    assert "splits passed over: unsupervised" in notes


def test_a_damaged_image_is_noted(hub: Install) -> None:
    images = stored(10, 0)
    images[3]["bytes"] = b"no image"
    hub(train=table(10, image=images), test=table(2, 1))
    data = load()
    assert len(data.train) == 9
    assert any("train/3" in note for note in data.notes)
    with pytest.raises(ImageError, match="train/3"):
        load(on_bad="error")


def test_a_file_is_read_only_from_the_hubs_own_cache(hub: Install, tmp_path: Path) -> None:
    images = stored(10, 0)
    (tmp_path / "hub").mkdir()
    for name in ("hub/mine.png", "secret.png"):
        (tmp_path / name).write_bytes(png(random_images(1, 9, 12, 12, 3)[0]))
    paths = [str(tmp_path / "hub" / "mine.png"), str(tmp_path / "secret.png"), str(tmp_path / "hub" / ".." / "secret.png")]
    (tmp_path / "hub" / "link.png").symlink_to(tmp_path / "secret.png")
    paths += [str(tmp_path / "hub" / "link.png"), "https://example.org/a.png"]
    for image, path in zip(images, paths, strict=False):
        image.update(bytes=None, path=path)
    hub(train=table(10, image=images), test=table(2, 1))
    data = load()
    assert len(data.train) == 6
    (note,) = data.notes
    assert "4 unreadable" in note
    assert "neither in the data set nor in the hub's cache" in note


# ---- what is not ----


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (table(4, 0, {"text": Value("string"), "label": FEATURES["label"]}, text=["a"] * 4), "which column holds the images"),
        (table(4, 0, {"image": Image(), "score": Value("float32")}, score=[0.5] * 4), "which column holds the labels"),
        (table(4, 0, {"image": Image(), "label": Value("float32")}, label=[0.5] * 4), "which column holds the labels"),
        (
            table(4, 0, {"a": Image(), "b": Image(), "label": FEATURES["label"]}, a=stored(4, 0), b=stored(4, 1)),
            "a (Image), b (Image)",
        ),
        (table(4, 0, {"image": Image(), "label": ClassLabel(["only"])}, label=[0] * 4), "two classes or more"),
        (table(4, 0, {"image": Image(), "label": ClassLabel(["same", "same"])}), "two classes or more"),
        (table(4, label=[0] * 4), "'dog'"),
        (table(4, image=[{"bytes": b"no image", "path": None}] * 4), "can be read"),
        (table(4, image=[None] * 4), "can be read"),
    ],
)
def test_not_a_classifiers_data(hub: Install, train: Table, said: str) -> None:
    hub(train=train)
    assert said in refused()


def test_without_a_training_split(hub: Install) -> None:
    hub(test=table(4))
    assert "no split for training, only test" in refused()


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ConnectionError("Couldn't reach 'me/pets' on the Hub\n(details)"), DownloadError, "cannot be reached"),
        (FileNotFoundError("Dataset 'me/pets' doesn't exist"), DataNotFoundError, "logged in"),
        (ValueError("Config name is missing.\nPlease pick one"), DataError, "hf:owner/name:configuration"),
        (RuntimeError("Dataset scripts are no longer supported, but found pets.py"), DataError, "RuntimeError: Dataset scripts"),
    ],
)
def test_errors_of_the_library_are_a_line(hub: Install, error: Exception, kind: type[SepnetError], said: str) -> None:
    hub(error=error)
    assert said in refused(kind)


def test_kinds_of_files_that_are_not_read(hub: Install) -> None:
    hub("pandas", train=table(4))
    assert "of the kind pandas" in refused(UnsafeFileError)


@pytest.mark.parametrize("name", ["hf:", "hf:pets", "hf:a/b/c", "hf:../pets", "hf:me/pets:", "hf:me/p ts", "hf:/etc/passwd"])
def test_names(hub: Install, name: str) -> None:
    hub(train=table(4))
    assert "hf:owner/name" in refused(ConfigError, name)


def test_a_folder_in_the_way(hub: Install, tmp_path: Path) -> None:
    hub(train=table(4))
    (tmp_path / "me" / "pets").mkdir(parents=True)
    assert "there is a me/pets here" in refused(ConfigError)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'sepnet[hub]'" in refused(MissingExtraError)
    assert "pip install 'sepnet[hub]'" in error_of("train", "hf:me/pets")
    with pytest.raises(ConfigError, match="sepnet train hf:me/pets"):
        download_dataset("hf:me/pets")
    assert load_dataset("digits").name == "digits", "nobody else needs it"


# ---- the library itself ----

installed = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the extra [hub] is not installed")


@installed
def test_the_librarys_own_tables(tmp_path: Path) -> None:
    import datasets as library

    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])})
    for name, count, seed in (("train", 20, 0), ("test", 6, 1)):
        rows = {"image": stored(count, seed), "label": [i % 2 for i in range(count)]}
        library.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    read = library.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hub"))
    raw = hub_module.convert(library, read, "hf:me/pets", ReadOptions(cache_dir=tmp_path / "cache"))
    assert raw.classes == ("cat", "dog")
    assert raw.test is not None
    expected = torch.from_numpy(random_images(20, 0, 12, 12, 3)).permute(0, 3, 1, 2)
    raw = hub_module.convert(library, read, "hf:me/pets", ReadOptions(size=12, cache_dir=tmp_path / "cache"))
    assert torch.equal(raw.train.images, expected)
    assert raw.train.labels.tolist() == [i % 2 for i in range(20)]


@installed
def test_the_librarys_own_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of tables, from a folder, as the hub is out of reach; and one with a script, which must not be run."""
    import datasets as library

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    for name in ("pets", "evil"):
        (tmp_path / "me" / name).mkdir(parents=True)
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])})
    rows = {"image": stored(4, 0), "label": [0, 1, 0, 1]}
    library.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "me" / "pets" / "train.parquet")
    assert list(hub_module._fetch(library, "me/pets", None, "hf:me/pets")) == ["train"]
    target = tmp_path / "owned"
    (tmp_path / "me" / "evil" / "evil.py").write_text(f"open({str(target)!r}, 'w')")
    with pytest.raises(DataError, match="hf:me/evil"):
        hub_module._fetch(library, "me/evil", None, "hf:me/evil")
    assert not target.exists()


@installed
def test_the_librarys_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of folders of images: the library keeps their paths in its cache."""
    import datasets as library

    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "hub" / name).mkdir(parents=True)
        for i, pixels in enumerate(random_images(5, label, 12, 12, 3)):
            (tmp_path / "hub" / name / f"{i}.png").write_bytes(png(pixels))
    read = library.load_dataset("imagefolder", data_dir=str(tmp_path / "hub"), cache_dir=str(tmp_path / "arrow"))
    with pytest.raises(DataError, match="can be read"):
        hub_module.convert(library, read, "hf:me/pets", ReadOptions(cache_dir=tmp_path / "cache"))
    monkeypatch.setattr(library.config, "HF_CACHE_HOME", str(tmp_path / "hub"))
    raw = hub_module.convert(library, read, "hf:me/pets", ReadOptions(cache_dir=tmp_path / "cache"))
    assert raw.train.labels.bincount().tolist() == [5, 5]


@installed
def test_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets as library

    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((DownloadError, DataNotFoundError)) as error:
        load_dataset("hf:sepnet-nobody/not-there")
    assert "hf:sepnet-nobody/not-there" in str(error.value)
