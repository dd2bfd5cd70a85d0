"""What batched augmentation costs: milliseconds per batch of each operation, and its share of a training step.

    python benchmarks/augment.py
    python benchmarks/augment.py --batch-size 512 --threads 4 --output docs/results/performance

A batch is fetched by index from 10,000 random uint8 images, augmented and normalised to float32 with channels innermost, as
TrainLoader does it. The training step beside it (forward, backward, SGD, no loading, in the engine's own precision and layout) is
measured in the same run, in turns with the batches, so that a busy machine slows both. Warm-up stays outside the clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from _bench import Report, common_options, figures_of, in_turns, method, set_up, settings, threads_suffix, write
from sepnet.data import AugmentConfig, Preprocessing, Split, TrainLoader
from sepnet.engine import FitConfig, build_optimizer, make_fabric
from sepnet.engine.devices import keep_large_buffers
from sepnet.models import create_model
from sepnet.report import markdown_table

CASES = {
    "none (fetch and normalise)": AugmentConfig(),
    "hflip random": AugmentConfig(hflip="random"),
    "hflip alternate": AugmentConfig(hflip="alternate"),
    "shift 2, reflect": AugmentConfig(shift=2),
    "shift 2, zeros": AugmentConfig(shift=2, pad_mode="zeros"),
    "cutout 8": AugmentConfig(cutout=8),
    "rotate 10": AugmentConfig(rotate=10),
    "scale 0.1": AugmentConfig(scale=0.1),
    "brightness 0.2": AugmentConfig(brightness=0.2),
    "contrast 0.2": AugmentConfig(contrast=0.2),
    "saturation 0.2": AugmentConfig(saturation=0.2),
    "mixup 0.2": AugmentConfig(mixup=0.2),
    "cutmix 1": AugmentConfig(cutmix=1.0),
    "recipe: flip + shift 2": AugmentConfig(hflip="random", shift=2),
    "recipe: alternate + shift 2 + cutout 8": AugmentConfig(hflip="alternate", shift=2, cutout=8),
    "recipe: flip + rotate 10 + scale 0.1 + colour 0.2": AugmentConfig(
        hflip="random", rotate=10, scale=0.1, brightness=0.2, contrast=0.2, saturation=0.2
    ),
}
FLIP_AND_SHIFT, ALL = "recipe: flip + shift 2", "recipe: flip + rotate 10 + scale 0.1 + colour 0.2"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = common_options(__doc__, threads=1)
    parser.add_argument("-b", "--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--model", default="multiscale_concat", help="network of the training step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=100, help="batches measured of each case")
    args = parser.parse_args(argv)
    if args.quick:
        args.repeats = min(args.repeats, 2)
    return args


def training_step(args: argparse.Namespace) -> Callable[[int], object]:
    model = create_model(args.model, num_classes=10, in_channels=3, input_size=args.size)
    keep_large_buffers()
    fabric = make_fabric(args.device)  # bf16 where the processor has it: the step that the engine takes
    model, optimiser = fabric.setup(
        model.to(memory_format=torch.channels_last).train(), build_optimizer(model, FitConfig(nesterov=True, lr=0.01))
    )
    x = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (args.batch_size,), device=args.device)

    def step(_: int) -> None:
        optimiser.zero_grad()
        fabric.backward(cross_entropy(model(x).float(), y))
        optimiser.step()

    return step


def batches(args: argparse.Namespace) -> dict[str, Callable[[int], object]]:
    rows = torch.randint(0, 256, (10_000, args.size, args.size, 3), dtype=torch.uint8)
    split = Split(rows.permute(0, 3, 1, 2), torch.randint(10, (10_000,)))
    preprocessing = Preprocessing((args.size, args.size), 3, "crop", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    options = {"batch_size": args.batch_size, "seed": 0, "classes": 10, "device": args.device}
    return {name: TrainLoader(split, preprocessing, augment=config, **options).batch for name, config in CASES.items()}


def measure(args: argparse.Namespace, machine: dict[str, object]) -> Report:
    step_name = f"training step of {args.model}"
    work = batches(args) | {step_name: training_step(args)}
    times = in_turns(work, rounds=args.repeats, settle=None if args.device == "cpu" else torch.cuda.synchronize)
    figures = {name: dict(figures_of(values)) for name, values in times.items()}
    step_ms = figures[step_name]["median_ms"]
    shares = {name: f["median_ms"] / (f["median_ms"] + step_ms) for name, f in figures.items() if name != step_name}
    rows = [
        [name, f"{f['median_ms']:.2f}", f"{f['mean_ms']:.2f} ± {f['sd_ms']:.2f}", f"{shares[name]:.1%}" if name in shares else ""]
        for name, f in figures.items()
    ]
    return Report(
        name=f"augment-{threads_suffix(args)}",
        title=f"Augmentation of whole batches, {threads_suffix(args).replace('-', ' ')}",
        intro=f"Batches of {args.batch_size} x 3 x {args.size} x {args.size}. {method(__doc__)}",
        body=markdown_table(["operation", "median ms", f"mean ± sd ms (n = {args.repeats})", "share of step and loading"], rows),
        headline=[
            f"flips and shifts cost {shares[FLIP_AND_SHIFT]:.1%} of a training step, "
            f"flips, rotation, scale and colour {shares[ALL]:.1%}"
        ],
        figures=[{"operation": name, **f, "share_of_step": shares.get(name)} for name, f in figures.items()],
        options=settings(args),
        precision="bf16" if machine["bf16_instructions"] else "fp32",
        machine=machine,
        device=args.device,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    write(measure(args, set_up(args)), args.output)


if __name__ == "__main__":
    main()
