"""Image folders: layouts, splits, the cache, the check, and everything odd that lies in them."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sepnet.data import Dataset, Split, check_folder, load_dataset
from sepnet.data import _cache as cache_module
from sepnet.data import _types as types_module
from sepnet.errors import DataError, DataNotFoundError, ImageError, OutputError, SepnetError

Load = Callable[..., Dataset]


def write(path: Path, seed: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def flat(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 20) -> Path:
    for number, name in enumerate(classes):
        for i in range(count):
            write(root / name / f"{i:03d}.png", 1000 * number + i)
    return root


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loader(root: Path, **options: object) -> Dataset:
        return load_dataset(str(root), **({"cache_dir": tmp_path / "cache"} | options))  # type: ignore[arg-type]

    return loader


def keys(split: Split | None) -> set[bytes]:
    return {image.contiguous().numpy().tobytes() for images in ([] if split is None else split.chunks()) for image in images}


# ---- layouts and splits ----


def test_flat_layout_is_split_in_three(tmp_path: Path, load: Load) -> None:
    data = load(flat(tmp_path / "pets"))
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (30, 4, 6)
    assert data.val is not None
    assert data.test is not None
    assert data.val.labels.bincount().tolist() == [2, 2]
    assert data.test.labels.bincount().tolist() == [3, 3]
    assert len(keys(data.train) | keys(data.val) | keys(data.test)) == 40
    assert data.preprocessing.size == (28, 28)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_layout(tmp_path: Path, load: Load, val: str) -> None:
    root = tmp_path / "pets"
    for i, (part, count) in enumerate((("train", 8), (val, 3), ("test", 4))):
        for j, name in enumerate(("cat", "dog")):
            for k in range(count):
                write(root / part / name / "deeper" / f"{k}.png", 100 * i + 10 * j + k)
    data = load(root)
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (16, 6, 8)
    shutil.rmtree(root / val)
    data = load(root)
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (14, 2, 8)
    assert load(root, val_fraction=0).val is None


def test_the_seed_moves_validation_only(tmp_path: Path, load: Load) -> None:
    root = flat(tmp_path / "pets")
    one, two = load(root, seed=1), load(root, seed=2)
    assert keys(one.test) == keys(two.test)
    assert keys(one.val) != keys(two.val)
    assert keys(one.val) == keys(load(root, seed=1).val)
    assert one.fingerprint == two.fingerprint


def test_duplicates_never_lie_on_both_sides(tmp_path: Path, load: Load) -> None:
    root = tmp_path / "pets"
    for number, name in enumerate(("cat", "dog")):
        for i in range(30):
            write(root / name / f"{i}.png", 100 * number + i // 3)  # three copies of each
    for seed in range(5):
        data = load(root, seed=seed, val_fraction=0.3)
        train, val, test = keys(data.train), keys(data.val), keys(data.test)
        assert val
        assert test
        assert not train & val
        assert not train & test
        assert not val & test


def test_a_class_too_small_to_split_says_so(tmp_path: Path, load: Load) -> None:
    root = flat(tmp_path / "pets")
    write(root / "newt" / "only.png", 77)
    data = load(root)
    assert 2 in data.train.labels
    assert any("newt" in note and "too few" in note for note in data.notes)


def test_images_given_to_train_and_test_are_noted(tmp_path: Path, load: Load) -> None:
    root = tmp_path / "pets"
    flat(root / "train")
    flat(root / "test", count=2)
    assert any("4 of the 4 test images are also in train" in note for note in load(root).notes)


def test_the_fingerprint_is_of_the_content(tmp_path: Path, load: Load) -> None:
    one = load(flat(tmp_path / "pets"))
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "pets", moved)
    (moved / "cat" / "000.png").rename(moved / "cat" / "zzz.png")
    assert load(moved).fingerprint == one.fingerprint
    assert load(moved, size=32).fingerprint != one.fingerprint
    write(moved / "cat" / "zzz.png", 4711)
    assert load(moved).fingerprint != one.fingerprint


def test_grey_folders_have_one_channel(tmp_path: Path, load: Load) -> None:
    root = flat(tmp_path / "pets")
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert load(root).preprocessing.channels == 1
    assert load(root, channels=3).preprocessing.channels == 3
    write(root / "cat" / "colour.png", 5)
    assert load(root).preprocessing.channels == 3


# ---- what lies about in folders ----


def test_hidden_files_and_others_are_passed_over(tmp_path: Path, load: Load) -> None:
    root = flat(tmp_path / "pets")
    write(root / "cat" / ".hidden.png", 1)
    write(root / ".git" / "a.png", 1)
    (root / "cat" / "notes.txt").write_text("x")
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val or []) + len(data.test or []) == 40
    assert any("1 file(s) of no type that is read" in note for note in data.notes)


def test_links_out_of_the_root_are_not_followed(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "secret" / "a.png", 99)
    root = flat(tmp_path / "pets")
    (root / "cat" / "out").symlink_to(tmp_path / "secret")
    (root / "dog" / "out.png").symlink_to(tmp_path / "secret" / "a.png")
    (root / "dog" / "loop").symlink_to(root / "dog")
    data = load(root)
    assert len(data.train) + len(data.val or []) + len(data.test or []) == 40
    assert any("2 link(s)" in note for note in data.notes)


def test_class_names_that_do_not_print(tmp_path: Path, load: Load) -> None:
    root = flat(tmp_path / "pets")
    for i in range(4):
        write(root / "new\nline" / f"{i}.png", 500 + i)
        folder = os.fsencode(root) + b"/\xff\xfe"
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - a name that is no text
        shutil.copy(root / "new\nline" / f"{i}.png", os.fsdecode(folder))
    data = load(root)
    assert set(data.classes) == {"cat", "dog", "new\\nline", "\\udcff\\udcfe"}
    for name in data.classes:
        name.encode()  # fit for any file


def test_unreadable_files_are_skipped_with_a_note_or_end_it(tmp_path: Path, load: Load) -> None:
    root = flat(tmp_path / "pets")
    (root / "cat" / "bad.jpg").write_text("no image")
    data = load(root)
    (note,) = [n for n in data.notes if "unreadable" in n]
    assert "1 unreadable" in note
    assert "bad.jpg" in note
    assert len(data.train) + len(data.val or []) + len(data.test or []) == 40
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        load(root, on_bad="error")


def problem(root: Path, load: Load, kind: type[SepnetError] = DataError) -> str:
    with pytest.raises(kind) as error:
        load(root)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_cannot_be_used(tmp_path: Path, load: Load) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images" in problem(tmp_path / "empty", load)
    assert "one class only (cat)" in problem(flat(tmp_path / "one", ("cat",)), load)
    assert "no folder" in problem(tmp_path / "nothing", load, DataNotFoundError)

    bad = flat(tmp_path / "bad", count=2)
    for path in bad.rglob("*.png"):
        path.write_text("x")
    assert "can be read" in problem(bad, load)

    one_bad = flat(tmp_path / "onebad", count=3)
    for path in (one_bad / "cat").iterdir():
        path.write_text("x")
    assert "no image of class 'cat'" in problem(one_bad, load)

    extra = tmp_path / "extra"
    flat(extra / "train")
    flat(extra / "test", ("cat", "eel"), 2)
    assert "class 'eel' is in test" in problem(extra, load)

    headless = tmp_path / "headless"
    flat(headless / "val")
    flat(headless / "test")
    assert "no class folders in train" in problem(headless, load)


def test_a_folder_without_permission(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    root = flat(tmp_path / "pets")
    real = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "dog: Permission denied" in problem(root, load)


# ---- the cache ----


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The caches built during a test."""
    made: list[Path] = []
    real = cache_module._build

    def counted(path: Path, *rest: object) -> None:
        made.append(path)
        real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "_build", counted)
    return made


def test_the_cache_is_built_once_and_again_when_a_file_changes(tmp_path: Path, load: Load, builds: list[Path]) -> None:
    root = flat(tmp_path / "pets")
    seen: list[tuple[int, int]] = []
    one = load(root, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)
    two = load(root)
    assert len(builds) == 1
    assert torch.equal(one.train.images, two.train.images)
    write(root / "cat" / "000.png", 31337, side=13)
    load(root)
    assert len(builds) == 2
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1, "the cache of the folder as it was is removed"
    load(root, size=32)
    assert len(builds) == 3
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2


@pytest.mark.parametrize("damage", ["pixel", "cut", "empty", "table", "trailer", "foreign"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, load: Load, builds: list[Path], damage: str) -> None:
    root = flat(tmp_path / "pets")
    good = load(root)
    (path,) = (tmp_path / "cache").glob("*.pixels")
    content = bytearray(path.read_bytes())
    if damage == "table":  # still JSON, but one hash is another
        at = content.index(b'"digests": ["') + 13
        content[at] = ord("0") if content[at] != ord("0") else ord("1")
    elif damage in ("pixel", "trailer"):
        content[{"pixel": 100, "trailer": -3}[damage]] ^= 255
    path.write_bytes({"cut": content[:-100], "empty": b"", "foreign": b"x" * 10_000}.get(damage, content))
    again = load(root)
    assert len(builds) == 2
    assert torch.equal(good.train.images, again.train.images)
    assert good.fingerprint == again.fingerprint


def test_two_builds_at_once_do_the_work_once(tmp_path: Path, load: Load, builds: list[Path]) -> None:
    root = flat(tmp_path / "pets")
    results: list[Dataset] = []
    threads = [threading.Thread(target=lambda: results.append(load(root))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(torch.equal(results[0].train.images, r.train.images) for r in results)
    assert len(builds) == 1


def test_a_build_that_is_interrupted_leaves_nothing(tmp_path: Path, load: Load) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(flat(tmp_path / "pets"), progress=interrupt)
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == []


def test_a_full_disk_is_told_before_writing(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, builds: list[Path]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "free" in problem(flat(tmp_path / "pets"), load, OutputError)
    assert not builds


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, load: Load) -> None:
    (tmp_path / "cache").write_text("a file")
    assert "XDG_CACHE_HOME" in problem(flat(tmp_path / "pets"), load, OutputError)


def test_a_large_set_stays_on_disk_and_reads_the_same(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    root = flat(tmp_path / "pets")
    small = load(root)
    monkeypatch.setattr(cache_module, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(types_module, "MEMORY_BYTES", 1000)
    large = load(root)
    for one, two in ((small.train, large.train), (small.val, large.val), (small.test, large.test)):
        assert one is not None
        assert two is not None
        assert one.index is None
        assert two.index is not None
        assert torch.equal(one.images, two.gather(torch.arange(len(two))))
        assert torch.equal(one.labels, two.labels)
    assert small.preprocessing == large.preprocessing
    assert small.fingerprint == large.fingerprint


# ---- the check ----


def test_check_folder(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    flat(root / "train", count=6)
    flat(root / "test", ("cat",), 1)  # test/cat/000.png is also in train
    write(root / "train" / "cat" / "again.png", 1)
    write(root / "train" / "dog" / "mislabelled.png", 2)
    write(root / "test" / "eel" / "a.png", 5, side=40)
    (root / "train" / "dog" / "bad.png").write_text("no image")
    report = check_folder(root)
    assert not report.ok
    assert report.counts["train"] == {"cat": 7, "dog": 8, "eel": 0}
    assert report.unreadable[0][0] == str(Path("train", "dog", "bad.png"))
    assert len(report.leaks) == 1
    assert len(report.conflicts) == 1
    assert any("mislabelled" in name for name in report.conflicts[0])
    assert len(report.duplicates) == 1
    assert any("again" in name for name in report.duplicates[0])
    assert any("eel" in line for line in report.problems)
    assert report.height is not None
    assert report.height.max == 40
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False
    assert all("\n" not in line for line in report.lines())


def test_check_of_a_clean_folder(tmp_path: Path) -> None:
    report = check_folder(flat(tmp_path / "pets"))
    assert report.ok
    assert report.imbalance == 1
    assert report.formats == {"PNG": 40}
    assert report.modes == {"RGB": 40}
    with pytest.raises(DataNotFoundError):
        check_folder(tmp_path / "nothing")
