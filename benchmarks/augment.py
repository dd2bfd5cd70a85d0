"""What batched augmentation costs: milliseconds per batch of each operation, and its share of a training step.

    python benchmarks/augment.py
    python benchmarks/augment.py --batch-size 512 --threads 4 --json augment.json

A batch is fetched by index from 10,000 random uint8 images, augmented and normalised to float32 with channels innermost, as
TrainLoader does it. The training step beside it (forward, backward, SGD, no loading, in the engine's own precision and layout) is
measured in the same run, in turns with the batches, so that a busy machine slows both. Warm-up stays outside the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from sepnet.data import AugmentConfig, Preprocessing, Split, TrainLoader
from sepnet.engine import FitConfig, build_optimizer, make_fabric
from sepnet.engine.devices import keep_large_buffers
from sepnet.models import create_model
from sepnet.report import environment, markdown_table

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
    "recipe: flip + shift 2": AugmentConfig(hflip="random", shift=2),
    "recipe: alternate + shift 2 + cutout 8": AugmentConfig(hflip="alternate", shift=2, cutout=8),
    "recipe: flip + rotate 10 + scale 0.1 + colour 0.2": AugmentConfig(
        hflip="random", rotate=10, scale=0.1, brightness=0.2, contrast=0.2, saturation=0.2
    ),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-b", "--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--model", default="multiscale_concat", help="network of the training step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100, help="batches measured of each case")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args(argv)


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


def timed(work: dict[str, Callable[[int], object]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each call, the cases taking turns; the first three rounds are warm-up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for iteration in range(-3, args.repeats):
        for name, call in work.items():
            start = time.perf_counter()
            call(max(iteration, 0))
            if args.device != "cpu":
                torch.cuda.synchronize()
            if iteration >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    rows = torch.randint(0, 256, (10_000, args.size, args.size, 3), dtype=torch.uint8)
    split = Split(rows.permute(0, 3, 1, 2), torch.randint(10, (10_000,)))
    preprocessing = Preprocessing((args.size, args.size), 3, "crop", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    step_name = f"training step of {args.model}"
    work: dict[str, Callable[[int], object]] = {
        name: TrainLoader(split, preprocessing, batch_size=args.batch_size, seed=0, augment=config, device=args.device).batch
        for name, config in CASES.items()
    }
    times = timed(work | {step_name: training_step(args)}, args)
    step_ms = statistics.median(times[step_name])
    figures = {
        name: {
            "median_ms": statistics.median(values),
            "mean_ms": statistics.fmean(values),
            "sd_ms": statistics.stdev(values) if len(values) > 1 else 0.0,
            "n": len(values),
            "share_of_step": statistics.median(values) / (statistics.median(values) + step_ms) if name != step_name else None,
        }
        for name, values in times.items()
    }
    where = environment(torch.device(args.device), "32-true")
    command = "python " + " ".join(sys.argv)
    shape = f"{args.batch_size} x 3 x {args.size} x {args.size}"
    print(f"Batch {shape}, {args.device}, {args.threads} thread(s), {where.processor}, torch {where.torch}")
    print(f"Command: {command}\n")
    shares = {name: "" if f["share_of_step"] is None else f"{f['share_of_step']:.1%}" for name, f in figures.items()}
    table = [[name, f"{f['median_ms']:.2f}", f"{f['mean_ms']:.2f} ± {f['sd_ms']:.2f}", shares[name]] for name, f in figures.items()]
    print(markdown_table(["operation", "median ms", f"mean ± sd ms (n = {args.repeats})", "share of step and loading"], table))
    if args.json is not None:
        content = {
            "command": command,
            "environment": where.model_dump(),
            "options": vars(args) | {"json": None},
            "figures": figures,
        }
        part = args.json.with_name(f"{args.json.name}.part")
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(args.json)


if __name__ == "__main__":
    main()
