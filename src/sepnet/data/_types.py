"""What the data layer hands out: splits of uint8 images, the preprocessing that belongs to them, and the data set of both.

Images are uint8 tensors (N, C, H, W); the readers store them with channels innermost (``torch.channels_last``), because a row of
pixels is then one contiguous run of bytes, which is what decoding produces and what the batched augmentation copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from sepnet.data._convert import convert
from sepnet.errors import CheckpointError, ConfigError, one_line

__all__ = ["MAX_SIDE", "MEMORY_BYTES", "Dataset", "Preprocessing", "RawData", "ReadOptions", "ResizeMode", "Split"]

ResizeMode = Literal["crop", "squash"]
MAX_SIDE = 4096
MEMORY_BYTES = 2**30
"""A set of images up to this size is held in memory, and on the device; a larger one stays memory-mapped, or, if it is only
the size asked for that makes it so large, is brought to that size batch by batch."""


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        images: uint8 (N, C, H, W); of a set too large for memory, the whole memory-mapped source (M, C, H, W).
        labels: int64 (N,), class numbers.
        index: which rows of ``images`` are this part, int64 (N,), when they are not copied out of the source; else None.
        wanted: channels, height and width that images are brought to when they are taken, where a set of them would be too large
            for memory at that size; None for those they are stored with.

    Raises:
        ValueError: types or lengths that do not fit together.
    """

    images: Tensor
    labels: Tensor
    index: Tensor | None = None
    wanted: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        count = len(self.images) if self.index is None else len(self.index)
        if self.labels.dtype != torch.int64 or self.labels.shape != (count,):
            raise ValueError(f"labels must be int64 ({count},), got {self.labels.dtype} {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as it is taken."""
        channels, height, width = self.images.shape[1:]
        return self.wanted or (channels, height, width)

    def gather(self, indices: Tensor) -> Tensor:
        """Copy images out: int64 (B,) -> uint8 (B, C, H, W), channels innermost in memory."""
        taken = self._stored(indices)
        return taken if self.wanted is None else convert(taken, self.wanted)

    def chunks(self, size: int = 1024) -> Iterator[Tensor]:
        """All images in order, uint8 (up to ``size``, C, H, W) at a time."""
        if self.wanted is None:
            yield from self.stored_chunks(size)
            return
        for part in self.stored_chunks(
            max(1, min(size, MEMORY_BYTES // 8 // math.prod(self.wanted)))
        ):  # large ones, a few at a time
            yield convert(part, self.wanted)

    def stored_chunks(self, size: int = 1024) -> Iterator[Tensor]:
        """All images in order as they are stored, before they are brought to the size that is wanted."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield self.images[start:stop] if self.index is None else self._stored(torch.arange(start, stop))

    def converted(self, shape: tuple[int, int, int]) -> Split:
        """The same images at another size or number of channels: at once, or, above ``MEMORY_BYTES``, as they are taken."""
        if len(self) * math.prod(shape) > MEMORY_BYTES:
            return replace(self, wanted=shape)
        rows = torch.cat([convert(chunk, shape).permute(0, 2, 3, 1) for chunk in self.chunks()])
        return Split(rows.permute(0, 3, 1, 2), self.labels)

    def on(self, device: torch.device) -> Split:
        """With the images in the memory of ``device``, if they fit there and are no file's."""
        if self.index is not None or self.images.nbytes > MEMORY_BYTES:
            return self
        return replace(self, images=self.images.to(device))

    def select(self, indices: Tensor) -> Split:
        """The images ``indices`` (int64 (M,)) in that order: a copy, or above ``MEMORY_BYTES`` an index into the same storage."""
        labels = self.labels.index_select(0, indices)
        if self.index is None and self.images.nbytes <= MEMORY_BYTES:
            return replace(self, images=self._stored(indices), labels=labels)
        return replace(self, labels=labels, index=indices if self.index is None else self.index[indices])

    def _stored(self, indices: Tensor) -> Tensor:
        rows = self.images.permute(0, 2, 3, 1)
        return rows.index_select(0, indices if self.index is None else self.index[indices]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network; it travels inside every checkpoint and release.

    Attributes:
        size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        mode: "crop" resizes the shorter side and cuts out the centre; "squash" resizes both sides and so changes the aspect ratio.
        mean, std: per channel, on the scale where a pixel is 0..1.

    Raises:
        ConfigError: a value that cannot be used.
    """

    size: tuple[int, int]
    channels: int
    mode: ResizeMode
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(type(s) is int and 1 <= s <= MAX_SIDE for s in self.size):
            raise ConfigError(f"image size must be two whole numbers from 1 to {MAX_SIDE}, got {one_line(self.size)}")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels must be 1 or 3, got {one_line(self.channels)}")
        if self.mode not in ("crop", "squash"):
            raise ConfigError(f"resize mode must be 'crop' or 'squash', got {one_line(self.mode)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(math.isfinite(v) for v in values):
                raise ConfigError(f"{name} must be {self.channels} finite number(s), one a channel, got {one_line(values)}")
        if not all(v > 0 for v in self.std):
            raise ConfigError(f"std must be above 0, got {one_line(self.std)}")

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON values; ``from_dict`` reads them back."""
        return {
            "size": list(self.size),
            "channels": self.channels,
            "mode": self.mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: object) -> Preprocessing:
        """Read what ``to_dict`` wrote.

        Raises:
            CheckpointError: a missing or unknown key, or a value that cannot be used.
        """
        expected = {"size", "channels", "mode", "mean", "std"}
        if not isinstance(values, Mapping) or set(values) != expected:
            found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise CheckpointError(f"preprocessing must have the keys {sorted(expected)}, found {one_line(found)}")
        try:
            return cls(
                size=cast("tuple[int, int]", tuple(values["size"])),
                channels=values["channels"],
                mode=values["mode"],
                mean=tuple(float(v) for v in values["mean"]),
                std=tuple(float(v) for v in values["std"]),
            )
        except (TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"preprocessing that cannot be used: {one_line(error)}") from None

    def normalise(self, images: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std.

        Shape: uint8 (or float, still on the scale 0..255) (B, C, H, W) -> float32 (B, C, H, W), memory layout kept.

        Raises:
            ValueError: another number of channels.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"expected images (B, {self.channels}, H, W), got {tuple(images.shape)}")
        rows = images.permute(0, 2, 3, 1)
        if not rows.is_contiguous():
            scale, offset = _scale_and_offset(self.mean, self.std, 1, images.device)
            out = images.to(torch.float32, copy=True)
            return out.mul_(scale.view(1, -1, 1, 1)).add_(offset.view(1, -1, 1, 1))
        # Channels innermost: broadcasting over 3 elements at a time is ten times slower than over a whole row of pixels.
        width = images.shape[3]
        flat = rows.reshape(-1, width * self.channels).to(torch.float32, copy=True)
        scale, offset = _scale_and_offset(self.mean, self.std, width, images.device)
        flat.mul_(scale).add_(offset)
        return flat.view(rows.shape).permute(0, 3, 1, 2)


@cache
def _scale_and_offset(mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a row of ``width`` pixels is multiplied by, and what is added; kept, as a GPU is waited for when numbers go there."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.repeat(width), offset.repeat(width)


@dataclass(frozen=True)
class ReadOptions:
    """What is asked of a reader that decodes image files.

    Attributes:
        size: side of the square images in pixels; None for the data set's own, or for a folder one near its median.
        channels: 1 or 3; None for the data set's own.
        mode: how images are brought to that size.
        on_bad: "skip" unreadable files with a note, or "error".
        cache_dir: where decoded images are kept; None for $XDG_CACHE_HOME/sepnet.
        progress: called with (images done, images in all).
    """

    size: int | None = None
    channels: int | None = None
    mode: ResizeMode = "crop"
    on_bad: Literal["skip", "error"] = "skip"
    cache_dir: Path | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class RawData:
    """What a reader returns, before splits are carved and sizes changed.

    Attributes:
        title: the name to print.
        classes: class names, in the order of the labels.
        train: training images.
        val, test: the source's own splits; None where it has none.
        mean, std: published constants; None to compute them from the training images.
        mode: how images were, or are to be, brought to size.
        digests: one content hash per training image, if the reader has them already; equal content never spans a split made here.
        fingerprint: hex sha256 of the contents, if the reader has it already.
        test_fraction: share of the images to carve off for testing when ``test`` is None; 0 for none.
        notes: lines the user should read.
        characters: the classes are characters, which are others, or none, when mirrored.
        part: of an image folder read whole, which of its split folders was read; None where it has none.
    """

    title: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None = None
    test: Split | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mode: ResizeMode = "crop"
    digests: tuple[bytes, ...] | None = None
    fingerprint: str | None = None
    test_fraction: float = 0.0
    notes: tuple[str, ...] = ()
    characters: bool = False
    part: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a data set's files lie, as it was named: an image folder, or the folder of the registered data sets."""

    folder: Path | None = None
    data_dir: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training.

    Attributes:
        name: registry name, or the image folder's name.
        title: how to print it, e.g. "CIFAR-10 (JPEG copy)".
        classes: class names, in the order of the labels.
        train: training images.
        val: validation images, carved from the training images unless the source has its own; None when not wanted.
        test: test images; None when the source has none.
        preprocessing: what the splits went through and the constants to normalise them with.
        fingerprint: hex sha256 over contents, labels, class names and size; independent of the seed and of where the files lie.
        notes: lines the user should read (skipped files, splits that could not be stratified, ...).
        characters, part: see ``RawData``.
        place: where its files were found.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    preprocessing: Preprocessing
    fingerprint: str
    notes: tuple[str, ...] = ()
    characters: bool = False
    part: str | None = None
    place: Place = Place()
