"""Small data sets in the very layouts and formats of the real ones, written with other code than reads them."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

FINE, COARSE = [f"fine{i:02d}" for i in range(100)], [f"coarse{i:02d}" for i in range(20)]
WNIDS = ("n02124075", "n01443537", "n03255030")  # not sorted, as in the published wnids.txt


def random_images(count: int, seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def cifar100_batch(count: int, seed: int, ending: str = ".png") -> dict[bytes, object]:
    return {
        b"filenames": [f"{i}{ending}".encode() for i in range(count)],
        b"batch_label": b"a batch",
        b"fine_labels": [i % 100 for i in range(count)],
        b"coarse_labels": [i % 20 for i in range(count)],
        b"data": random_images(count, seed, 3072),
    }


def write_cifar100(root: Path) -> Path:
    """200 + 100 images."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate((("train", 200), ("test", 100))):
        (folder / name).write_bytes(pickle.dumps(cifar100_batch(count, seed), protocol=2))
    meta = {b"fine_label_names": [n.encode() for n in FINE], b"coarse_label_names": [n.encode() for n in COARSE]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def svhn_arrays(count: int, seed: int) -> dict[str, np.ndarray]:
    """X as MATLAB has it, (32, 32, 3, N), and y with 10 for the digit 0."""
    images = random_images(count, seed, 32, 32, 3)
    return {"X": images.transpose(1, 2, 3, 0), "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]}


def write_svhn(root: Path, compressed: bool = True) -> Path:
    """60, 20 and 30 images."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", 60), ("test", 20), ("extra", 30))):
        scipy.io.savemat(root / f"{name}_32x32.mat", svhn_arrays(count, seed), do_compression=compressed)
    return root


def write_stl10(root: Path) -> Path:
    """30 + 20 images; each file is column by column."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate((("train", 30), ("test", 20))):
        images = random_images(count, seed, 96, 96, 3)
        content = b"".join(image[:, column, channel].tobytes() for image in images for channel in range(3) for column in range(96))
        (folder / f"{name}_X.bin").write_bytes(content)
        (folder / f"{name}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(count)))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    return folder


def write_tiny_imagenet(root: Path, train: int = 6, val: int = 2) -> Path:
    """Three classes; one image of each is grey, as some of the real ones are."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text(
        "n01443537\tgoldfish, Carassius auratus\nn02124075\tcrane, bird\nn03255030\tcrane\nn09999999\telse\n"
    )
    lines = []
    for label, wnid in enumerate(WNIDS):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for i in range(train):
            _write_jpeg(images / f"{wnid}_{i}.JPEG", 100 * label + i, grey=i == 0)
        for i in range(val):
            name = f"val_{label + len(WNIDS) * i}.JPEG"
            _write_jpeg(folder / "val" / "images" / name, 1000 + 100 * label + i)
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "test" / "images").mkdir(parents=True)
    _write_jpeg(folder / "test" / "images" / "test_0.JPEG", 5000)
    return folder


def _write_jpeg(path: Path, seed: int, grey: bool = False) -> None:
    pixels = random_images(1, seed, 8, 8, 3)[0].repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(pixels)
    (image.convert("L") if grey else image).save(path, quality=95)


def write_mnist(root: Path) -> Path:
    """60 + 20 images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate((("train", 60), ("t10k", 20))):
        images = random_images(count, seed, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + bytes(i % 10 for i in range(count)))
    return folder
