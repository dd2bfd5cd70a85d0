"""``sepnet.evaluate``: a finished run on a split of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sepnet.api._place import find, place_of
from sepnet.api._release import Release, load_release
from sepnet.api._run import score_dict
from sepnet.data import Dataset, EvalLoader, Place, Split, datasets, load_dataset
from sepnet.engine import evaluate as evaluate_split
from sepnet.engine import make_fabric
from sepnet.errors import CheckpointError, ConfigError, DataError, one_line

__all__ = ["Evaluation", "evaluate"]

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a release on one split ("whole": all of a folder that is not divided into splits).

    ``scores`` holds accuracy, top3 and top5 (percent), loss, images, per_class, confusion.
    """

    release: Release
    data_title: str
    split: str
    scores: dict[str, Any]


def evaluate(
    run: Path | str,
    data: str | None = None,
    *,
    split: SplitName = "test",
    data_dir: Path | str | None = None,
    device: str = "auto",
    tta: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a finished run.

    Args:
        run: the run's folder.
        data: None for what it was trained on (the same split again, by its seed); a data set; or another folder of the same
            classes or some of them, which is scored whole where it is not divided into train, val and test.
        split: "test", "val" or "train" of what has splits; of another folder the next best of test, val and train.
        data_dir: where registered data sets lie; None for where training found its own, or "data".

    Raises:
        CheckpointError: the run is damaged, or its classes are not those of the data.
        DataError: the data has no such split, or the folder has changed since the run was trained on it.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split {one_line(split)}: choose train, val or test")
    release = load_release(Path(run))
    place = place_of(release.folder)
    found_in = Path(data_dir) if data_dir is not None else place.data_dir or Path("data")
    dataset, chosen, name = _choose(release, data, split, place, found_in, progress)
    amp: dict[str | None, Literal["auto", "bf16", "off"]] = {"bf16": "bf16", "fp32": "off", None: "auto"}
    fabric = make_fabric(device, amp[release.precision])  # as its run scored it
    model = fabric.to_device(release.model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    loader = EvalLoader(chosen, release.preprocessing, device=fabric.device, rank=fabric.global_rank, world_size=fabric.world_size)
    result = evaluate_split(model, loader, len(release.classes), fabric, tta=tta)
    return Evaluation(release, dataset.title, name, score_dict(result, release.classes))


def _choose(
    release: Release,
    data: str | None,
    split: SplitName,
    place: Place,
    data_dir: Path,
    progress: Callable[[int, int], None] | None,
) -> tuple[Dataset, Split, str]:
    """The images to score: a split of what the run was trained on, or of another folder; and what to call them."""
    trained_on = release.data.get("data")
    name = data or (find(trained_on, place) if isinstance(trained_on, str) else None)
    if name is None:
        raise ConfigError(f"{one_line(release.folder)} does not say what it was trained on; name a data set or folder")
    try:
        dataset = _splits(release, name, data_dir, progress)
    except DataError as error:
        if data is None:
            raise type(error)(f"{one_line(release.folder)} was trained on {one_line(name)}: {error}") from error
        dataset = None  # a folder without the splits of a training folder
    if dataset is not None and (dataset.fingerprint == release.data.get("fingerprint") or name in datasets):
        chosen = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
        if chosen is None:
            raise DataError(f"{one_line(dataset.title)} has no {split} split; choose another with --split")
        return _same_classes(release, dataset), chosen, split
    if data is None:
        raise DataError(
            f"{one_line(name)} has changed since {one_line(release.folder)} was trained on it: which of its images are test images "
            f"is no longer known; to score all of a folder, name it: sepnet val {one_line(release.folder)} FOLDER"
        )
    whole = load_dataset(
        name,
        data_dir=data_dir,
        size=release.preprocessing.size[0],
        channels=release.preprocessing.channels,
        mode=release.preprocessing.mode,
        whole=True,
        part=split,
        classes=release.classes,
        progress=progress,
    )
    return whole, whole.test or whole.train, whole.part or "whole"


def _splits(release: Release, name: str, data_dir: Path, progress: Callable[[int, int], None] | None) -> Dataset:
    """The data set, carved as for the run."""
    try:
        seed, fraction = int(release.data.get("seed", 0)), float(release.data.get("val_fraction", 0.1))
    except (TypeError, ValueError):
        raise CheckpointError(f"{one_line(release.folder)}: config.json names no usable seed or val_fraction") from None
    return load_dataset(
        name,
        data_dir=data_dir,
        seed=seed,
        size=release.preprocessing.size[0],
        channels=release.preprocessing.channels,
        mode=release.preprocessing.mode,
        val_fraction=fraction,
        progress=progress,
    )


def _same_classes(release: Release, dataset: Dataset) -> Dataset:
    if dataset.classes != release.classes:
        mine, theirs = (f"{len(names)} ({one_line(', '.join(names), 60)})" for names in (release.classes, dataset.classes))
        raise CheckpointError(
            f"{one_line(release.folder)} was trained on other classes, {mine}, than {one_line(dataset.title)} has, {theirs}"
        )
    return dataset
