"""Augmentation of whole batches of tensors, on the CPU or a GPU, without a loop over images.

``Augment.draw`` decides (on the CPU, from a generator, so that every device sees the same choice) and ``Augment.apply`` executes.
Flip and shift together are one copy of image rows: the batch is padded left and right, its mirror image lies behind it in memory,
and each row of the result is a run of bytes that begins where flip and shift say. Rotation, shear, scale and elastic distortion
are one ``affine_grid`` and ``grid_sample``; brightness, contrast and saturation one pass each.

Alternating flip (Keller Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"): an image is not flipped at random in each
epoch but in every second one, the first being a matter of its index and the seed; so two consecutive epochs show each image both
ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

from sepnet.data._convert import LUMA
from sepnet.errors import ConfigError

__all__ = ["Augment", "AugmentConfig", "AugmentParameters", "rectangles"]


def _from_yaml_bool(value: object) -> object:
    """YAML reads a bare ``off`` as false and ``on`` as true."""
    return {False: "off", True: "random", None: "off"}.get(value, value) if isinstance(value, bool | None) else value


def _off_as_zero(value: object) -> object:
    return 0 if value is None or value is False else value


ELASTIC_NODES = 5  # a side of the image: the field changes over a quarter of it, as with Simard et al.
MOST_ELASTIC = 100.0
MOST_ALPHA = 100.0  # every image half and half

Strength = Annotated[float, BeforeValidator(_off_as_zero), Field(ge=0, le=1)]
Alpha = Annotated[float, BeforeValidator(_off_as_zero), Field(ge=0, le=MOST_ALPHA)]


class AugmentConfig(BaseModel):
    """What is done to training images; everything is off unless set, and 0 or None is off.

    Attributes:
        hflip: "off", "random" (each image, each time, with probability 1/2) or "alternate" (every second epoch).
        shift: each image moves by up to this many pixels, independently in x and y.
        pad_mode: what appears at the border that a move of the pixels lays open: "reflect", or "zeros" (black).
        cutout: side in pixels of a square at a random centre that takes the mean colour (DeVries & Taylor 2017).
        rotate: each image turns by up to this many degrees either way.
        shear: each image's rows slide against each other by up to this many degrees either way, below 90.
        scale: each image is magnified by a factor from 1 - scale to 1 + scale, below 1.
        elastic: each pixel moves by a smooth random field of this standard deviation in pixels (Simard, Steinkraus, Platt 2003,
            "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis").
        brightness, contrast, saturation: factors from 1 - strength to 1 + strength, strength 0..1.
        mixup, cutmix: alpha of the Beta distribution that the share of a second image, and of its label, is drawn from; with
            both, each image has one of them. Applied to whole batches by the loader, see ``_mix``.
        mix_prob: share of the images that are mixed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hflip: Annotated[Literal["off", "random", "alternate"], BeforeValidator(_from_yaml_bool)] = "off"
    shift: Annotated[int, BeforeValidator(_off_as_zero), Field(ge=0)] = 0
    pad_mode: Literal["reflect", "zeros"] = "reflect"
    cutout: Annotated[int, BeforeValidator(_off_as_zero), Field(ge=0)] = 0
    rotate: Annotated[float, BeforeValidator(_off_as_zero), Field(ge=0, le=180)] = 0.0
    shear: Annotated[float, BeforeValidator(_off_as_zero), Field(ge=0, lt=90)] = 0.0
    scale: Annotated[float, BeforeValidator(_off_as_zero), Field(ge=0, lt=1)] = 0.0
    elastic: Annotated[float, BeforeValidator(_off_as_zero), Field(ge=0, le=MOST_ELASTIC)] = 0.0
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    mix_prob: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _nothing_to_share(self) -> Self:
        if self.mix_prob != 1 and not self.mixes:
            raise ValueError(f"mix_prob={self.mix_prob:g} does nothing without mixup or cutmix")
        return self

    @property
    def mixes(self) -> bool:
        """Whether images, and so their labels, are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def each_alone(self) -> AugmentConfig:
        """What is done to images one by one."""
        return self.model_copy(update={"mixup": 0.0, "cutmix": 0.0, "mix_prob": 1.0})

    @property
    def light(self) -> AugmentConfig:
        """Flips and shifts alone, which leave an image as natural as it was."""
        return AugmentConfig(hflip=self.hflip, shift=self.shift, pad_mode=self.pad_mode)


@dataclass(frozen=True)
class AugmentParameters:
    """The draws for one batch of B images; None is an operation that is off.

    Attributes:
        flip: bool (B,).
        shift: int64 (B, 2), by how far the cut-out window moves down and to the right, in pixels.
        angle: float32 (B,), radians.
        shear: float32 (B,), radians.
        magnify: float32 (B,).
        elastic: float32 (B, 2, ELASTIC_NODES, ELASTIC_NODES), by how far the nodes of the field move in x and y, in pixels.
        cutout: float32 (B, 2), centre of the square in y and x as a share of height and width.
        brightness, contrast, saturation: float32 (B,), factors.
    """

    flip: Tensor | None = None
    shift: Tensor | None = None
    angle: Tensor | None = None
    shear: Tensor | None = None
    magnify: Tensor | None = None
    elastic: Tensor | None = None
    cutout: Tensor | None = None
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None

    def __getitem__(self, index: slice | Tensor) -> AugmentParameters:
        """The draws of some of the images."""
        return AugmentParameters(*(None if v is None else v[index] for v in self._values()))

    @classmethod
    def cat(cls, parts: Sequence[AugmentParameters]) -> AugmentParameters:
        """The draws of several batches, of one configuration, as those of one."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(part._values() for part in parts), strict=True)
        return cls(*(None if column[0] is None else torch.cat([v for v in column if v is not None]) for column in columns))

    def to(self, device: torch.device | str) -> AugmentParameters:
        """The draws on ``device``."""
        return AugmentParameters(*(None if v is None else v.to(device, non_blocking=True) for v in self._values()))

    def _values(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


class Augment:
    """Draws and applies the augmentation of a configuration.

    Args:
        config: what to do.
        seed: decides which images the alternating flip begins with.
        fill: colour of the cut-out square, one value 0..255 per channel; black when not given.
    """

    def __init__(self, config: AugmentConfig, seed: int = 0, fill: Sequence[float] | None = None) -> None:
        self.config = config
        self.seed = seed
        self.fill = None if fill is None else tuple(fill)
        self._rows = torch.empty(0, dtype=torch.uint8)

    def check_size(self, height: int, width: int) -> None:
        """See that the configuration can be applied to images of this size.

        Raises:
            ConfigError: the shift, the side of the cut-out square or the elastic distortion is not smaller than the image.
        """
        for name in ("shift", "cutout", "elastic"):
            pixels = getattr(self.config, name)
            if pixels >= min(height, width):
                raise ConfigError(f"{name}={pixels:g} must be below the image size {height}x{width}")

    def draw(self, batch_size: int, generator: torch.Generator, epoch: int, indices: Tensor) -> AugmentParameters:
        """Decide for a batch.

        Args:
            batch_size: B.
            generator: a CPU generator, the source of all chance.
            epoch: for the alternating flip.
            indices: int64 (B,), which images of the data set these are, for the alternating flip.
        """
        config, count = self.config, (batch_size,)

        def factor(strength: float) -> Tensor | None:
            return 1 + strength * _uniform(count, generator) if strength else None

        flip = None
        if config.hflip == "random":
            flip = torch.rand(count, generator=generator) < 0.5
        elif config.hflip == "alternate":
            flip = _parity(indices, self.seed) ^ bool(epoch % 2)
        window = 2 * config.shift + 1
        shift = torch.randint(window, (batch_size, 2), generator=generator) - config.shift if config.shift else None
        nodes = (batch_size, 2, ELASTIC_NODES, ELASTIC_NODES)
        return AugmentParameters(
            flip=flip,
            shift=shift,
            angle=math.radians(config.rotate) * _uniform(count, generator) if config.rotate else None,
            shear=math.radians(config.shear) * _uniform(count, generator) if config.shear else None,
            magnify=factor(config.scale),
            elastic=config.elastic * torch.randn(nodes, generator=generator) if config.elastic else None,
            cutout=torch.rand((batch_size, 2), generator=generator) if config.cutout else None,
            brightness=factor(config.brightness),
            contrast=factor(config.contrast),
            saturation=factor(config.saturation),
        )

    def apply(self, images: Tensor, parameters: AugmentParameters) -> Tensor:
        """Execute what was drawn: flip and shift; rotation, shear, scale and distortion; colour; cutout.

        Shape: uint8 (B, C, H, W) -> (B, C, H, W), channels innermost in memory; uint8 while pixels are only moved, float32 on the
            scale 0..255 after an interpolation or a change of colour.
        """
        p = parameters
        x = images.permute(0, 2, 3, 1).contiguous()
        if p.flip is not None or p.shift is not None:
            x = _move_rows(x, p.flip, p.shift, self._rows_for(x), self.config.pad_mode)
        if any(v is not None for v in (p.angle, p.shear, p.magnify, p.elastic)):
            x = _warp(x, p, self.config.pad_mode)
        if p.brightness is not None or p.contrast is not None or p.saturation is not None:
            x = _colour(x, p.brightness, p.contrast, p.saturation)
        if p.cutout is not None:
            x = _cut(x, p.cutout, self.config.cutout, self.fill)
        return x.permute(0, 3, 1, 2)

    def _rows_for(self, x: Tensor) -> Tensor:
        """Working memory for ``_move_rows``, kept between batches: page faults of fresh memory cost more than the copying."""
        shape = _rows_shape(x, self.config.shift)
        if self._rows.shape != shape or self._rows.device != x.device:
            self._rows = torch.empty(shape, dtype=torch.uint8, device=x.device)
        return self._rows


def _uniform(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(size, generator=generator) - 1


def _parity(indices: Tensor, seed: int) -> Tensor:
    """A bit for each index, mixed with the seed by the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = indices.cpu().numpy().astype(np.uint64) + np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy(((x >> np.uint64(31)) ^ x) & np.uint64(1) == 1)


def _move_rows(x: Tensor, flip: Tensor | None, shift: Tensor | None, rows: Tensor, pad_mode: str) -> Tensor:
    """Mirror, then move the window, both by copying runs of bytes.

    Shape: x uint8 (B, H, W, C) contiguous -> the same; ``rows`` is working memory of ``_rows_shape``.
    """
    batch, height, width, channels = x.shape
    stored, reach = batch * height, (rows.shape[1] - width) // 2
    _pad_columns(x.view(stored, width, channels), rows[:stored], reach, pad_mode)
    rows[-1] = 0  # where zeros are padded above and below
    first = torch.arange(batch, device=x.device) * height
    y = torch.arange(height, device=x.device).expand(batch, height)
    column = torch.full((batch, 1), reach, device=x.device)
    if flip is not None:
        rows[stored : 2 * stored] = rows[:stored].flip(1)
        first = first + flip.to(torch.int64) * stored
    if shift is not None:
        y = y + shift[:, :1]
        column = column + shift[:, 1:]
    source = first[:, None] + _reflect(y, height)
    if pad_mode == "zeros":
        source = torch.where((y < 0) | (y >= height), len(rows) - 1, source)
    start = source * rows[0].numel() + column * channels
    run = width * channels
    # Every run of ``run`` bytes in the flat memory is a row of this view, so one index_select copies whole rows.
    windows = rows.view(-1).as_strided((rows.numel() - run + 1, run), (1, 1))
    return windows.index_select(0, start.view(-1)).view(x.shape)


def _rows_shape(x: Tensor, reach: int) -> tuple[int, int, int]:
    """All rows of the batch, all of its mirror image, and one of zeros, each padded left and right."""
    batch, height, width, channels = x.shape
    return 2 * batch * height + 1, width + 2 * reach, channels


def _pad_columns(x: Tensor, out: Tensor, reach: int, pad_mode: str) -> None:
    """(R, W, C) into (R, W + 2 * reach, C)."""
    width = x.shape[1]
    out[:, reach : reach + width] = x
    if pad_mode == "zeros":
        out[:, :reach] = 0
        out[:, reach + width :] = 0
    else:
        out[:, :reach] = x[:, 1 : reach + 1].flip(1)
        out[:, reach + width :] = x[:, width - 1 - reach : width - 1].flip(1)


def _reflect(y: Tensor, height: int) -> Tensor:
    """Row numbers outside 0..height-1 mirrored at the edge rows, which are not repeated."""
    last = height - 1
    return last - (last - y.abs()).abs()


def _warp(x: Tensor, p: AugmentParameters, pad_mode: str) -> Tensor:
    """Turn, shear, magnify about the centre and distort, with one bilinear interpolation. (B, H, W, C) -> float32."""
    planes = x.permute(0, 3, 1, 2).to(torch.float32)
    grid = _grid(_affine(x, p.angle, p.shear, p.magnify), *x.shape[1:3])
    if p.elastic is not None:
        grid = grid + _distortion(p.elastic, *x.shape[1:3])
    padding = "reflection" if pad_mode == "reflect" else "zeros"
    out = functional.grid_sample(planes, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return out.permute(0, 2, 3, 1).contiguous()


def _affine(x: Tensor, angle: Tensor | None, shear: Tensor | None, magnify: Tensor | None) -> Tensor:
    """From a place in the result to the place in the image x (B, H, W, C) that it shows: float32 (B, 2, 3) for ``affine_grid``."""
    batch, height, width, _ = x.shape
    zero = torch.zeros(batch, device=x.device)
    turn = zero if angle is None else angle
    slide = zero if shear is None else shear.tan()
    shrink = 1 / magnify if magnify is not None else zero + 1
    cos, sin = turn.cos() * shrink, turn.sin() * shrink
    # affine_grid works on coordinates -1..1 in both directions, so a turn of a non-square image needs the aspect ratio.
    rows = [cos, (cos * slide - sin) * (height / width), zero, sin * (width / height), sin * slide + cos, zero]
    return torch.stack(rows, 1).view(batch, 2, 3)


def _grid(places: Tensor, height: int, width: int) -> Tensor:
    """``affine_grid`` (B, H, W, 2), without a matrix product for each image, the half of all the time on a CPU."""
    x, y = (_centres(size, places.device) for size in (width, height))
    by_row = places[:, :, 1, None] * y + places[:, :, 2, None]
    by_column = places[:, :, 0, None] * x
    grid = torch.empty(len(places), height, width, 2, device=places.device)
    for axis in (0, 1):
        torch.add(by_row[:, axis, :, None], by_column[:, axis, None, :], out=grid[..., axis])
    return grid


def _centres(size: int, device: torch.device) -> Tensor:
    """Of the pixels of a row, in coordinates from -1 to 1."""
    return (2 * torch.arange(size, dtype=torch.float32, device=device) + 1) / size - 1


def _distortion(nodes: Tensor, height: int, width: int) -> Tensor:
    """The smooth field between the nodes (B, 2, n, n), in pixels, as an addition to ``affine_grid``'s result (B, H, W, 2)."""
    field = functional.interpolate(nodes, size=(height, width), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1) * _numbers((2 / width, 2 / height), nodes.device)


def _colour(x: Tensor, brightness: Tensor | None, contrast: Tensor | None, saturation: Tensor | None) -> Tensor:
    """Brightness b, then contrast c about the image's mean grey, then saturation s; clamped last. (B, H, W, C) -> float32, 0..255.

    All at once: bcs * x + bc(1 - s) * grey + b(1 - c) * mean grey, as the weights of grey add up to one.
    """
    out, ones = x.to(torch.float32, copy=True), torch.ones(len(x), device=x.device)
    b, c, s = (ones if factor is None else factor for factor in (brightness, contrast, saturation if x.shape[3] == 3 else None))
    grey = _grey(out) if contrast is not None or s is not ones else None
    out *= (b * c * s).view(-1, 1, 1, 1)
    if grey is not None:
        level = (b * (1 - c) * grey.mean((1, 2))).view(-1, 1, 1)
        out += (level if s is ones else torch.addcmul(level, grey, (b * c * (1 - s)).view(-1, 1, 1))).unsqueeze(-1)
    return out.clamp_(0, 255)


def _grey(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H, W) with memory of its own: the luma of ITU-R BT.601, as Pillow's "L"."""
    return x @ _numbers(tuple(LUMA), x.device) if x.shape[-1] == 3 else x[..., 0].clone()


@cache
def _numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A tensor of them; kept, as a GPU is waited for when numbers go there."""
    return torch.tensor(values, device=device)


def _cut(x: Tensor, centre: Tensor, side: int, fill: Sequence[float] | None) -> Tensor:
    """Fill a square around a centre that may lie anywhere in the image. (B, H, W, C) -> the same shape and type."""
    _, height, width, channels = x.shape
    first = [(centre[:, axis] * extent).to(torch.int64) - side // 2 for axis, extent in enumerate((height, width))]
    hole = rectangles(torch.stack([edge for at in first for edge in (at, at + side)], 1), height, width, channels, x.dtype)
    colour = _numbers(tuple(fill) if fill is not None else (0.0,) * channels, x.device)
    row = (colour.round() if x.dtype == torch.uint8 else colour).to(x.dtype).repeat(width)
    return (x.view(len(x), height, -1) * (1 - hole)).add_(hole.mul_(row)).view(x.shape)


def rectangles(box: Tensor, height: int, width: int, channels: int, dtype: torch.dtype) -> Tensor:
    """1 in each image's rectangle, else 0, in whole rows of pixels: products with them are 5 times as fast as torch.where on bytes.

    Shape: int64 (B, 4): first row, row behind the last, first column, column behind the last -> (B, height, width * channels).
    """
    rows, columns = (_inside(box[:, i : i + 2], extent).to(dtype) for i, extent in ((0, height), (2, width)))
    return rows[:, :, None] * columns.repeat_interleave(channels, 1)[:, None, :]


def _inside(interval: Tensor, extent: int) -> Tensor:
    """bool (B, extent): the positions from the first to the one before the second number of (B, 2)."""
    place = torch.arange(extent, device=interval.device)
    return (place >= interval[:, :1]) & (place < interval[:, 1:])
