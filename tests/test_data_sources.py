"""The registered data sets: what they hold, and what a damaged, foreign or hostile file gets told."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sepnet.data import Preprocessing, datasets, load_dataset
from sepnet.errors import CheckpointError, ConfigError, DataError, DataNotFoundError, SepnetError, UnknownNameError, UnsafeFileError

ARCHIVES = Path(__file__).parents[1] / ".." / "shared" / "data"
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def one_line_of(error: pytest.ExceptionInfo[SepnetError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- writing the formats ----


def idx(array: np.ndarray) -> bytes:
    magic = {3: 2051, 1: 2049}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_dir(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", 60), ("t10k", 20)):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (count, 28, 28))))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return raw


def cifar_batch(count: int, seed: int, ending: str = ".png") -> dict[bytes, object]:
    rng = np.random.default_rng(seed)
    return {
        b"batch_label": b"a batch",
        b"labels": [i % 10 for i in range(count)],
        b"data": rng.integers(0, 256, (count, 3072), np.uint8),
        b"filenames": [f"{i}{ending}".encode() for i in range(count)],
    }


@pytest.fixture
def cifar_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(pickle.dumps(cifar_batch(40, number), protocol=2))
    return folder


# ---- every registered data set ----


def test_importing_the_package_reads_no_data_set() -> None:
    code = "import sys, sepnet.data; print([m for m in sys.modules if m in ('sepnet.data.digits', 'sepnet.data.mnist', 'sklearn')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [n for n in datasets if n != "digits"])  # digits needs no files
def test_a_missing_data_set_says_where_to_put_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError) as error:
        load_dataset(name, data_dir=tmp_path)
    assert str(tmp_path) in one_line_of(error)


def test_digits() -> None:
    data = load_dataset("digits")
    assert data.val is not None
    assert data.test is not None
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert int(data.train.images.max()) == 255
    assert data.train.labels.unique().tolist() == list(range(10))


def test_the_seed_moves_validation_but_never_the_test_split_or_the_fingerprint() -> None:
    one, two = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    again = load_dataset("digits", seed=1)
    assert one.val is not None
    assert two.val is not None
    assert again.val is not None
    assert one.test is not None
    assert two.test is not None
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.val.images, two.val.images)
    assert torch.equal(one.val.images, again.val.images)
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != load_dataset("digits", size=16).fingerprint


def test_no_validation_trains_on_everything() -> None:
    data = load_dataset("digits", val_fraction=0)
    assert data.val is None
    assert len(data.train) == 1797 - len(data.test or [])


def test_size_and_channels_can_be_changed() -> None:
    data = load_dataset("digits", size=20, channels=3)
    assert data.train.images.shape[1:] == (3, 20, 20)
    assert data.preprocessing.size == (20, 20)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    x = data.preprocessing.normalise(data.train.images)
    torch.testing.assert_close(x.mean(), torch.tensor(0.0), atol=2e-3, rtol=0)
    torch.testing.assert_close(x.std(), torch.tensor(1.0), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"size": 0}, {"size": 100_000}, {"channels": 2}, {"seed": -1}, {"mode": "fit"}],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        load_dataset("digits", **wrong)  # type: ignore[arg-type]
    assert str(next(iter(wrong.values()))) in one_line_of(error)


def test_an_unknown_name_offers_the_close_one() -> None:
    with pytest.raises(UnknownNameError, match="digits"):
        load_dataset("digit")
    with pytest.raises(UnknownNameError, match=r"no folder 'cifar' here, and no data set named 'cifar'; did you mean cifar10"):
        load_dataset("cifar")
    with pytest.raises(DataNotFoundError, match="no folder"):
        load_dataset("./digit")


# ---- MNIST ----


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "mnist", "."])
def test_mnist_is_found_in_each_place(mnist_dir: Path, tmp_path: Path, place: str, compressed: bool) -> None:
    root = tmp_path / "elsewhere"
    (root / place).mkdir(parents=True, exist_ok=True)
    for path in mnist_dir.iterdir():
        target = root / place / (path.name + ".gz" * compressed)
        target.write_bytes(gzip.compress(path.read_bytes()) if compressed else path.read_bytes())
    data = load_dataset("mnist", data_dir=root)
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (50, 10, 20)
    assert data.title == "MNIST (modified copy)"
    assert data.preprocessing.mean == (0.1307,)


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (lambda b: b[:-1], DataError, "cut short"),
        (lambda b: b[:7], DataError, "cut short"),
        (lambda b: b + b"x", UnsafeFileError, "more than"),
        (lambda b: b"\x00\x00\x08\x01" + b[4:], DataError, "2049"),
        (lambda b: b[:4] + struct.pack(">3I", 2**31, 2**31, 28) + b[16:], UnsafeFileError, "2147483648"),
        (lambda b: b[:4] + struct.pack(">3I", 30, 56, 28) + b[16:], DataError, "30 images but"),
    ],
)
def test_mnist_damaged(mnist_dir: Path, tmp_path: Path, damage: object, kind: type[SepnetError], said: str) -> None:
    path = mnist_dir / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(kind, match=said) as error:
        load_dataset("mnist", data_dir=tmp_path)
    assert path.name in one_line_of(error)


def test_mnist_label_out_of_range(mnist_dir: Path, tmp_path: Path) -> None:
    (mnist_dir / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10)))
    with pytest.raises(DataError, match="label 10"):
        load_dataset("mnist", data_dir=tmp_path)


def test_mnist_gzip_bomb_is_not_unpacked(mnist_dir: Path, tmp_path: Path) -> None:
    path = mnist_dir / "train-labels-idx1-ubyte"
    bomb = gzip.compress(path.read_bytes() + bytes(50_000_000))
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(bomb)
    with pytest.raises(UnsafeFileError, match="more than the 60 bytes"):
        load_dataset("mnist", data_dir=tmp_path)


def test_mnist_damaged_gzip(mnist_dir: Path, tmp_path: Path) -> None:
    path = mnist_dir / "train-labels-idx1-ubyte"
    content = bytearray(gzip.compress(path.read_bytes()))
    content[20] ^= 255
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(content)
    with pytest.raises(DataError, match="download it again"):
        load_dataset("mnist", data_dir=tmp_path)


# ---- CIFAR-10 ----


def test_cifar10(cifar_dir: Path, tmp_path: Path) -> None:
    data = load_dataset("cifar10", data_dir=tmp_path, val_fraction=0)
    assert data.title == "CIFAR-10 (modified copy)"
    assert (len(data.train), len(data.test or [])) == (200, 40)
    source = cifar_batch(40, 0)[b"data"]
    assert isinstance(source, np.ndarray)
    assert np.array_equal(data.train.images[:40].numpy(), source.reshape(-1, 3, 32, 32))
    assert data.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert load_dataset("cifar10", data_dir=cifar_dir).fingerprint == data.fingerprint


def test_cifar10_from_jpegs_says_so(cifar_dir: Path, tmp_path: Path) -> None:
    (cifar_dir / "test_batch").write_bytes(pickle.dumps(cifar_batch(40, 5, ".jpg"), protocol=2))
    assert load_dataset("cifar10", data_dir=tmp_path).title == "CIFAR-10 (JPEG copy)"


def test_cifar10_pickled_by_python_2(cifar_dir: Path, tmp_path: Path) -> None:
    """The canonical files were written by Python 2: bytes are its ``str``, the array module its old name."""
    batch = cifar_batch(40, 3)
    content = pickle.dumps(batch, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (cifar_dir / "data_batch_2").write_bytes(content)
    data = load_dataset("cifar10", data_dir=tmp_path, val_fraction=0)
    assert isinstance(batch[b"data"], np.ndarray)
    assert np.array_equal(data.train.images[40:80].numpy().reshape(40, -1), batch[b"data"])


class Evil:
    """A pickle of this writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.target), "w"))


def test_a_hostile_pickle_does_nothing(cifar_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    (cifar_dir / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil(target)}, protocol=2))
    with pytest.raises(UnsafeFileError, match=r"io\.open") as error:
        load_dataset("cifar10", data_dir=tmp_path)
    assert "data_batch_3" in one_line_of(error)
    assert not target.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zlibtR.",
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(c_codecs\nencode\n(I0\ntX\x01\x00\x00\x00btR.",
        b"c_codecs\nencode\n}X\x08\x00\x00\x00__code__I1\nsb.",
        b"Pan id\n.",
        b"cbuiltins\neval\n.",
        b"csepnet.data\ndatasets\n.",
    ],
)
def test_a_pickle_cannot_bend_what_is_admitted(cifar_dir: Path, tmp_path: Path, program: bytes) -> None:
    (cifar_dir / "data_batch_1").write_bytes(program)
    with pytest.raises(UnsafeFileError, match="refused"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(cifar_batch(40, 0), protocol=2)[:5000], pickle.dumps([1])])
def test_a_damaged_pickle(cifar_dir: Path, tmp_path: Path, content: bytes) -> None:
    (cifar_dir / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError) as error:
        load_dataset("cifar10", data_dir=tmp_path)
    assert "data_batch_1" in one_line_of(error)


@pytest.mark.parametrize(
    "change",
    [
        {b"data": np.zeros((40, 3000), np.uint8)},
        {b"data": None},
        {b"labels": [10] * 40},
        {b"labels": [0] * 39},
        {b"labels": None},
        {b"labels": ["0"] * 40},
    ],
)
def test_cifar10_of_another_shape(cifar_dir: Path, tmp_path: Path, change: dict[bytes, object]) -> None:
    (cifar_dir / "data_batch_4").write_bytes(pickle.dumps(cifar_batch(40, 0) | change, protocol=2))
    with pytest.raises(DataError, match="data_batch_4"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_a_missing_batch_is_named(cifar_dir: Path, tmp_path: Path) -> None:
    (cifar_dir / "data_batch_5").unlink()
    with pytest.raises(DataNotFoundError, match="data_batch_5"):
        load_dataset("cifar10", data_dir=tmp_path)


# ---- Preprocessing ----


def test_preprocessing_round_trip() -> None:
    pre = Preprocessing((32, 48), 3, "squash", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert Preprocessing.from_dict(pre.to_dict()) == pre


@pytest.mark.parametrize(
    "change",
    [
        {"size": [0, 32]},
        {"size": "32"},
        {"channels": 4},
        {"mode": "stretch"},
        {"std": [1, 0, 1]},
        {"mean": [0.5]},
        {"mean": [float("nan")] * 3},
        {"std": None},
        {"more": 1},
    ],
)
def test_preprocessing_of_a_foreign_release(change: dict[str, object]) -> None:
    good = Preprocessing((32, 32), 3, "crop", (0.5,) * 3, (0.25,) * 3).to_dict()
    with pytest.raises(CheckpointError) as error:
        Preprocessing.from_dict(good | change)
    one_line_of(error)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_normalise_is_the_formula_in_every_layout(layout: torch.memory_format) -> None:
    pre = Preprocessing((5, 7), 3, "crop", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    images = torch.randint(0, 256, (4, 3, 5, 7), dtype=torch.uint8).contiguous(memory_format=layout)
    before = images.clone()
    mean, std = torch.tensor(pre.mean).view(1, 3, 1, 1), torch.tensor(pre.std).view(1, 3, 1, 1)
    torch.testing.assert_close(pre.normalise(images), (images / 255 - mean) / std)
    torch.testing.assert_close(pre.normalise(images.float()), (images / 255 - mean) / std)
    assert torch.equal(images, before)
    assert pre.normalise(images).is_contiguous(memory_format=layout)


# ---- the real files ----


@pytest.fixture(scope="module")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = os.environ.get("SEPNET_TEST_DATA")
    if folder:
        yield Path(folder)
        return
    archive = ARCHIVES / "mnist-idx.tar.xz"
    if not archive.exists():
        pytest.skip("no real data: set SEPNET_TEST_DATA to a folder with MNIST/raw and cifar-10-batches-py")
    folder_made = tmp_path_factory.mktemp("real") / "MNIST"
    with tarfile.open(archive) as tar:
        tar.extractall(folder_made, filter="data")
    inner = folder_made / "MNIST"
    yield inner.parent if inner.exists() else folder_made.parent


def test_real_mnist(real_data: Path) -> None:
    if not (real_data / "MNIST" / "raw").exists():
        pytest.skip(f"no MNIST/raw in {real_data}")
    data = load_dataset("mnist", data_dir=real_data, val_fraction=0)
    assert data.title == "MNIST"
    assert (len(data.train), len(data.test or [])) == (60_000, 10_000)
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    x = data.preprocessing.normalise(data.train.images)
    torch.testing.assert_close(torch.stack([x.mean(), x.std()]), torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)


def test_real_cifar10(real_data: Path) -> None:
    if not (real_data / "cifar-10-batches-py").exists():
        pytest.skip(f"no cifar-10-batches-py in {real_data}")
    data = load_dataset("cifar10", data_dir=real_data)
    assert data.title.startswith("CIFAR-10")
    assert (len(data.train), len(data.val or []), len(data.test or [])) == (45_000, 5_000, 10_000)
    assert data.train.labels.bincount().tolist() == [4500] * 10
