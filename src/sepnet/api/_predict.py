"""``sepnet.predict``: class probabilities for image files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from sepnet.api._release import Release, load_release
from sepnet.data import IMAGE_SUFFIXES, decode_image
from sepnet.engine import make_fabric
from sepnet.engine.devices import keep_large_buffers
from sepnet.errors import ConfigError, DataError, DataNotFoundError, ImageError, one_line

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """One file: its most probable classes, each with its probability (0..1), or why it could not be read."""

    path: Path
    top: tuple[tuple[str, float], ...]
    error: str | None = None


def predict(
    run: Path | str | Release,
    sources: Sequence[str | Path] | str | Path,
    *,
    top: int = 5,
    batch_size: int = 128,
    device: str = "auto",
) -> Iterator[Prediction]:
    """Classify image files; one ``Prediction`` a file, in the order found, unreadable ones included.

    Args:
        run: the run's folder, or a release loaded before.
        sources: one or several files, folders (searched for images, deeper folders included) and shell patterns.
        top: how many classes to name; at most the number there are.

    Raises:
        CheckpointError: the run is not finished or damaged.
        DataNotFoundError: no source holds any image that can be read. One of several that does not exist, or cannot be read,
            becomes a ``Prediction`` with an error.
        ConfigError: ``top`` or ``batch_size`` below 1.
    """
    for name, value in (("top", top), ("batch-size", batch_size)):
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    release = run if isinstance(run, Release) else load_release(Path(run))
    files, missing = find_images([sources] if isinstance(sources, str | Path) else sources)
    if not files:
        raise DataNotFoundError("; ".join(str(absent.error) for absent in missing) or "name at least one image to classify")
    return chain(missing, _predictions(release, files, min(top, len(release.classes)), batch_size, device))


def find_images(sources: Sequence[str | Path]) -> tuple[list[Path], list[Prediction]]:
    """The files that ``sources`` name, each once, folders and patterns in alphabetical order; and the sources that name nothing."""
    found: dict[Path, None] = {}
    missing: list[Prediction] = []
    for source in sources:
        path = Path(source)
        try:
            found.update(dict.fromkeys(_files_of(path)))
        except DataError as error:
            missing.append(Prediction(path, (), str(error)))
    return list(found), missing


def _files_of(path: Path) -> list[Path]:
    """The image files of one source. Raises DataError: there are none, or a folder that cannot be read."""
    if path.is_dir():
        files, what = sorted(_walk(path)), "holds no image files"
    elif path.exists():
        files, what = [path] if path.is_file() else [], "is no file (but a device, or a pipe)"  # reading it might never end
    else:
        files = sorted(Path(m) for m in glob.glob(str(path), recursive=True) if Path(m).is_file())  # noqa: PTH207
        what = "does not exist, and no file matches it"
    if not files:
        raise DataNotFoundError(f"{one_line(path)} {what}")
    return files


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder {one_line(error.filename)}: {error.strerror}") from error

    for folder, _, names in os.walk(root, onerror=refuse):
        images = (Path(folder, n) for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES and not n.startswith("."))
        yield from (image for image in images if image.is_file())


@torch.inference_mode()
def _predictions(release: Release, files: list[Path], top: int, batch_size: int, device: str) -> Iterator[Prediction]:
    keep_large_buffers()
    fabric = make_fabric(device, "off")
    model = fabric.to_device(release.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        decoded = [_decode(path, release) for path in part]
        images = [image for image in decoded if isinstance(image, Tensor)]
        rows: Iterator[list[tuple[str, float]]] = iter(())
        if images:
            batch = release.preprocessing.normalise(torch.stack(images).to(fabric.device))
            probabilities, indices = model(batch).float().softmax(1).cpu().topk(top, dim=1)
            rows = iter(
                [
                    [(release.classes[i], p) for i, p in zip(which, values, strict=True)]
                    for which, values in zip(indices.tolist(), probabilities.tolist(), strict=True)
                ]
            )
        for path, image in zip(part, decoded, strict=True):
            if isinstance(image, Tensor):
                yield Prediction(path, tuple(next(rows)))
            else:
                yield Prediction(path, (), image)


def _decode(path: Path, release: Release) -> Tensor | str:
    try:
        return decode_image(path, release.preprocessing)
    except ImageError as error:
        return str(error)
