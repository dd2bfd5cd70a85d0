"""Batches for training and evaluation, straight from a tensor of uint8 images: no worker processes, no per-image code.

A training batch is a pure function of the seed and the iteration, so a run resumes from the iteration number alone, and N processes
see together exactly the batches of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sepnet.data._augment import Augment, AugmentConfig, AugmentParameters
from sepnet.data._mix import MixParameters, draw_mix, mix, mix_labels, partners
from sepnet.data._types import Preprocessing, Split
from sepnet.errors import ConfigError

__all__ = ["EvalLoader", "TrainLoader"]

MOST_AHEAD, AHEAD_BYTES = 16, 128 << 20
MOST_SCORED, SCORED_PIXELS = 1000, 1000 * 64 * 64  # images a batch of evaluation, so that maps of large ones fit into memory
PERMUTATION, AUGMENTATION, MIXING = 1, 2, 3  # streams of random numbers that must not meet


class _Pixels:
    """Images by index, from the memory of the device where they fit."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split = split.on(device)
        self._device = device

    def take(self, indices: Tensor) -> Tensor:
        """uint8 (B, C, H, W) on the device, for int64 (B,) indices on the CPU."""
        return self._split.gather(indices.to(self._split.images.device, non_blocking=True)).to(self._device, non_blocking=True)


class TrainLoader:
    """Random batches of a training split, augmented and normalised.

    Every epoch is a permutation of the images, the last incomplete batch dropped; if there are fewer images than ``batch_size``,
    each batch is the whole set.

    Args:
        split: the training images.
        preprocessing: constants to normalise with.
        batch_size: images per optimiser step over all processes together.
        seed: of permutations and augmentation.
        augment: what to do to the images; None for nothing.
        classes: how many there are; needed by mixup and CutMix.
        augment_until: iterations after which only flips and shifts are left of that; None for never.
        device: where the batches are wanted.
        rank, world_size: which of how many processes this is. Draws are made for the whole batch, of which process r takes the
            images r, r + world_size, ...
        channels_last: memory layout of the batches.

    Raises:
        ConfigError: no images; a batch below 1 or that the processes cannot share evenly; an augmentation too large for the images.
        ValueError: images are to be mixed, and ``classes`` is not given.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        seed: int,
        augment: AugmentConfig | None = None,
        classes: int | None = None,
        augment_until: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> None:
        _check(split, batch_size, rank, world_size)
        self.batch_size = min(batch_size, len(split))
        if self.batch_size % world_size:
            raise ConfigError(
                f"a batch of {self.batch_size} images cannot be shared evenly by {world_size} processes; change --batch-size"
            )
        self.seed = seed
        self.device = torch.device(device)
        self.num_images = len(split)
        self.batches_per_epoch = len(split) // self.batch_size
        self._preprocessing = preprocessing
        self._rank, self._world_size = rank, world_size
        self._share = slice(rank, None, world_size)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._pixels = _Pixels(split, self.device)
        self._labels = split.labels
        self._until = math.inf if augment_until is None else augment_until
        self._fill = [255 * m for m in preprocessing.mean]
        self._mixing = augment if augment is not None and augment.mixes else None
        if self._mixing is not None and classes is None:
            raise ValueError("mixup and CutMix need the number of classes")
        self._classes = classes or 0
        self._height, self._width = split.shape[1:]
        self._augment = self._augmentation(augment)
        self._light = self._augmentation(augment.light if augment else None)
        if self._augment is not None:
            self._augment.check_size(*split.shape[1:])
        # an accelerator is kept from waiting for many small operations: it gets them for several batches at once
        ahead = AHEAD_BYTES // (4 * self.batch_size * math.prod(split.shape))
        self._ahead = 1 if self.device.type == "cpu" else max(1, min(MOST_AHEAD, ahead))
        self._ready: dict[int, tuple[Tensor, Tensor]] = {}
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def _augmentation(self, config: AugmentConfig | None) -> Augment | None:
        if config is None or config.each_alone == AugmentConfig():
            return None
        return Augment(config, self.seed, fill=self._fill)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """This process's images of batch ``iteration`` (from 0, over all epochs).

        Returns:
            Normalised float32 images (B, C, H, W) and int64 labels (B,), B = batch_size / world_size, on the device. Where images
            are mixed, and to the end of such a run, the labels are probabilities, float32 (B, classes).
        """
        if iteration not in self._ready:
            last = iteration + self._ahead
            wanted = range(iteration, last if iteration >= self._until else int(min(last, self._until)))
            self._ready = dict(zip(wanted, self._make(wanted), strict=True))
        return self._ready.pop(iteration)

    def _make(self, iterations: range) -> list[tuple[Tensor, Tensor]]:
        """Several batches by one pass of the augmentation, which is the same for them, over them all."""
        heavy = iterations.start < self._until
        augment = self._augment if heavy else self._light
        mixing = self._mixing if heavy else None
        crew = _crew(self.batch_size, self._rank, self._world_size, len(iterations)) if mixing is not None else None
        wanted = self._share if crew is None else crew.needed
        chosen: list[Tensor] = []
        draws: list[AugmentParameters] = []
        mixes: list[MixParameters] = []
        for iteration in iterations:
            epoch, position = divmod(iteration, self.batches_per_epoch)
            indices = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
            chosen.append(indices[wanted])
            if augment is not None:
                drawn = augment.draw(len(indices), _generator(self.seed, AUGMENTATION, iteration), epoch, indices)
                draws.append(drawn[wanted])
            if mixing is not None:
                generator = np.random.default_rng([self.seed, MIXING, iteration])
                mixes.append(draw_mix(mixing, len(indices), self._height, self._width, generator)[self._share])
        taken = torch.cat(chosen)
        images = self._pixels.take(taken)
        if augment is not None:
            images = augment.apply(images, AugmentParameters.cat(draws).to(self.device))
        y = self._labels[taken].to(self.device, non_blocking=True)
        if crew is not None:
            images, y = self._mixed(images, y, MixParameters.cat(mixes).to(self.device), crew)
        elif self._mixing is not None:  # the shape of the labels stays, for a step that was recorded with it
            y = functional.one_hot(y, self._classes).to(torch.float32)
        x = self._preprocessing.normalise(images).contiguous(memory_format=self._format)
        share = len(x) // len(iterations)
        return list(zip(torch.split(x, share), torch.split(y, share), strict=True))

    def _mixed(self, images: Tensor, y: Tensor, drawn: MixParameters, crew: _Crew) -> tuple[Tensor, Tensor]:
        own, other = (places.to(self.device, non_blocking=True) for places in (crew.own, crew.other))
        mine = images if crew.complete else images[own]
        labels = mix_labels(y[own], y[other], drawn.share(self._height, self._width), self._classes)
        return mix(mine, images[other], drawn), labels

    def _order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._permutation = torch.randperm(self.num_images, generator=_generator(self.seed, PERMUTATION, epoch))
            self._epoch = epoch
        return self._permutation


class _Crew(NamedTuple):
    """Which images of a batch a process takes, and where among those of several batches its own and their partners stand.

    Attributes:
        needed: int64 (N,), places in a batch of the images to take.
        own, other: int64 (B * batches,), places among the N * batches images taken.
        complete: whether its own are all that it takes.
    """

    needed: Tensor
    own: Tensor
    other: Tensor
    complete: bool


@lru_cache(maxsize=64)
def _crew(batch_size: int, rank: int, world_size: int, batches: int) -> _Crew:
    share = slice(rank, None, world_size)
    mine, other = (places[share].contiguous() for places in (torch.arange(batch_size), partners(batch_size)))
    needed = torch.unique(torch.cat((mine, other)))
    first = len(needed) * torch.arange(batches)[:, None]
    own, others = ((first + torch.searchsorted(needed, places)).flatten() for places in (mine, other))
    return _Crew(needed, own, others, complete=len(needed) == len(mine))


class EvalLoader:
    """The images of a split in order, normalised, in batches; each process gets a run of neighbouring images.

    Attributes:
        num_images: how many images this process gets.
        dataset_size: how many there are over all processes.

    Args:
        split: the images.
        preprocessing: constants to normalise with.
        batch_size: images per batch of one process; None for 1,000, or fewer of images larger than 64x64.
        device: where the batches are wanted.
        rank, world_size: which of how many processes this is; together they cover every image once.
        channels_last: memory layout of the batches.

    Raises:
        ConfigError: no images, or a batch below 1.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> None:
        if batch_size is None:
            batch_size = max(1, min(MOST_SCORED, SCORED_PIXELS // math.prod(split.shape[1:])))
        _check(split, batch_size, rank, world_size)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.dataset_size = len(split)
        self._start = len(split) * rank // world_size
        self._stop = len(split) * (rank + 1) // world_size
        self.num_images = self._stop - self._start
        self._preprocessing = preprocessing
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._pixels = _Pixels(split, self.device)
        self._labels = split.labels

    def __len__(self) -> int:
        """Number of batches of this process."""
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 images (B, C, H, W) and int64 labels (B,) on the device; the last batch may be smaller."""
        for start in range(self._start, self._stop, self.batch_size):
            stop = min(start + self.batch_size, self._stop)
            x = self._preprocessing.normalise(self._pixels.take(torch.arange(start, stop))).contiguous(memory_format=self._format)
            yield x, self._labels[start:stop].to(self.device, non_blocking=True)


def _check(split: Split, batch_size: int, rank: int, world_size: int) -> None:
    if len(split) == 0:
        raise ConfigError("the split holds no images")
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, got {batch_size}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must be from 0 to {world_size - 1}, got {rank}")


def _generator(seed: int, stream: int, number: int) -> torch.Generator:
    """A generator of its own for each (seed, stream, number): neighbouring numbers give unrelated sequences."""
    state = int(np.random.SeedSequence([seed, stream, number]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state & (2**63 - 1))
