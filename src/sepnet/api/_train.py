"""``sepnet.train``: from what the user asked for to a finished run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sepnet.api._place import find, place_of
from sepnet.api._run import Run, run_training
from sepnet.data import Dataset, Place, datasets, load_dataset
from sepnet.engine import Reporter
from sepnet.errors import CheckpointError, ConfigError, DataError, one_line
from sepnet.models import models
from sepnet.recipes import DataFacts, TrainConfig, load_yaml, merge, recipes

__all__ = ["Request", "resolve", "run_folder", "train"]

DATA_KEYS = ("data", "size", "seed", "val_fraction")


@dataclass(frozen=True)
class Request:
    """What the user asked for, before recipe and data have been looked at.

    Attributes:
        data: a registered data set or an image folder; None to take it from the configuration or the resumed run.
        recipe: name of a recipe; None for "auto".
        config: YAML file of settings.
        flags: settings that go before all others, by field name of ``TrainConfig``.
        resume: folder of the run to continue.
        data_dir: where registered data sets lie; None for where the resumed run found them, or "data".
    """

    data: str | None = None
    recipe: str | None = None
    config: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    resume: Path | None = None
    data_dir: Path | None = None

    @property
    def place(self) -> Place:
        """Where the resumed run found its data."""
        return Place() if self.resume is None else place_of(self.resume)

    @property
    def found_in(self) -> Path:
        """Folder of the registered data sets: the one named, or that of the resumed run, or data."""
        return self.data_dir or self.place.data_dir or Path("data")


def resolve(
    request: Request, progress: Callable[[int, int], None] | None = None, loaded: Dataset | None = None
) -> tuple[TrainConfig, Dataset]:
    """Load the data and settle every setting: defaults < recipe < YAML < flags.

    Args:
        progress: called with (images done, images in all) while an image folder is decoded.
        loaded: the data, where an earlier request with the same data settings has loaded them.

    Raises:
        ConfigError, UnknownNameError, DataError, CheckpointError: with one line for the user.
    """
    _check_length(request.flags)
    written = _written(request)
    flags = dict(request.flags) | ({"data": request.data} if request.data is not None else {})
    recipe = request.recipe or str(written.get("recipe", "auto"))
    written.pop("recipe", None)
    data = flags.get("data") or written.get("data")
    if not data:
        raise ConfigError("nothing to train on: name a data set or an image folder, e.g. sepnet train digits")
    draft = _merged(TrainConfig(data=str(data)), _data_settings(written), _data_settings(flags), request)
    dataset = loaded or load_dataset(
        draft.data if flags.get("data") else find(draft.data, request.place),
        data_dir=request.found_in,
        seed=draft.seed,
        size=draft.size,
        val_fraction=draft.val_fraction,
        progress=progress,
    )
    if len(dataset.classes) < 2:
        raise DataError(f"{one_line(dataset.title)} has one class only; a classifier needs two or more")
    channels, height, _ = dataset.train.shape
    facts = DataFacts(draft.data, len(dataset.train), len(dataset.classes), channels, height, dataset.characters)
    if request.resume is not None:  # the run's own file says all; what its recipe is today must not matter
        base = draft.model_copy(update={"recipe": recipe})
    else:
        base = recipes.get(recipe)(facts)
    config = _merged(base, written, flags, request)
    return _fitted(config, dataset, written, flags), dataset


def train(
    data: str | None = None,
    *,
    recipe: str | None = None,
    config: Path | str | None = None,
    output: Path | str | None = None,
    resume: Path | str | None = None,
    data_dir: Path | str | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    **settings: Any,
) -> Run:
    """Train a network, evaluate it, and leave a run folder.

    Args:
        data: a registered data set ("digits", "mnist", "cifar10") or an image folder.
        recipe: name of a recipe; None for "auto", which looks at the data.
        config: YAML file of settings.
        output: the run's folder; None for runs/<data>, with a number if that exists.
        resume: folder of an interrupted run to continue.
        data_dir: where registered data sets lie; None for "data", or for where the resumed run found them.
        settings: any field of ``TrainConfig``: model, epochs, lr, batch_size, ...

    Raises:
        SepnetError: one line for the user; nothing is lost.
    """
    request = Request(
        data,
        recipe,
        Path(config) if config else None,
        settings,
        Path(resume) if resume else None,
        Path(data_dir) if data_dir else None,
    )
    resolved, dataset = resolve(request)
    folder = run_folder(resolved, Path(output) if output else None, request.resume)
    return run_training(resolved, dataset, folder, device=device, resume=resume is not None, reporter=reporter)


def run_folder(config: TrainConfig, output: Path | None, resume: Path | None) -> Path:
    """Where the run goes: the resumed run's folder, ``output``, or the first free one of runs/<data>, runs/<data>-2, ...

    Started by torchrun, all processes but the first get a folder that they never write to: looking for a free one, or
    refusing one in use, would trip over what the first has just made.

    Raises:
        ConfigError: ``output`` already holds a run.
    """
    if os.environ.get("RANK", "0") != "0":
        return resume or output or Path("runs")
    if resume is not None:
        return resume
    if output is not None:
        if any((output / name).exists() for name in ("config.yaml", "last.pt", "run.json")):
            raise ConfigError(
                f"{one_line(output)} already holds a run; choose another --output, or continue it with --resume {one_line(output)}"
            )
        return output
    named = config.data not in datasets or os.sep in config.data
    name = (Path(config.data).resolve().name or "images") if named else config.data
    base = Path("runs") / one_line(name)
    number = 1
    while (folder := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists():
        number += 1
    return folder


def _written(request: Request) -> dict[str, Any]:
    """Settings from the resumed run's config.yaml, with those of the user's file over them."""
    written: dict[str, Any] = {}
    if request.resume is not None:
        saved = request.resume / "config.yaml"
        if not saved.exists():
            raise CheckpointError(
                f"no run to resume at {one_line(request.resume)}: it has no config.yaml; start it without --resume"
            )
        written |= load_yaml(saved)
    if request.config is not None:
        own = load_yaml(request.config)
        _check_length(own, f"{one_line(request.config)}: ")
        written |= own
    return written


def _check_length(settings: Mapping[str, Any], where: str = "") -> None:
    if None not in (settings.get("epochs"), settings.get("iterations")):
        raise ConfigError(f"{where}epochs and iterations both say how long to train: give one of them")


def _options(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return settings.get("model_options") or {}


def _data_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in DATA_KEYS if key in settings}


def _merged(base: TrainConfig, written: Mapping[str, Any], flags: Mapping[str, Any], request: Request) -> TrainConfig:
    where = one_line(request.config or (request.resume / "config.yaml" if request.resume else "configuration"))
    return merge(merge(base, written, where), flags)


def _fitted(config: TrainConfig, dataset: Dataset, written: Mapping[str, Any], flags: Mapping[str, Any]) -> TrainConfig:
    """Drop what the recipe proposed but the user's choices rule out; what the user asked for is never changed."""
    asked = {**written, **flags}
    changes: dict[str, Any] = {}
    if "model" in asked:  # options of the recipe's network may be unknown to this one
        known = {*models.get(config.model).options, *_options(written), *_options(flags)}
        changes["model_options"] = {k: v for k, v in config.model_options.items() if k in known}
    if dataset.val is None:
        changes |= {k: off for k, off in (("keep", "last"), ("patience", None)) if k not in asked}
    for level in (flags, written):  # the length that was asked for last, and closest to the user, holds
        lengths = [k for k in ("iterations", "epochs") if level.get(k) is not None]
        if lengths:
            changes |= {k: None for k in ("iterations", "epochs") if k not in lengths}
            break
    return config.model_copy(update=changes)
