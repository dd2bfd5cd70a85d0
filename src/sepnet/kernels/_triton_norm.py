# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators, no-check-untyped-defs
"""Triton kernels of batch normalisation, the addition of a shortcut and ReLU on channels-last maps; the functions that launch them.

A map is a matrix of pixels by channels. Forward: one pass for the statistics, one that normalises, adds and cuts. Backward: a
pass for two sums a channel, one for the gradient. Between the two of each stands a small kernel that combines what the programs of
the first found, in float64 and always in the same order; it updates the running averages too. Statistics are Welford's, about the
channel's first value, so that a mean far from zero costs no digits. The map between normalisation and ReLU is never written, and no
mask: the sign is computed again, or read from the output where a shortcut was added.

Importing this needs triton; ``sepnet.kernels._gpu`` does it where that is installed. Every tensor has less than 2**31 values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["norm_backward", "norm_forward"]

_VALUES = 16  # a thread's, in the passes over a map: two or four loads of 16 bytes under way
_WARPS = 4
_PROGRAMS = 132 * 8  # of a pass that sums: about what runs at once on an H100
_MOST_CHANNELS = 64  # of a program: a cache line of bf16
_FEW = 8  # channels of a program that combines

_SIZES = ["pixels", "pixels_each", "channel_blocks", "steps", "workers"]  # one compiled kernel for all of these

# --- kernels ---------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
def _statistics_kernel(x, partial, pixels, channels, channel_blocks, steps, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean of a program's pixels less the channel's first value, and the sum of squared distances from it: (programs, 2, C)."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    worker = pid // channel_blocks
    lane = tl.arange(0, BLOCK_P)
    first = worker * steps * BLOCK_P
    zero = tl.load(x + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for step in range(0, steps):
        pixel = first + step * BLOCK_P + lane
        inside = (pixel < pixels)[:, None] & in_c[None, :]
        value = tl.load(x + pixel[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32) - zero
        # a lane past the end stays past it: what it has met so far is not changed by differences of zero
        distance = tl.where(inside, value - mean, 0.0)
        mean += distance * (1.0 / (step + 1))
        squares += distance * tl.where(inside, value - mean, 0.0)
    met = tl.minimum(tl.maximum((pixels - first - lane + BLOCK_P - 1) // BLOCK_P, 0), steps).to(tl.float32)[:, None]
    whole = tl.sum(met * mean, axis=0) / tl.sum(met)
    apart = mean - whole[None, :]
    tl.store(partial + worker * 2 * channels + c, whole, mask=in_c)
    tl.store(partial + (worker * 2 + 1) * channels + c, tl.sum(squares + met * apart * apart, axis=0), mask=in_c)


@triton.jit(do_not_specialize=_SIZES)
def _combine_statistics_kernel(
    x, partial, weight, running_mean, running_var, constants,
    pixels, pixels_each, workers, channels, eps, momentum,
    HAS_RUNNING: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """constants (3, C): mean, 1 / standard deviation, and that times the weight; the running averages take the batch in."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    lane = tl.arange(0, BLOCK_W)
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float64)
    for start in range(0, workers, BLOCK_W):
        worker = start + lane
        count = tl.minimum(tl.maximum(pixels - worker * pixels_each, 0), pixels_each).to(tl.float64)[:, None]
        inside = (worker < workers)[:, None] & in_c[None, :]
        total += count * tl.load(partial + worker[:, None] * 2 * channels + c[None, :], mask=inside, other=0.0).to(tl.float64)
    mean = tl.sum(total, axis=0) / pixels
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float64)
    for start in range(0, workers, BLOCK_W):
        worker = start + lane
        count = tl.minimum(tl.maximum(pixels - worker * pixels_each, 0), pixels_each).to(tl.float64)[:, None]
        inside = (worker < workers)[:, None] & in_c[None, :]
        at = partial + worker[:, None] * 2 * channels + c[None, :]
        apart = tl.load(at, mask=inside, other=0.0).to(tl.float64) - mean[None, :]
        squares = tl.load(at + channels, mask=inside, other=0.0).to(tl.float64)
        total += tl.where(inside, squares + count * apart * apart, 0.0)
    squares = tl.sum(total, axis=0)
    inverse = 1.0 / tl.sqrt(squares / pixels + eps)
    gamma = tl.load(weight + c, mask=in_c, other=0.0).to(tl.float64)
    mean += tl.load(x + c, mask=in_c, other=0.0).to(tl.float64)
    tl.store(constants + c, mean.to(tl.float32), mask=in_c)
    tl.store(constants + channels + c, inverse.to(tl.float32), mask=in_c)
    tl.store(constants + 2 * channels + c, (inverse * gamma).to(tl.float32), mask=in_c)
    if HAS_RUNNING:
        before = tl.load(running_mean + c, mask=in_c, other=0.0).to(tl.float64)
        tl.store(running_mean + c, (before + momentum * (mean - before)).to(tl.float32), mask=in_c)
        before = tl.load(running_var + c, mask=in_c, other=0.0).to(tl.float64)
        unbiased = squares / (pixels - 1)
        tl.store(running_var + c, (before + momentum * (unbiased - before)).to(tl.float32), mask=in_c)


@triton.jit(do_not_specialize=_SIZES)
def _apply_kernel(
    x, shortcut, constants, bias, y, pixels, channels, channel_blocks,
    RELU: tl.constexpr, ADDS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y = relu((x - mean) * scale + bias + shortcut)."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    pixel = (pid // channel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixel < pixels)[:, None] & in_c[None, :]
    at = pixel[:, None] * channels + c[None, :]
    mean = tl.load(constants + c, mask=in_c, other=0.0)[None, :]
    scale = tl.load(constants + 2 * channels + c, mask=in_c, other=0.0)[None, :]
    beta = tl.load(bias + c, mask=in_c, other=0.0)[None, :]
    value = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean) * scale + beta
    if ADDS:
        value += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value <= 0.0, 0.0, value)  # and NaN stays
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _sums_kernel(
    x, y, grad, constants, bias, passed, partial, pixels, channels, channel_blocks, steps,
    RELU: tl.constexpr, ADDS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of g, the gradient that passes the ReLU, and of g * (x - mean): partial (programs, 2, C). With ADDS g is written too."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    worker = pid // channel_blocks
    mean = tl.load(constants + c, mask=in_c, other=0.0)[None, :]
    scale = tl.load(constants + 2 * channels + c, mask=in_c, other=0.0)[None, :]
    beta = tl.load(bias + c, mask=in_c, other=0.0)[None, :]
    plain = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    weighted = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for step in range(0, steps):
        pixel = (worker * steps + step) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (pixel < pixels)[:, None] & in_c[None, :]
        at = pixel[:, None] * channels + c[None, :]
        apart = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            if ADDS:
                g = tl.where(tl.load(y + at, mask=inside, other=0.0).to(tl.float32) <= 0.0, 0.0, g)
            else:
                g = tl.where(apart * scale + beta <= 0.0, 0.0, g)
        if ADDS:
            tl.store(passed + at, g.to(passed.dtype.element_ty), mask=inside)
        plain += g
        weighted += g * apart
    tl.store(partial + worker * 2 * channels + c, tl.sum(plain, axis=0), mask=in_c)
    tl.store(partial + (worker * 2 + 1) * channels + c, tl.sum(weighted, axis=0), mask=in_c)


@triton.jit(do_not_specialize=_SIZES)
def _combine_sums_kernel(
    partial, constants, slopes, grad_weight, grad_bias, pixels, workers, channels, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Gradients of weight and bias; slopes (2, C): the mean of g, and the slope of g over x - mean."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    plain = tl.zeros((BLOCK_W, BLOCK_C), tl.float64)
    weighted = tl.zeros((BLOCK_W, BLOCK_C), tl.float64)
    for start in range(0, workers, BLOCK_W):
        worker = start + tl.arange(0, BLOCK_W)
        inside = (worker < workers)[:, None] & in_c[None, :]
        at = partial + worker[:, None] * 2 * channels + c[None, :]
        plain += tl.load(at, mask=inside, other=0.0).to(tl.float64)
        weighted += tl.load(at + channels, mask=inside, other=0.0).to(tl.float64)
    inverse = tl.load(constants + channels + c, mask=in_c, other=0.0).to(tl.float64)
    total, moment = tl.sum(plain, axis=0), tl.sum(weighted, axis=0) * inverse
    tl.store(grad_bias + c, total.to(tl.float32), mask=in_c)
    tl.store(grad_weight + c, moment.to(tl.float32), mask=in_c)
    tl.store(slopes + c, (total / pixels).to(tl.float32), mask=in_c)
    tl.store(slopes + channels + c, (moment * inverse / pixels).to(tl.float32), mask=in_c)


@triton.jit(do_not_specialize=_SIZES)
def _gradient_kernel(
    x, grad, constants, bias, slopes, grad_x, pixels, channels, channel_blocks,
    RELU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_x = scale * (g - mean(g) - slope * (x - mean)); with RELU ``grad`` has still to be cut, otherwise it is g."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    pixel = (pid // channel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixel < pixels)[:, None] & in_c[None, :]
    at = pixel[:, None] * channels + c[None, :]
    mean = tl.load(constants + c, mask=in_c, other=0.0)[None, :]
    scale = tl.load(constants + 2 * channels + c, mask=in_c, other=0.0)[None, :]
    level = tl.load(slopes + c, mask=in_c, other=0.0)[None, :]
    slope = tl.load(slopes + channels + c, mask=in_c, other=0.0)[None, :]
    apart = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        beta = tl.load(bias + c, mask=in_c, other=0.0)[None, :]
        g = tl.where(apart * scale + beta <= 0.0, 0.0, g)
    tl.store(grad_x + at, (scale * (g - level - slope * apart)).to(grad_x.dtype.element_ty), mask=inside)


# --- launchers -------------------------------------------------------------------------------------------------------------


class _Cut(NamedTuple):
    """Pixels and channels of a program, blocks of either; for a pass that sums: its programs a block of channels, steps of each."""

    block_p: int
    block_c: int
    pixel_blocks: int
    channel_blocks: int
    workers: int
    steps: int


def _cut(pixels: int, channels: int) -> _Cut:
    block_c = min(_MOST_CHANNELS, int(triton.next_power_of_2(channels)))
    if channels % _MOST_CHANNELS != 0 and channels % 32 == 0:
        block_c = 32
    block_p = max(1, _VALUES * 32 * _WARPS // block_c)
    pixel_blocks, channel_blocks = -(-pixels // block_p), -(-channels // block_c)
    steps = -(-pixel_blocks // max(1, _PROGRAMS // channel_blocks))
    return _Cut(block_p, block_c, pixel_blocks, channel_blocks, -(-pixel_blocks // steps), steps)


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    eps: float,
    relu: bool,
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalised by its own statistics, plus shortcut, cut; and the constants (3, C) that ``norm_backward`` takes.

    x and shortcut: (B, C, H, W) of one type, channels-last, at least two pixels. Weight, bias, running averages: float32 (C,).
    """
    channels = x.shape[1]
    pixels = x.numel() // channels
    cut = _cut(pixels, channels)
    y, constants, partial = torch.empty_like(x), _floats(x, 3, channels), _floats(x, cut.workers, 2, channels)
    blocks = {"BLOCK_P": cut.block_p, "BLOCK_C": cut.block_c, "num_warps": _WARPS}
    mean, var = running or (None, None)
    with torch.cuda.device_of(x):
        _statistics_kernel[(cut.workers * cut.channel_blocks,)](
            x, partial, pixels, channels, cut.channel_blocks, cut.steps, **blocks
        )
        _combine_statistics_kernel[(-(-channels // _FEW),)](
            x, partial, weight, mean, var, constants, pixels, cut.steps * cut.block_p, cut.workers, channels, eps, momentum,
            HAS_RUNNING=running is not None, BLOCK_W=128, BLOCK_C=_FEW, num_warps=_WARPS,
        )  # fmt: skip
        _apply_kernel[(cut.pixel_blocks * cut.channel_blocks,)](
            x, shortcut, constants, bias, y, pixels, channels, cut.channel_blocks, RELU=relu, ADDS=shortcut is not None, **blocks
        )
    return y, constants


def norm_backward(
    x: Tensor, y: Tensor | None, constants: Tensor, bias: Tensor, grad: Tensor, relu: bool, shortcut: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias and shortcut. ``y``, the forward pass's result: for ReLU after a shortcut."""
    channels = x.shape[1]
    pixels = x.numel() // channels
    cut = _cut(pixels, channels)
    passed = torch.empty_like(x) if shortcut else None
    grad_x, partial, found = torch.empty_like(x), _floats(x, cut.workers, 2, channels), _floats(x, 4, channels)
    slopes, grad_weight, grad_bias = found[:2], found[2], found[3]
    blocks = {"BLOCK_P": cut.block_p, "BLOCK_C": cut.block_c, "num_warps": _WARPS}
    with torch.cuda.device_of(x):
        _sums_kernel[(cut.workers * cut.channel_blocks,)](
            x, y, grad, constants, bias, passed, partial, pixels, channels, cut.channel_blocks, cut.steps,
            RELU=relu, ADDS=shortcut, **blocks,
        )  # fmt: skip
        _combine_sums_kernel[(-(-channels // _FEW),)](
            partial, constants, slopes, grad_weight, grad_bias, pixels, cut.workers, channels, BLOCK_W=128, BLOCK_C=_FEW,
            num_warps=_WARPS,
        )  # fmt: skip
        _gradient_kernel[(cut.pixel_blocks * cut.channel_blocks,)](
            x, grad if passed is None else passed, constants, bias, slopes, grad_x, pixels, channels, cut.channel_blocks,
            RELU=relu and passed is None, **blocks,
        )  # fmt: skip
    return grad_x, grad_weight, grad_bias, passed
