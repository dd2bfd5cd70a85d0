"""What ``sepnet compare`` will do: which networks, which of their runs are finished already, and how long the rest takes here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sepnet.api._estimate import seconds_per_run
from sepnet.api._experiment import same_settings
from sepnet.api._release import load_release
from sepnet.api._run import FREE_TO_CHANGE, build_model
from sepnet.api._train import Request, resolve
from sepnet.data import Dataset
from sepnet.errors import CheckpointError, ConfigError, DataError, one_line
from sepnet.measure import Counts, count
from sepnet.models import models
from sepnet.recipes import TrainConfig, load_yaml
from sepnet.report import RunRecord, load_record

__all__ = ["ComparePlan", "Contender", "NamedNetwork", "Trial", "plan_comparison"]


@dataclass(frozen=True)
class NamedNetwork:
    """A registered network with options of its own, to be trained."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """One network of a comparison.

    Attributes:
        label: its name, with those options in which it departs from the recipe; says so where a run that was handed in was trained
            in another way than the rest.
        config: how it is trained with seed 0; of a finished run that was handed in, how it was trained.
        costs: its parameters and MACs.
        given: finished runs that were handed in, one a seed; such a network is not trained.
    """

    label: str
    config: TrainConfig
    costs: Counts
    given: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One run of a network that is trained here."""

    contender: Contender
    seed: int
    folder: Path

    @property
    def config(self) -> TrainConfig:
        """The network's configuration, with the seed of this run."""
        return self.contender.config.model_copy(update={"seed": self.seed})


@dataclass(frozen=True)
class ComparePlan:
    """What a call of ``compare`` will do.

    Attributes:
        common: the settings that all networks share, as they are with seed 0 (its network is of no account); those of
            the first where only finished runs are compared.
        dataset: the data, with the validation split of seed 0.
        trials: every run of the networks that are trained here, in the order of execution.
        done: folders of the trials that are finished already.
        seconds: expected seconds of a run still to be done, by label, measured on this machine.
        notes: what the reader of the result must know.
    """

    contenders: tuple[Contender, ...]
    common: TrainConfig
    dataset: Dataset
    seeds: int
    trials: tuple[Trial, ...]
    done: frozenset[Path]
    seconds: dict[str, float]
    notes: tuple[str, ...]
    output: Path
    data_dir: Path
    device: str

    @property
    def todo(self) -> tuple[Trial, ...]:
        """Trials that are not finished."""
        return tuple(trial for trial in self.trials if trial.folder not in self.done)

    @property
    def expected_seconds(self) -> float:
        """Expected time of all training that is still to be done."""
        return sum(self.seconds.get(trial.contender.label, 0.0) for trial in self.todo)

    @property
    def summary(self) -> str:
        """The common recipe and its length in a few words."""
        batch = min(self.common.batch_size, len(self.dataset.train))
        total = self.common.total_iterations(len(self.dataset.train) // batch)
        seeds = "" if not self.trials else ", seed 0" if self.seeds == 1 else f", seeds 0 to {self.seeds - 1}"
        return f"{total:,} iterations of {batch:,} images, recipe {self.common.recipe}{seeds}"


def plan_comparison(
    entrants: Sequence[NamedNetwork | Path],
    request: Request,
    *,
    seeds: int = 1,
    output: Path | None = None,
    device: str = "auto",
    measure: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ComparePlan:
    """Settle what is compared, which runs are finished already, and how long the rest takes on this machine.

    Args:
        entrants: networks to train, and folders of finished runs, which are taken as they are. Several runs of one network that
            differ in their seed only count as its seeds.
        request: data and settings, the same for all; its network is of no account. Without data those of the first run.
        seeds: runs of each network that is trained, with seeds 0 to seeds - 1.
        output: where runs and report go; None for runs/compare-<data>.
        measure: time a few training steps of each network that is still to be trained; without it ``seconds`` is empty.
        progress: called with (images done, images in all) while an image folder is decoded.

    Raises:
        ConfigError: no network, the same one twice, options it does not have, or an output folder that holds other runs.
        UnknownNameError: no such network, data set or recipe.
        CheckpointError: a folder that holds no finished run, or one of other data or without validation accuracy.
        DataError: data without a validation split.
    """
    _check(entrants, seeds)
    records = {path: _finished_run(path) for path in entrants if isinstance(path, Path)}
    request = replace(request, flags=_data_of_first(request, records) | dict(request.flags) | {"seed": 0})
    common, dataset = resolve(request, progress)
    if dataset.val is None:
        raise DataError(f"{one_line(dataset.title)} has no validation split, by which networks are compared; raise --val-fraction")
    contenders = _contenders(entrants, records, request, dataset)
    if all(contender.given for contender in contenders):  # nothing is trained: the first one's settings are what is common
        common = contenders[0].config
    contenders, notes = _marked(contenders, common, len(dataset.train))
    folder = output or Path("runs") / f"compare-{one_line(Path(dataset.name).name)}"
    trials = tuple(
        Trial(c, seed, folder / f"{_slug(c.label)}-seed{seed}") for seed in range(seeds) for c in contenders if not c.given
    )
    done = frozenset(trial.folder for trial in trials if _is_done(trial, dataset))
    todo = {trial.contender.label: trial.contender.config for trial in trials if trial.folder not in done}
    return ComparePlan(
        contenders=contenders,
        common=common,
        dataset=dataset,
        seeds=seeds,
        trials=trials,
        done=done,
        seconds={label: seconds_per_run(config, dataset, device) for label, config in todo.items()} if measure else {},
        notes=notes,
        output=folder,
        data_dir=request.found_in,
        device=device,
    )


def _check(entrants: Sequence[NamedNetwork | Path], seeds: int) -> None:
    """Refuse what can be refused before the data are read."""
    if not entrants:
        raise ConfigError("nothing to compare: name networks (sepnet models lists them) or folders of finished runs")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a comparison runs in one process, or its latencies would be those of a shared machine; start it without torchrun"
        )
    for entrant in entrants:
        if isinstance(entrant, NamedNetwork):
            models.get(entrant.model)


def _finished_run(folder: Path) -> RunRecord:
    load_release(folder)  # says what is wrong with a folder that is not a whole run
    return load_record(folder / "run.json")


def _data_of_first(request: Request, records: Mapping[Path, RunRecord]) -> dict[str, Any]:
    """The data settings of the first run handed in, where no data are named."""
    if request.data is not None or request.config is not None or not records:
        return {}
    saved = next(iter(records.values())).config
    return {key: saved[key] for key in ("data", "size", "val_fraction") if saved.get(key) is not None}


def _contenders(
    entrants: Sequence[NamedNetwork | Path], records: Mapping[Path, RunRecord], request: Request, dataset: Dataset
) -> tuple[Contender, ...]:
    found: dict[str, Contender] = {}
    for entrant in entrants:
        if isinstance(entrant, Path):
            contender = _loaded(entrant, records[entrant], request, dataset)
        else:
            contender = _named(entrant, request, dataset)
        key = json.dumps([contender.config.model, _all_options(contender.config)], sort_keys=True, default=str)
        if key in found:
            contender = _joined(found[key], contender)
        found[key] = contender
    return tuple(found.values())


def _named(entrant: NamedNetwork, request: Request, dataset: Dataset) -> Contender:
    flags = {**request.flags, "model": entrant.model, "model_options": dict(entrant.options)}
    config, _ = resolve(replace(request, flags=flags), loaded=dataset)
    known = {*models.get(entrant.model).options, *entrant.options}  # a --config file may name options of its own network
    config = config.model_copy(update={"model_options": {k: v for k, v in config.model_options.items() if k in known}})
    return Contender(_label(entrant.model, entrant.options), config, _costs(config, dataset))


def _loaded(folder: Path, record: RunRecord, request: Request, dataset: Dataset) -> Contender:
    where = one_line(folder)
    if record.data_fingerprint != dataset.fingerprint:
        raise CheckpointError(
            f"{where} was trained on other data, {one_line(record.data_title)} ({record.data_fingerprint[:12]}), than "
            f"{one_line(dataset.title)} ({dataset.fingerprint[:12]}); leave it out, or give its own --data and --size"
        )
    if "accuracy" not in record.result.get("val", {}):
        raise CheckpointError(f"{where} has no validation accuracy, by which networks are compared; train it with one")
    try:
        config = TrainConfig.model_validate(record.config)
    except ValueError as error:
        raise CheckpointError(f"{where} holds settings that this version does not know; train it again") from error
    usual = _named(NamedNetwork(config.model), request, dataset).config.model_options
    own = {k: v for k, v in config.model_options.items() if usual.get(k) != v}
    return Contender(_label(config.model, own), config, _costs(config, dataset), (folder,))


def _joined(first: Contender, second: Contender) -> Contender:
    """One network from two runs of it that differ in the seed only. Raises ConfigError where they do not."""
    same = first.given and second.given and first.config == second.config.model_copy(update={"seed": first.config.seed})
    seeds = {load_record(folder / "run.json").config.get("seed") for folder in first.given}
    if not same:
        raise ConfigError(
            f"{one_line(second.label)} is named twice; give each network once (runs of it may differ in their seed only)"
        )
    if second.config.seed in seeds:
        raise ConfigError(f"{one_line(second.label)}: two of its runs have seed {second.config.seed}; give each seed once")
    return replace(first, given=(*first.given, *second.given))


def _label(model: str, options: Mapping[str, Any]) -> str:
    """ "dilated_separable:rate=1"; options as they are given on the command line."""
    pairs = ",".join(f"{key}={json.dumps(value, default=str)}".replace('"', "").replace(" ", "") for key, value in options.items())
    return f"{model}:{pairs}" if pairs else model


def _slug(label: str) -> str:
    """The label as a folder's name; where that loses something, a digest tells two of them apart."""
    plain = re.sub(r"[^A-Za-z0-9_.=,-]+", "-", label.replace(":", "-", 1))[:80]
    return plain if plain == label.replace(":", "-", 1) else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def _all_options(config: TrainConfig) -> dict[str, Any]:
    """The options the network is built with, those that were not given with their defaults."""
    ours = ("num_classes", "in_channels")
    return {**{k: v for k, v in models.get(config.model).options.items() if k not in ours}, **config.model_options}


def _costs(config: TrainConfig, dataset: Dataset) -> Counts:
    """Count the network without its weights. Raises ConfigError for options or images that it does not take."""
    shape = (dataset.preprocessing.channels, *dataset.preprocessing.size)
    try:
        with torch.device("meta"):
            return count(build_model(config, dataset), shape)
    except (RuntimeError, ValueError) as error:
        size = "x".join(map(str, shape))
        raise ConfigError(f"{config.model} does not take images of {size} ({one_line(error, 100)}); try another --size") from error


def _is_done(trial: Trial, dataset: Dataset) -> bool:
    """Whether the trial is finished. Raises ConfigError where its folder holds another run: it is never overwritten."""
    finished, begun = trial.folder / "run.json", trial.folder / "config.yaml"
    if finished.exists():
        record = load_record(finished)
        if record.data_fingerprint != dataset.fingerprint:
            raise ConfigError(f"{one_line(trial.folder)} holds a run on other data; choose another --output, or delete it")
        saved = record.config
    elif begun.exists():
        saved = load_yaml(begun)
    else:
        return False
    if not same_settings(saved, trial.config):
        other = _differences(saved, trial.config.model_dump(mode="json"))
        raise ConfigError(
            f"{one_line(trial.folder)} holds a run with other settings ({other}); choose another --output, or delete it"
        )
    return finished.exists()


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """ "iterations 100 instead of 60, lr 0.1 instead of 0.05"; at most three."""
    other = [key for key in wanted if saved.get(key) != wanted[key] and key not in FREE_TO_CHANGE]
    shown = [f"{key} {one_line(saved.get(key), 40)} instead of {one_line(wanted[key], 40)}" for key in other[:3]]
    return ", ".join(shown + (["..."] if len(other) > 3 else [])) or "of another version"


def _marked(contenders: Sequence[Contender], common: TrainConfig, images: int) -> tuple[tuple[Contender, ...], tuple[str, ...]]:
    """The contenders, those marked that were handed in and depart from the common settings, and a note on each of these."""
    apart = ("seed", "model", "model_options", *FREE_TO_CHANGE)
    wanted = {key: value for key, value in _with_length(common, images).items() if key not in apart}
    marked, notes = [], []
    for contender in contenders:
        saved = _with_length(contender.config, images)
        if contender.given and any(saved[key] != wanted[key] for key in wanted):
            contender = replace(contender, label=f"{contender.label} (other settings)")
            notes.append(one_line(f"{contender.label}: {_differences(saved, wanted)}", 400))
        marked.append(contender)
    return tuple(marked), tuple(notes)


def _with_length(config: TrainConfig, images: int) -> dict[str, Any]:
    """The settings as JSON values, the length always in iterations."""
    settings = config.model_dump(mode="json")
    del settings["epochs"]
    return {"iterations": config.total_iterations(images // min(config.batch_size, images))} | {
        key: value for key, value in settings.items() if key != "iterations"
    }
