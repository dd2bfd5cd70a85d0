"""The flags, each declared once with its help text, grouped as the help pages show them. None is "not given"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Amp",
    "AugmentUntil",
    "BatchSize",
    "Brightness",
    "ChannelsLast",
    "ClipGrad",
    "Config",
    "Contrast",
    "Cutout",
    "Data",
    "DataDir",
    "DataDirOfRun",
    "Device",
    "Ema",
    "Epochs",
    "EvalEvery",
    "Flip",
    "Iterations",
    "Json",
    "LearningRate",
    "Model",
    "ModelOptions",
    "Momentum",
    "Opt",
    "Output",
    "Patience",
    "Recipe",
    "Resume",
    "Rotate",
    "RunFolder",
    "Saturation",
    "Scale",
    "Sched",
    "Seed",
    "Shift",
    "Size",
    "Smoothing",
    "Tta",
    "ValFraction",
    "Warmup",
    "WeightDecay",
    "Workers",
]

DATA, NETWORK, LENGTH = "Data", "Network", "Length"
OPTIMISER, AUGMENTATION, RUN, MACHINE = "Optimiser", "Augmentation", "Run", "Machine"


# shared by several commands
Data = Annotated[
    str | None,
    typer.Argument(metavar="DATA", show_default=False, help="A data set (see sepnet data), hf:owner/name, or a folder of images."),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", show_default=False, help="The folder of a finished run, e.g. runs/digits.")
]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=RUN, help="Print one JSON value on stdout; all else goes to stderr.")]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", rich_help_panel=MACHINE, help="auto, cpu, cuda, cuda:N or mps.", show_default=True),
]
DataDir = Annotated[
    Path, typer.Option("--data-dir", metavar="DIR", rich_help_panel=DATA, help="Where named data sets lie.", show_default=True)
]
DataDirOfRun = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", rich_help_panel=DATA, help="Where named data sets lie; else where the run found them, or data."
    ),
]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", rich_help_panel=NETWORK, help="See sepnet models.")]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--model-kwargs",
        metavar="KEY=VALUE",
        rich_help_panel=NETWORK,
        help="An option of the network, e.g. units=[32,64]; repeatable.",
    ),
]

# data
Size = Annotated[
    int | None, typer.Option("--size", metavar="PIXELS", rich_help_panel=DATA, help="Side of the images; else the data's own.")
]
ValFraction = Annotated[
    float | None, typer.Option("--val-fraction", rich_help_panel=DATA, help="Part of the training data to validate on; 0: none.")
]

# length
Epochs = Annotated[int | None, typer.Option("--epochs", rich_help_panel=LENGTH, help="Passes over the training data.")]
Iterations = Annotated[int | None, typer.Option("--iterations", rich_help_panel=LENGTH, help="Optimiser steps, instead of epochs.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", "-b", rich_help_panel=LENGTH, help="Images a step, over all processes.")
]
EvalEvery = Annotated[
    int | None, typer.Option("--eval-every", rich_help_panel=LENGTH, help="Iterations between evaluations; else each epoch.")
]
Patience = Annotated[
    int | None, typer.Option("--patience", rich_help_panel=LENGTH, help="Stop after so many evaluations without a new best.")
]

# optimiser
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        rich_help_panel=OPTIMISER,
        help="Peak learning rate; with muon: of all but the hidden matrices, which have muon_lr in --config.",
    ),
]
Momentum = Annotated[float | None, typer.Option("--momentum", rich_help_panel=OPTIMISER, help="SGD's momentum, or Adam's beta1.")]
WeightDecay = Annotated[
    float | None, typer.Option("--weight-decay", rich_help_panel=OPTIMISER, help="Never on normalisation and biases.")
]
Opt = Annotated[str | None, typer.Option("--opt", metavar="NAME", rich_help_panel=OPTIMISER, help="sgd, adam, adamw or muon.")]
Sched = Annotated[
    str | None,
    typer.Option("--sched", metavar="NAME", rich_help_panel=OPTIMISER, help="constant, step, triangular or cosine."),
]
Warmup = Annotated[
    float | None, typer.Option("--warmup", rich_help_panel=OPTIMISER, help="Part of the run in which the rate rises, e.g. 0.2.")
]
Smoothing = Annotated[float | None, typer.Option("--smoothing", rich_help_panel=OPTIMISER, help="Label smoothing, e.g. 0.1.")]
Ema = Annotated[
    float | None, typer.Option("--ema", rich_help_panel=OPTIMISER, help="Decay of a moving average of the weights, e.g. 0.99.")
]
ClipGrad = Annotated[float | None, typer.Option("--clip-grad", rich_help_panel=OPTIMISER, help="Largest norm of the gradient.")]

# augmentation; 0 is off
Flip = Annotated[
    str | None,
    typer.Option("--hflip", metavar="HOW", rich_help_panel=AUGMENTATION, help="Mirror images: off, random or alternate."),
]
Shift = Annotated[int | None, typer.Option("--shift", metavar="PIXELS", rich_help_panel=AUGMENTATION, help="Move by up to so far.")]
Cutout = Annotated[
    int | None, typer.Option("--cutout", metavar="PIXELS", rich_help_panel=AUGMENTATION, help="Blank a square of this side.")
]
Rotate = Annotated[
    float | None,
    typer.Option("--rotate", metavar="DEGREES", rich_help_panel=AUGMENTATION, help="Turn by up to so far, either way."),
]
Scale = Annotated[float | None, typer.Option("--scale", rich_help_panel=AUGMENTATION, help="Magnify; 0.1: by 0.9 to 1.1.")]
Shear = Annotated[
    float | None,
    typer.Option("--shear", metavar="DEGREES", rich_help_panel=AUGMENTATION, help="Slide rows by up to so far, either way."),
]
Elastic = Annotated[
    float | None,
    typer.Option("--elastic", metavar="PIXELS", rich_help_panel=AUGMENTATION, help="Distort smoothly, by about so far."),
]
Mixup = Annotated[
    float | None,
    typer.Option("--mixup", metavar="ALPHA", rich_help_panel=AUGMENTATION, help="Fade images into each other, e.g. 0.2."),
]
CutMix = Annotated[
    float | None,
    typer.Option("--cutmix", metavar="ALPHA", rich_help_panel=AUGMENTATION, help="Paste part of another image in, e.g. 1."),
]
MixProb = Annotated[
    float | None,
    typer.Option("--mix-prob", metavar="SHARE", rich_help_panel=AUGMENTATION, help="Of the images that are mixed; else all."),
]
AugmentUntil = Annotated[
    float | None,
    typer.Option(
        "--augment-until", metavar="SHARE", rich_help_panel=AUGMENTATION, help="Of the run; then only flips and shifts are left."
    ),
]
Brightness = Annotated[float | None, typer.Option("--brightness", rich_help_panel=AUGMENTATION, help="Strength, 0 to 1.")]
Contrast = Annotated[float | None, typer.Option("--contrast", rich_help_panel=AUGMENTATION, help="Strength, 0 to 1.")]
Saturation = Annotated[float | None, typer.Option("--saturation", rich_help_panel=AUGMENTATION, help="Strength, 0 to 1.")]

# run
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME", rich_help_panel=RUN, help="Where the settings begin; else one that looks at the data."
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", rich_help_panel=RUN, help="YAML of settings; flags go before it.")
]
Resume = Annotated[Path | None, typer.Option("--resume", metavar="RUN", rich_help_panel=RUN, help="Continue an interrupted run.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", rich_help_panel=RUN, help="Folder of the run; else runs/DATA, or runs/DATA-2, ..."),
]
Seed = Annotated[int | None, typer.Option("--seed", rich_help_panel=RUN, help="Of weights, batches, augmentation and split.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        metavar="N",
        min=1,
        rich_help_panel=MACHINE,
        help="Threads of the processor to train with; else all cores.",
    ),
]
Amp = Annotated[
    bool | None, typer.Option("--amp/--no-amp", rich_help_panel=MACHINE, help="bf16 arithmetic; else where the processor has it.")
]
ChannelsLast = Annotated[
    bool | None,
    typer.Option("--channels-last/--no-channels-last", rich_help_panel=MACHINE, help="Memory layout; channels last by default."),
]
Tta = Annotated[
    bool | None, typer.Option("--tta/--no-tta", rich_help_panel=RUN, help="Also test with mirrored images, reported apart.")
]
