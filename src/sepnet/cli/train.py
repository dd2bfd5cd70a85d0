"""``sepnet train``: a network from a data set or a folder of images, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sepnet.cli import _flags as flag
from sepnet.cli._errors import Stopped, process_number
from sepnet.cli._machine import use_machine
from sepnet.cli._output import Output, counted, duration, human_count, percent, shape_text, shell_word
from sepnet.cli._parse import key_values
from sepnet.cli._progress import counting, training_reporter
from sepnet.cli._registry import command
from sepnet.errors import ConfigError, one_line

if TYPE_CHECKING:
    from sepnet.api import Request, Run
    from sepnet.data import Dataset
    from sepnet.engine.devices import Fabric
    from sepnet.recipes import TrainConfig

__all__ = ["train"]

WEAKEST = 3


@command(
    "train",
    order=1,
    example="sepnet train path/to/images --epochs 30 --output runs/first",
    note="Settings without a flag go into the --config file, among them keep (best or last: which weights the run ends with), "
    "muon_lr, muon_weight_decay and checkpoint_seconds.",
)
def train(
    ctx: typer.Context,
    data: flag.Data = None,
    size: flag.Size = None,
    val_fraction: flag.ValFraction = None,
    data_dir: flag.DataDirOfRun = None,
    model: flag.Model = None,
    model_options: flag.ModelOptions = None,
    epochs: flag.Epochs = None,
    iterations: flag.Iterations = None,
    batch_size: flag.BatchSize = None,
    eval_every: flag.EvalEvery = None,
    patience: flag.Patience = None,
    opt: flag.Opt = None,
    lr: flag.LearningRate = None,
    momentum: flag.Momentum = None,
    weight_decay: flag.WeightDecay = None,
    sched: flag.Sched = None,
    warmup: flag.Warmup = None,
    smoothing: flag.Smoothing = None,
    ema: flag.Ema = None,
    clip_grad: flag.ClipGrad = None,
    hflip: flag.Flip = None,
    shift: flag.Shift = None,
    cutout: flag.Cutout = None,
    rotate: flag.Rotate = None,
    shear: flag.Shear = None,
    scale: flag.Scale = None,
    elastic: flag.Elastic = None,
    mixup: flag.Mixup = None,
    cutmix: flag.CutMix = None,
    mix_prob: flag.MixProb = None,
    augment_until: flag.AugmentUntil = None,
    brightness: flag.Brightness = None,
    contrast: flag.Contrast = None,
    saturation: flag.Saturation = None,
    recipe: flag.Recipe = None,
    config: flag.Config = None,
    output: flag.Output = None,
    resume: flag.Resume = None,
    seed: flag.Seed = None,
    tta: flag.Tta = None,
    device: flag.Device = "auto",
    workers: flag.Workers = None,
    amp: flag.Amp = None,
    channels_last: flag.ChannelsLast = None,
    json: flag.Json = False,
) -> None:
    """Train a network on a data set or a folder of images, test it, and keep it in a folder of its own."""
    from sepnet.api import Request

    if resume is not None and output is not None:
        raise ConfigError("--resume goes on in the run's own folder; leave --output away")
    request = Request(data, recipe, config, _settings(ctx.params), resume, data_dir)
    _run(request, output, device, workers, Output(json))


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the flags that were given, by their names in the configuration."""
    from sepnet.recipes import TrainConfig

    apart = {"data", "recipe"}  # a Request has fields of its own for them
    settings = {k: v for k, v in given.items() if k in TrainConfig.model_fields and k not in apart and v not in (None, [], ())}
    if "model_options" in settings:
        settings["model_options"] = key_values(settings["model_options"], "--model-kwargs")
    if "amp" in settings:
        settings["amp"] = "bf16" if settings["amp"] else "off"
    return settings


def _run(request: Request, output: Path | None, device: str, workers: int | None, out: Output) -> None:
    from sepnet.api import check_unfinished, resolve, run_folder, run_training, seconds_per_run
    from sepnet.engine import check_within_reach, make_fabric

    use_machine(device, workers)
    if output is not None:
        check_within_reach(output)
    with counting("reading images") as progress:
        config, dataset = resolve(request, progress)
    if request.resume is not None:
        check_unfinished(request.resume, dataset)
    folder = run_folder(config, output, request.resume)
    fabric = make_fabric(device, config.amp)
    facts = _before(config, dataset, fabric, folder, request.resume is not None)
    if fabric.world_size == 1 and request.resume is None:  # a resumed run has less to do, which its progress bar tells
        facts.append(("time", f"about {duration(seconds_per_run(config, dataset, device))} on this machine"))
    out.facts(facts)
    reporter = training_reporter("val" if dataset.val is not None else None, fabric.world_size)
    with _way_to_resume(folder):
        run = run_training(config, dataset, folder, device=device, resume=request.resume is not None, reporter=reporter)
    _show_result(run, out)


@contextmanager
def _way_to_resume(folder: Path) -> Iterator[None]:
    """Let Ctrl-C tell how the run is continued."""
    try:
        yield
    except KeyboardInterrupt as stop:
        at = f" at iteration {stop.iteration:,}" if hasattr(stop, "iteration") else ""
        if process_number() != 0:
            raise Stopped(f"interrupted{at}") from stop
        if not (folder / "last.pt").exists():
            raise Stopped("interrupted before anything was saved") from stop
        raise Stopped(f"interrupted{at}, saved; continue with: sepnet train --resume {shell_word(folder)}") from stop


def _before(config: TrainConfig, dataset: Dataset, fabric: Fabric, folder: Path, resumed: bool) -> list[tuple[str, str]]:
    """Data, network, plan and place of the run."""
    import torch

    from sepnet.api import build_model
    from sepnet.engine import prefers_bf16
    from sepnet.measure import count

    splits = [("training", dataset.train), ("validation", dataset.val), ("test", dataset.test)]
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits if split is not None)
    classes = counted(len(dataset.classes), "class", "classes")
    costs = count(build_model(config, dataset), dataset.train.shape)
    batch = min(config.batch_size, len(dataset.train))
    per_epoch = len(dataset.train) // batch
    total = config.total_iterations(per_epoch)
    epochs = "1 epoch" if total == per_epoch else f"{total / per_epoch:,.1f}".removesuffix(".0") + " epochs"
    bf16 = config.amp == "bf16" or (config.amp == "auto" and prefers_bf16(fabric.device))
    place = [torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else str(fabric.device)]
    place += ["bf16" if bf16 else "fp32", counted(torch.get_num_threads(), "thread")]
    place += [counted(fabric.world_size, "process", "processes")] if fabric.world_size > 1 else []
    return [
        ("data", f"{one_line(dataset.title)}: {classes}, {counts} images of {shape_text(dataset.train.shape)}"),
        *(("note", one_line(note, 400)) for note in dataset.notes),
        ("network", f"{config.model}: {costs.params_trainable:,} parameters, {human_count(costs.macs)} MACs an image"),
        ("plan", f"{counted(total, 'iteration')} of {counted(batch, 'image')} ({epochs}), recipe {config.recipe}"),
        ("on", ", ".join(place)),
        ("into", one_line(folder) + (_resumed(folder) if resumed else "")),
    ]


def _resumed(folder: Path) -> str:
    return " (resumed)" if (folder / "last.pt").exists() else " (from the beginning: nothing had been saved yet)"


def _show_result(run: Run, out: Output) -> None:
    files = sorted(path.name for path in run.folder.iterdir() if path.is_file()) if process_number() == 0 else []
    if out.as_json:
        out.json({"folder": str(run.folder), "files": files, **run.record.model_dump(mode="json")})
        return
    from sepnet.report import kept_weights

    folder = one_line(run.folder)
    facts = [
        (name, _scores(run.record.result[key]))
        for key, name in (("val", "validation"), ("test", "test"))
        if key in run.record.result
    ]
    last = run.record.result.get("test") or run.record.result.get("val")
    if last and (weakest := _weakest(last["per_class"])):
        facts.append(("weakest", weakest))
    if kept := kept_weights(run.record):
        facts.append(("kept", kept))
    facts.append(("time", f"{duration(run.record.seconds)} of training, {counted(run.record.iterations, 'iteration')}"))
    facts.append(("files", f"{folder}: {', '.join(files)}"))
    facts.append(("next", _next(run)))
    out.line()
    out.facts(facts)


def _next(run: Run) -> str:
    """Commands that go on from here; without a test split ``sepnet val`` must be told of another."""
    folder = shell_word(run.folder)
    score = {"test": f"sepnet val {folder}\n", "val": f"sepnet val {folder} --split val\n"}
    first = next((line for split, line in score.items() if split in run.record.result), "")
    return f"{first}sepnet predict {folder} IMAGE..."


def _scores(scores: Mapping[str, Any]) -> str:
    text = f"{percent(scores['accuracy'])} of {counted(scores['images'], 'image')}"
    mirrored = scores.get("accuracy_tta")
    return text if mirrored is None else f"{text}; with mirrored images (TTA) {percent(mirrored)}"


def _weakest(rows: list[dict[str, Any]]) -> str:
    """The classes with the least recall; empty when no image of any class was missed."""
    known = sorted((row for row in rows if row["recall"] is not None), key=lambda row: row["recall"])
    if all(row["recall"] == 100 for row in known):
        return ""
    return "recall of " + ", ".join(f"{row['class']}: {percent(row['recall'], 1)}" for row in known[:WEAKEST])
