"""``sepnet.evaluate``: a finished run on a split of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sepnet.api._release import Release, load_release
from sepnet.api._run import score_dict
from sepnet.data import Dataset, EvalLoader, load_dataset
from sepnet.engine import evaluate as evaluate_split
from sepnet.engine import make_fabric
from sepnet.errors import CheckpointError, ConfigError, DataError, one_line

__all__ = ["Evaluation", "evaluate"]

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a release on one split: ``scores`` holds accuracy and top5 (percent), loss, images, per_class, confusion."""

    release: Release
    data_title: str
    split: SplitName
    scores: dict[str, Any]


def evaluate(
    run: Path | str,
    data: str | None = None,
    *,
    split: SplitName = "test",
    data_dir: Path | str = "data",
    device: str = "auto",
    tta: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a finished run.

    Args:
        run: the run's folder.
        data: data set or folder; None for what it was trained on (the same split again, by its seed).
        split: "test", "val" or "train".

    Raises:
        CheckpointError: the run is damaged, or its classes are not those of the data.
        DataError: the data has no such split.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split {one_line(split)}: choose train, val or test")
    release = load_release(Path(run))
    dataset = _load(release, data, Path(data_dir), progress)
    chosen = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
    if chosen is None:
        raise DataError(f"{one_line(dataset.title)} has no {split} split")
    fabric = make_fabric(device)
    model = fabric.to_device(release.model)
    loader = EvalLoader(chosen, release.preprocessing, device=fabric.device, rank=fabric.global_rank, world_size=fabric.world_size)
    result = evaluate_split(model, loader, len(release.classes), fabric, tta=tta)
    return Evaluation(release, dataset.title, split, score_dict(result, release.classes))


def _load(release: Release, data: str | None, data_dir: Path, progress: Callable[[int, int], None] | None) -> Dataset:
    trained_on = release.data
    name = data or trained_on.get("data")
    if not isinstance(name, str):
        raise ConfigError(f"{one_line(release.folder)} does not say what it was trained on; name a data set or folder")
    try:
        seed, fraction = int(trained_on.get("seed", 0)), float(trained_on.get("val_fraction", 0.1))
    except (TypeError, ValueError):
        raise CheckpointError(f"{one_line(release.folder)}: config.json names no usable seed or val_fraction") from None
    dataset = load_dataset(
        name,
        data_dir=data_dir,
        seed=seed,
        size=release.preprocessing.size[0],
        channels=release.preprocessing.channels,
        val_fraction=fraction,
        progress=progress,
    )
    if dataset.classes != release.classes:
        mine, theirs = (f"{len(names)} ({one_line(', '.join(names), 60)})" for names in (release.classes, dataset.classes))
        raise CheckpointError(
            f"{one_line(release.folder)} was trained on other classes, {mine}, than {one_line(dataset.title)} has, {theirs}"
        )
    return dataset
