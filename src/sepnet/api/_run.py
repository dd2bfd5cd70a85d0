"""One training run from a resolved configuration and a loaded data set to a finished run folder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sepnet.api._lock import writing_alone
from sepnet.api._place import note_place
from sepnet.api._release import save_release
from sepnet.data import AugmentConfig, Dataset, EvalLoader, Split, TrainLoader
from sepnet.engine import EvalResult, FitResult, Reporter, atomic_write, evaluate, fit, make_fabric
from sepnet.engine.devices import Fabric
from sepnet.errors import CheckpointError, ConfigError, DataError, one_line
from sepnet.measure import Counts, count
from sepnet.models import create_model, models
from sepnet.recipes import TrainConfig, save_yaml
from sepnet.report import RunRecord, environment, load_record, run_confusion, run_curves, run_summary, save_record
from sepnet.report.record import command_line, now, source_commit

__all__ = ["Run", "build_model", "check_unfinished", "model_options", "run_training"]

# settings that may differ between the first part of a run and its resumption: they do not touch the result
FREE_TO_CHANGE = {"checkpoint_seconds", "data", "recipe", "tta"}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its record, and the network with its final weights."""

    folder: Path
    record: RunRecord
    model: nn.Module


def model_options(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """The options the network is built with: the configuration's, and the side of the images where the network asks for it."""
    options = dict(config.model_options)
    if "input_size" in models.get(config.model).options:
        options.setdefault("input_size", dataset.preprocessing.size[0])
    return options


def build_model(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The network of ``config`` for the classes, channels and size of ``dataset``. Raises ConfigError, UnknownNameError."""
    return create_model(
        config.model,
        num_classes=len(dataset.classes),
        in_channels=dataset.preprocessing.channels,
        **model_options(config, dataset),
    )


def run_training(
    config: TrainConfig,
    dataset: Dataset,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    evaluate_on: Literal["val", "test"] = "val",
    reporter: Reporter | None = None,
) -> Run:
    """Train, evaluate, and fill ``folder``: config.yaml, metrics.csv, last.pt, model.safetensors, config.json, run.json.

    Args:
        evaluate_on: split scored along the way. "val" leaves the test split for one evaluation at the end; "test" is for
            reproducing a paper that draws test curves, and admits no choice by that score (patience, keep="best").
        resume: continue from ``folder``/last.pt; from the beginning where the run was killed before there was one.

    Raises:
        ConfigError, DataError: settings that the data rule out; nothing has been written then.
        CheckpointError, OutputError, NonFiniteLossError, Interrupted: see ``sepnet.engine.fit``.
    """
    source_commit()  # of the code that is running, whatever the checkout holds when the record is written
    watched = _watched(config, dataset, evaluate_on)
    fabric = make_fabric(device, config.amp)
    with writing_alone(folder) if fabric.is_global_zero else nullcontext():
        return _train_and_report(config, dataset, folder, fabric, watched, resume, evaluate_on, reporter)


def _train_and_report(
    config: TrainConfig,
    dataset: Dataset,
    folder: Path,
    fabric: Fabric,
    watched: Split | None,
    resume: bool,
    evaluate_on: Literal["val", "test"],
    reporter: Reporter | None,
) -> Run:
    fabric.seed_everything(config.seed, verbose=False)
    model = build_model(config, dataset)
    costs = count(model, _input_shape(dataset))
    train = train_loader(config, dataset, fabric)
    resume = resume and _has_checkpoint(folder, dataset, fabric)  # else it starts from the beginning, and may do so otherwise
    if fabric.is_global_zero and not resume:
        for stale in ("run.json", "last.pt"):  # of an earlier run: they would pass this one off as finished, or as begun
            (folder / stale).unlink(missing_ok=True)
        save_yaml(config, folder / "config.yaml")  # also shows at once whether the folder can be written
        note_place(folder, dataset.place)
    result = fit(
        model,
        train,
        config,
        fabric=fabric,
        num_classes=len(dataset.classes),
        evaluation=eval_loader(watched, dataset, fabric, config) if watched is not None else None,
        run_dir=folder,
        identity=_identity(config, dataset),
        earlier=_settings(TrainConfig(data="")),
        resume=resume,
        reporter=reporter,
    )
    scores: dict[str, dict[str, Any]] = {}
    if result.last is not None:
        scores[evaluate_on] = score_dict(result.last, dataset.classes)
    if dataset.test is not None and evaluate_on != "test":
        tested = _test(result.model, dataset.test, dataset, fabric, config, reporter)
        scores["test"] = score_dict(tested, dataset.classes)
    record = _record(config, dataset, result, costs, scores, evaluate_on if watched is not None else None, fabric)
    if fabric.is_global_zero:
        _write_results(folder, config, dataset, result.model, record)
    return Run(folder, record, result.model)


def _test(
    model: nn.Module, split: Split, dataset: Dataset, fabric: Fabric, config: TrainConfig, reporter: Reporter | None
) -> EvalResult:
    reporter = reporter if fabric.is_global_zero else None
    progress = reporter.scoring if reporter else None
    try:
        loader = eval_loader(split, dataset, fabric, config)
        return evaluate(model, loader, len(dataset.classes), fabric, tta=config.tta, progress=progress)
    finally:
        if reporter:
            reporter.end()


def _watched(config: TrainConfig, dataset: Dataset, evaluate_on: Literal["val", "test"]) -> Split | None:
    """The split to score along the way; refuses what would need one that is not there, or choose by the test split."""
    chooses = config.patience is not None or config.keep == "best"
    if evaluate_on == "test":
        if chooses:
            raise ConfigError("the test split must not choose when to stop or which weights to keep; evaluate on validation")
        if dataset.test is None:
            raise DataError(f"{one_line(dataset.title)} has no test split to evaluate on")
        return dataset.test
    if dataset.val is None and chooses:
        raise ConfigError(
            f"{one_line(dataset.title)} has no validation split, which patience and keep=best need; raise val_fraction"
        )
    return dataset.val


def _has_checkpoint(folder: Path, dataset: Dataset, fabric: Fabric) -> bool:
    """Whether there is one to resume from; a run that was killed before its first one resumes at its beginning."""
    if fabric.is_global_zero:
        check_unfinished(folder, dataset)
    found: bool = fabric.broadcast((folder / "last.pt").exists())
    return found


def check_unfinished(folder: Path, dataset: Dataset) -> None:
    """Raises CheckpointError: the run in ``folder`` is finished, and cannot be resumed."""
    if not (folder / "run.json").exists():
        return
    done = load_record(folder / "run.json")
    if done.data_fingerprint != dataset.fingerprint:
        raise CheckpointError(
            f"{one_line(folder)} was trained on another data set, {done.data_title} ({done.data_fingerprint[:12]}), "
            f"than {one_line(dataset.title)} ({dataset.fingerprint[:12]}), and is finished; choose another --output"
        )
    raise CheckpointError(
        f"{one_line(folder)} is finished: there is nothing to resume; to train longer or otherwise start a run with another "
        f"--output, to score this one: sepnet val {one_line(folder)}"
    )


def _input_shape(dataset: Dataset) -> tuple[int, int, int]:
    return (dataset.preprocessing.channels, *dataset.preprocessing.size)


def _record(
    config: TrainConfig,
    dataset: Dataset,
    result: FitResult,
    costs: Counts,
    scores: dict[str, dict[str, Any]],
    evaluated_on: str | None,
    fabric: Fabric,
) -> RunRecord:
    return RunRecord(
        command=command_line(),
        finished=now(),
        data_title=dataset.title,
        data_fingerprint=dataset.fingerprint,
        classes=len(dataset.classes),
        train_images=len(dataset.train),
        input_shape=_input_shape(dataset),
        model=config.model,
        params_trainable=costs.params_trainable,
        params_total=costs.params_total,
        macs=costs.macs,
        config=config.model_dump(mode="json"),
        iterations=result.iterations,
        best_iteration=result.best_iteration,
        seconds=round(result.seconds, 2),
        evaluated_on=evaluated_on,
        history=result.history,
        result=scores,
        environment=environment(fabric.device, _precision(fabric), fabric.world_size),
        notes=[one_line(note) for note in dataset.notes],
    )


def _write_results(folder: Path, config: TrainConfig, dataset: Dataset, model: nn.Module, record: RunRecord) -> None:
    save_release(
        folder,
        model,
        model_name=config.model,
        model_options=model_options(config, dataset),
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        data={
            "data": config.data,
            "title": dataset.title,
            "fingerprint": dataset.fingerprint,
            "seed": config.seed,
            "val_fraction": config.val_fraction,
        },
        precision=record.environment.precision,
    )
    note_place(folder, dataset.place)  # once more: a resumed run may have been shown another place
    files = {"report.md": run_summary(record).encode()}
    if record.history:
        files["curves.png"] = run_curves(record)
    if (matrix := run_confusion(record)) is not None:
        files["confusion.png"] = matrix
    files["run.json"] = save_record(record)  # last: where it stands, the run is finished
    for name, content in files.items():
        _write(folder / name, content)


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))


def score_dict(result: EvalResult, classes: tuple[str, ...]) -> dict[str, Any]:
    """An evaluation as JSON values: top-1, top-3 and top-5 in percent, loss, images, a row a class, the confusion matrix."""
    rows = [{"class": one_line(c), **figures} for c, figures in zip(classes, result.per_class(), strict=True)]
    scores: dict[str, Any] = {
        "accuracy": result.accuracy,
        **{f"top{k}": share for k, share in result.topk.items()},
        "loss": result.loss,
        "images": result.images,
        "per_class": rows,
    }
    if result.accuracy_tta is not None:
        scores["accuracy_tta"] = result.accuracy_tta
    if len(classes) <= 200:
        scores["confusion"] = [list(row) for row in result.confusion]
    return scores


def train_loader(config: TrainConfig, dataset: Dataset, fabric: Fabric) -> TrainLoader:
    augment = AugmentConfig(**{name: getattr(config, name) for name in AugmentConfig.model_fields})
    total = config.total_iterations(max(1, len(dataset.train) // config.batch_size))
    return TrainLoader(
        dataset.train,
        dataset.preprocessing,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=augment,
        classes=len(dataset.classes),
        augment_until=round(config.augment_until * total) if config.augment_until < 1 else None,
        device=fabric.device,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        channels_last=config.channels_last,
    )


def eval_loader(split: Split, dataset: Dataset, fabric: Fabric, config: TrainConfig) -> EvalLoader:
    return EvalLoader(
        split,
        dataset.preprocessing,
        device=fabric.device,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        channels_last=config.channels_last,
    )


def _identity(config: TrainConfig, dataset: Dataset) -> dict[str, str]:
    """What a checkpoint must agree with to be resumed: the data, and every setting that touches the result."""
    settings = _settings(config)
    settings["size"] = str(dataset.preprocessing.size[0])  # first: other pixels are other data as well
    return {"size": settings.pop("size"), "data set": f"{one_line(dataset.title)} ({dataset.fingerprint[:12]})", **settings}


def _settings(config: TrainConfig) -> dict[str, str]:
    """Every setting that touches the result, as a checkpoint has it."""
    return {k: str(v) for k, v in config.model_dump(mode="json").items() if k not in FREE_TO_CHANGE}


def _precision(fabric: Fabric) -> str:
    return "bf16" if "bf16" in str(fabric._precision.precision) else "fp32"
