"""CIFAR-100, SVHN, STL-10 and Tiny ImageNet: files in the published formats, and what a damaged or hostile one gets told."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from data_files import (
    COARSE,
    FINE,
    WNIDS,
    cifar100_batch,
    random_images,
    svhn_arrays,
    write_cifar100,
    write_stl10,
    write_svhn,
    write_tiny_imagenet,
)
from sepnet.data import Dataset, datasets, load_dataset
from sepnet.data import svhn as svhn_module
from sepnet.errors import DataError, DataNotFoundError, ImageError, SepnetError, UnsafeFileError

ARCHIVES = Path(__file__).parents[1] / ".." / "shared" / "data"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "cifar100": write_cifar100,
    "cifar100-coarse": write_cifar100,
    "svhn": write_svhn,
    "svhn-extra": write_svhn,
    "stl10": write_stl10,
    "tiny-imagenet": write_tiny_imagenet,
}


def load(name: str, root: Path, **options: object) -> Dataset:
    return load_dataset(name, data_dir=root, cache_dir=root / "cache", **({"val_fraction": 0} | options))  # type: ignore[arg-type]


def refused(name: str, root: Path, kind: type[SepnetError] = DataError) -> str:
    with pytest.raises(kind) as error:
        load(name, root)
    text = str(error.value)
    assert "\n" not in text
    return text


def pixels(images: np.ndarray) -> torch.Tensor:
    """(N, H, W, C) -> (N, C, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# ---- all of them ----


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_files_are_the_same_data_wherever_they_lie(name: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    folder = WRITERS[name](one)
    WRITERS[name](two)
    data = load(name, one)
    assert data.fingerprint == load(name, two).fingerprint == load(name, folder).fingerprint
    assert data.fingerprint != load(name, one, size=16).fingerprint
    assert data.train.images.is_contiguous(memory_format=torch.channels_last)
    assert load(name, one, val_fraction=0.2).val is not None


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(name: str, tmp_path: Path) -> None:
    source = datasets.get(name).source
    assert source is not None
    folder = WRITERS[name](tmp_path / "some data")
    assert len(source.find(tmp_path / "some data")) == len(source.needs)
    lost = folder / source.needs[-1]
    lost.rename(tmp_path / "moved")
    text = refused(name, tmp_path / "some data", DataNotFoundError)
    assert source.needs[-1] in text
    assert f"sepnet data get {source.name} --data-dir '{tmp_path / 'some data'}'" in text


# ---- CIFAR-100 ----


def test_cifar100(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    data = load("cifar100", tmp_path)
    assert data.title == "CIFAR-100 (modified copy)"
    assert data.classes == tuple(FINE)
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (200, 100)
    assert torch.equal(data.train.images, torch.from_numpy(random_images(200, 0, 3072)).view(-1, 3, 32, 32))
    assert data.train.labels.tolist() == [i % 100 for i in range(200)]
    assert data.preprocessing.mean == (0.5071, 0.4865, 0.4409)


def test_cifar100_coarse(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    data = load("cifar100-coarse", tmp_path)
    assert data.classes == tuple(COARSE)
    assert data.train.labels.tolist() == [i % 20 for i in range(200)]
    assert data.fingerprint != load("cifar100", tmp_path).fingerprint


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("train", {b"fine_labels": None}, "fine_labels"),
        ("train", {b"fine_labels": [100] * 200}, "from 0 to 99"),
        ("test", {b"data": random_images(100, 1, 3000)}, "3072"),
        ("meta", {b"fine_label_names": [b"one"]}, "100 different names"),
        ("meta", {b"fine_label_names": [b"same"] * 100}, "100 different names"),
        ("meta", {b"fine_label_names": 3}, "100 different names"),
    ],
)
def test_cifar100_of_another_shape(tmp_path: Path, name: str, change: dict[bytes, object], said: str) -> None:
    path = write_cifar100(tmp_path) / name
    path.write_bytes(pickle.dumps(cifar100_batch(200 if name == "train" else 100, 1) | change, protocol=2))
    text = refused("cifar100", tmp_path)
    assert said in text
    assert str(path) in text


@pytest.mark.parametrize("name", ["train", "meta"])
def test_cifar100_cut_short_or_hostile(tmp_path: Path, name: str) -> None:
    path = write_cifar100(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-100])
    assert "unpack the archive again" in refused("cifar100", tmp_path)
    path.write_bytes(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.")
    assert "os.system" in refused("cifar100", tmp_path, UnsafeFileError)


# ---- SVHN ----


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path: Path, compressed: bool) -> None:
    write_svhn(tmp_path, compressed)
    data = load("svhn", tmp_path)
    assert data.title == "SVHN (modified copy)"
    assert data.test is not None
    assert torch.equal(data.train.images, pixels(random_images(60, 0, 32, 32, 3)))
    assert torch.equal(data.test.images, pixels(random_images(20, 1, 32, 32, 3)))
    assert data.train.labels[:12].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_svhn_extra_comes_after_the_training_images(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    plain, extra = load("svhn", tmp_path), load("svhn-extra", tmp_path)
    assert torch.equal(extra.train.images, torch.cat([plain.train.images, pixels(random_images(30, 2, 32, 32, 3))]))
    assert plain.test is not None
    assert extra.test is not None
    assert torch.equal(extra.test.images, plain.test.images)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"X": np.zeros((32, 32, 3, 60), np.int16)}, "int16"),
        ({"X": np.zeros((28, 28, 3, 60), np.uint8)}, "(28, 28, 3, 60)"),
        ({"X": np.zeros((60, 32), np.uint8)}, "(60, 32)"),
        ({"X": "text"}, "char"),
        ({"X": np.array([{"a": 1}], dtype=object)}, "cell"),
        ({"y": np.ones((59, 1), np.uint8)}, "(59, 1)"),
        ({"y": np.zeros((60, 1), np.uint8)}, "from 1 to 10, found 0"),
        ({"y": np.full((60, 1), 11, np.uint8)}, "found 11"),
        ({"y": np.full((60, 1), 1.5)}, "whole numbers"),
        ({"y": np.full((60, 1), np.nan)}, "whole numbers"),
        ({"y": np.ones((6, 10), np.uint8)}, "(6, 10)"),
    ],
)
def test_svhn_of_another_shape(tmp_path: Path, change: dict[str, object], said: str) -> None:
    write_svhn(tmp_path)
    scipy.io.savemat(tmp_path / "train_32x32.mat", svhn_arrays(60, 0) | change)
    text = refused("svhn", tmp_path)
    assert said in text
    assert "train_32x32.mat" in text


def test_svhn_labels_as_matlab_keeps_numbers(tmp_path: Path) -> None:
    """MATLAB's own numbers are doubles; a copy saved from there has such labels."""
    write_svhn(tmp_path)
    arrays = svhn_arrays(60, 0)
    scipy.io.savemat(tmp_path / "train_32x32.mat", arrays | {"y": arrays["y"].astype(float).T})
    assert load("svhn", tmp_path).train.labels[8:11].tolist() == [9, 0, 1]


def test_svhn_without_its_arrays(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"digitStruct": np.zeros(3)})
    assert "holds no array X, only digitStruct" in refused("svhn", tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b"", "not a MATLAB 5 file"),
        (lambda b: b"no mat file" * 100, "not a MATLAB 5 file"),
        (lambda b: b[:124] + b"\x00\x02IM" + b[128:], "not a MATLAB 5 file"),
        (lambda b: b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(500), "7.3 (HDF5)"),
        (lambda b: b"\x89HDF\r\n\x1a\n" + bytes(500), "7.3 (HDF5)"),
        (lambda b: b[:100_000], "cut short"),
        (lambda b: b[:-1], "cut short"),
        (lambda b: b[:131], "cut short"),
        (lambda b: b[:128], "holds no array X, only nothing"),
        (lambda b: b[:5000] + bytes(100) + b[5100:], "damaged"),
        (lambda b: b[:128] + struct.pack("<II", 14, 3) + b"abc", "damaged"),
    ],
)
def test_svhn_damaged(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    path = write_svhn(tmp_path) / "train_32x32.mat"
    path.write_bytes(damage(path.read_bytes()))
    text = refused("svhn", tmp_path)
    assert said in text
    assert str(path) in text


def test_svhn_bomb_is_not_given_to_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn_module, "MAX_BYTES", 10_000_000)
    monkeypatch.setattr(svhn_module, "_ask", None)
    path = write_svhn(tmp_path) / "train_32x32.mat"
    zeros = zlib.compress(bytes(50_000_000))
    path.write_bytes(path.read_bytes() + struct.pack("<II", 15, len(zeros)) + zeros)
    assert "more than 10000000 bytes" in refused("svhn", tmp_path, UnsafeFileError)


# ---- STL-10 ----


def test_stl10(tmp_path: Path) -> None:
    write_stl10(tmp_path)
    data = load("stl10", tmp_path)
    assert data.title == "STL-10 (modified copy)"
    assert data.classes[7] == "monkey"
    assert data.test is not None
    assert torch.equal(data.train.images, pixels(random_images(30, 0, 96, 96, 3)))
    assert torch.equal(data.test.images, pixels(random_images(20, 1, 96, 96, 3)))
    assert data.train.labels[:11].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("train_X.bin", lambda b: b[:-1], "cut short"),
        ("train_X.bin", lambda b: b"", "cut short"),
        ("train_X.bin", lambda b: b[27_648:], "29 images but train_y.bin 30 labels"),
        ("test_y.bin", lambda b: bytes(20), "found 0 to 0"),
        ("test_y.bin", lambda b: bytes([11] * 20), "found 11 to 11"),
    ],
)
def test_stl10_damaged(tmp_path: Path, name: str, damage: Callable[[bytes], bytes], said: str) -> None:
    path = write_stl10(tmp_path) / name
    path.write_bytes(damage(path.read_bytes()))
    assert said in refused("stl10", tmp_path)


def test_stl10_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = write_stl10(tmp_path) / "train_X.bin"
    os.truncate(path, 2**33)  # a hole, no disk space
    assert "nothing was read" in refused("stl10", tmp_path, UnsafeFileError)


# ---- Tiny ImageNet ----


def test_tiny_imagenet(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    data = load("tiny-imagenet", tmp_path)
    assert data.title == "Tiny ImageNet (part: 3 classes)"
    assert data.classes == ("goldfish", "crane (n02124075)", "crane (n03255030)"), "in the order of the numbers"
    assert data.test is not None
    assert (len(data.train), len(data.test), data.val) == (18, 6, None)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.images.shape[1:] == (3, 64, 64)
    for images, row, path in (
        (data.train.images, 7, f"train/{sorted(WNIDS)[1]}/images/{sorted(WNIDS)[1]}_1.JPEG"),
        (data.test.images, 2, "val/images/val_0.JPEG"),
    ):
        expected = torch.from_numpy(np.array(Image.open(folder / path).convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(images[row], expected)
    assert any("never published" in note for note in data.notes)
    assert any("not comparable" in note for note in data.notes)


def test_tiny_imagenet_is_decoded_to_the_size_and_channels_asked_for(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    assert load("tiny-imagenet", tmp_path, size=32, channels=1).train.images.shape[1:] == (1, 32, 32)


def test_tiny_imagenet_comes_from_the_cache(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    calls: list[tuple[int, int]] = []
    first = load("tiny-imagenet", tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (24, 24)
    calls.clear()
    assert (
        load("tiny-imagenet", tmp_path, progress=lambda done, total: calls.append((done, total))).fingerprint == first.fingerprint
    )
    assert calls == []


def test_tiny_imagenet_validates_on_training_images(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    data = load("tiny-imagenet", tmp_path, val_fraction=0.34)
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (12, 6, 6)


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "wnids.txt").write_text(""), "wnids.txt must list 2 to 200"),
        (lambda root: _append(root / "wnids.txt", "n01443537\n"), "4, 3 of them different"),
        (lambda root: _append(root / "wnids.txt", "../../etc\n"), "../../etc"),
        (lambda root: _append(root / "wnids.txt", "n00000001\n"), "n00000001/images"),
        (lambda root: (root / "val/images/val_3.JPEG").unlink(), "lists 6 images and"),
        (lambda root: _append(root / "val/val_annotations.txt", "val_0.JPEG\tn01443537\t0\t0\t1\t1\n"), "line 7"),
        (lambda root: _append(root / "val/val_annotations.txt", "new.JPEG\tn07\t0\t0\t1\t1\n"), "line 7"),
        (lambda root: _append(root / "val/val_annotations.txt", "../../a.JPEG\tn01443537\t0\t0\t1\t1\n"), "../../a.JPEG"),
        (lambda root: (root / "val/val_annotations.txt").write_bytes(b"\x00\xff" * 50), "line 1"),
    ],
)
def test_tiny_imagenet_with_lists_that_do_not_agree(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(write_tiny_imagenet(tmp_path))
    assert said in refused("tiny-imagenet", tmp_path)


def test_tiny_imagenet_with_an_endless_list(tmp_path: Path) -> None:
    os.truncate(write_tiny_imagenet(tmp_path) / "words.txt", 2**33)
    assert "words.txt" in refused("tiny-imagenet", tmp_path, UnsafeFileError)


def test_tiny_imagenet_does_not_follow_links(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    (folder / "train" / WNIDS[0] / "images" / "zz.JPEG").symlink_to(folder / "test" / "images" / "test_0.JPEG")
    assert len(load("tiny-imagenet", tmp_path).train) == 18


def test_tiny_imagenet_with_a_damaged_image(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    path = folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_3.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    data = load("tiny-imagenet", tmp_path)
    assert len(data.train) == 17
    assert any(path.name in note for note in data.notes)
    with pytest.raises(ImageError, match=path.name):
        load("tiny-imagenet", tmp_path, on_bad="error")
    for file in path.parent.iterdir():
        file.write_bytes(b"no image")
    assert "sepnet data get tiny-imagenet" in refused("tiny-imagenet", tmp_path)


# ---- the real files ----


@pytest.fixture(scope="module")
def real_tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = os.environ.get("SEPNET_TEST_DATA")
    if folder:
        if not (Path(folder) / "tiny-imagenet-200").exists():
            pytest.skip(f"no tiny-imagenet-200 in {folder}")
        yield Path(folder)
        return
    archive = ARCHIVES / "tiny-imagenet-20.tar.xz"
    if not archive.exists():
        pytest.skip("no real data: set SEPNET_TEST_DATA to a folder with tiny-imagenet-200")
    made = tmp_path_factory.mktemp("real")
    with tarfile.open(archive) as tar:
        tar.extractall(made, filter="data")
    if not (made / "tiny-imagenet-200").exists():
        (made / "tiny-imagenet-200").symlink_to(made)
    yield made


def test_real_tiny_imagenet(real_tiny: Path, tmp_path: Path) -> None:
    data = load_dataset("tiny-imagenet", data_dir=real_tiny, cache_dir=tmp_path)
    assert data.title.startswith("Tiny ImageNet")
    assert "goldfish" in data.classes
    assert data.val is not None
    assert data.test is not None
    assert len(data.train) == 9 * len(data.val)
    assert data.test.labels.bincount().tolist() == [50] * len(data.classes)
    assert not any("unreadable" in note for note in data.notes)
