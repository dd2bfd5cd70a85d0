# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators, no-check-untyped-defs
# mypy: disable-error-code="assignment, var-annotated"
"""Triton kernels of the depthwise convolution (one filter a channel) for channels-last maps, and the functions that launch them.

A program makes a block of channels of a few output pixels: R rows by CC columns ("classes", unrolled at compile time) around each
of BLOCK_P bases, which run over images and columns together, so that maps of 2x2 fill a program as well as maps of 56x56. Each
input value that those pixels share is loaded once into registers and multiplied with every tap that meets it; which tap meets which
is known at compile time, for strides and their transposes too, so no multiplication by an inserted zero is ever issued. A block of
channels is one piece of memory, whole cache lines; neighbours in the grid share their borders through L1 and L2.

Importing this needs triton; ``sepnet.kernels._gpu`` does it where that is installed. Every tensor has less than 2**31 values.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sepnet.kernels._geometry import Geometry, Pair

__all__ = ["Tile", "depthwise_forward", "depthwise_input_gradient", "depthwise_weight_gradient", "tile_for"]


class Tile(NamedTuple):
    """How a program is cut: output rows and columns around a base, values a thread, warps."""

    rows: int
    cols: int
    values: int
    warps: int


# By the number of taps: of the map's kernels (output, gradient of x) and of the weight's gradient. A thread keeps in registers
# taps * values weights (or sums) and rows * cols * values outputs (or dL/dy), as float32: 96 to 134 registers for 3x3, which leaves
# room for 12 to 20 warps a multiprocessor. Loads an output: (rows + kh - 1) * (cols + kw - 1) / (rows * cols), 3 instead of 9.
_MAP_TILES = ((9, Tile(4, 2, 4, 4)), (25, Tile(4, 2, 2, 4)), (49, Tile(2, 2, 2, 4)))
_WEIGHT_TILES = ((9, Tile(2, 2, 4, 4)), (25, Tile(2, 2, 2, 4)), (49, Tile(1, 2, 2, 4)))
_SPREAD = Tile(2, 1, 4, 4)  # where neighbours share no input, more of them would only take registers
_PROGRAMS = 132 * 4  # of the weight's gradient: about what runs at once on an H100


def tile_for(geometry: Geometry, of_weight: bool = False) -> Tile:
    """How to cut a convolution, or the gradient of its weight."""
    taps = geometry.kernels[0][0] * geometry.kernels[0][1]
    tile = next(tile for most, tile in (_WEIGHT_TILES if of_weight else _MAP_TILES) if taps <= most)
    if taps <= 9 and max(geometry.dilations[0]) > 2:
        return _SPREAD
    return tile._replace(rows=min(tile.rows, 2)) if max(geometry.stride) > 1 else tile


# One compiled kernel for all of these (only whether 16 divides the channels is worth a kernel of its own: wide loads).
_SIZES = ["bases", "col_bases", "row_bases", "channel_blocks", "source_h", "source_w", "x_h", "x_w", "out_h", "out_w"]

# --- kernels ---------------------------------------------------------------------------------------------------------------


@triton.constexpr_function
def _class_of(offset, tap, stride, padding, dilation, transposed, classes):
    """Which of the output pixels around a base meets the input pixel at ``offset`` from its base with ``tap``; -1 if none."""
    if transposed:
        found = offset * stride - padding + tap * dilation
    else:
        found = offset + padding - tap * dilation
        found = found // stride if found % stride == 0 else -1
    return found if 0 <= found < classes else -1


@triton.jit
def _add(sums, index: tl.constexpr, value):
    """The tuple with ``value`` added to one of its members."""
    return sums[:index] + (sums[index] + value,) + sums[index + 1 :]


@triton.jit(do_not_specialize=_SIZES)
def _gather_kernel(
    source, weight, bias, out,
    channels, source_h, source_w, out_h, out_w, bases, col_bases, row_bases, channel_blocks,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, N_ROWS: tl.constexpr, COLS: tl.constexpr, N_COLS: tl.constexpr, ROW_STEP: tl.constexpr,
    COL_STEP: tl.constexpr, R: tl.constexpr, CC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The convolution of ``source`` (B, source_h, source_w, C), or with TRANSPOSED the transposed one; weight: (KH * KW, C)."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    row_base = (pid // channel_blocks) % row_bases
    base = (pid // channel_blocks // row_bases) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, col_base = base // col_bases, base % col_bases
    row0, col0 = row_base * ROW_STEP, col_base * COL_STEP
    pointer = source + (((image * source_h + row0) * source_w + col0) * channels)[:, None] + c[None, :]
    w = ()
    for t in tl.static_range(KH * KW):
        w = w + (tl.load(weight + t * channels + c, mask=in_c, other=0.0).to(tl.float32)[None, :],)
    acc = ()
    for _ in tl.static_range(R * CC):
        acc = acc + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    for a in tl.static_range(N_ROWS):
        in_row = (base < bases) & (row0 + ROWS[a] >= 0) & (row0 + ROWS[a] < source_h)
        for b in tl.static_range(N_COLS):
            inside = in_row & (col0 + COLS[b] >= 0) & (col0 + COLS[b] < source_w)
            at = pointer + (ROWS[a] * source_w + COLS[b]) * channels
            value = tl.load(at, mask=inside[:, None] & in_c[None, :], other=0.0).to(tl.float32)
            for i in tl.static_range(KH):
                if _class_of(ROWS[a], i, STRIDE_H, PAD_H, DIL_H, TRANSPOSED, R) >= 0:
                    for j in tl.static_range(KW):
                        if _class_of(COLS[b], j, STRIDE_W, PAD_W, DIL_W, TRANSPOSED, CC) >= 0:
                            acc = _add(
                                acc,
                                _class_of(ROWS[a], i, STRIDE_H, PAD_H, DIL_H, TRANSPOSED, R) * CC
                                + _class_of(COLS[b], j, STRIDE_W, PAD_W, DIL_W, TRANSPOSED, CC),
                                value * w[i * KW + j],
                            )
    if HAS_BIAS:
        shift = tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    for r in tl.static_range(R):
        row = row_base * R + r
        for k in tl.static_range(CC):
            col = col_base * CC + k
            inside = (base < bases) & (row < out_h) & (col < out_w)
            at = out + (((image * out_h + row) * out_w + col) * channels)[:, None] + c[None, :]
            y = acc[r * CC + k]
            if HAS_BIAS:
                y = y + shift
            tl.store(at, y.to(out.dtype.element_ty), mask=inside[:, None] & in_c[None, :])


@triton.jit(do_not_specialize=[*_SIZES, "tiles", "tiles_each"])
def _weight_kernel(
    x, grad, partial,
    channels, x_h, x_w, out_h, out_w, bases, col_bases, row_bases, channel_blocks, tiles, tiles_each,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    ROWS: tl.constexpr, N_ROWS: tl.constexpr, COLS: tl.constexpr, N_COLS: tl.constexpr, ROW_STEP: tl.constexpr,
    COL_STEP: tl.constexpr, R: tl.constexpr, CC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of dL/dy times the x that each tap meets, over a program's share of the pixels: partial (programs, KH * KW, C)."""
    pid = tl.program_id(0)
    c = (pid % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    worker = pid // channel_blocks
    sums = ()
    for _ in tl.static_range(KH * KW):
        sums = sums + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    for tile in range(worker * tiles_each, tl.minimum(worker * tiles_each + tiles_each, tiles)):
        row_base = tile % row_bases
        base = (tile // row_bases) * BLOCK_P + tl.arange(0, BLOCK_P)
        image, col_base = base // col_bases, base % col_bases
        row0, col0 = row_base * ROW_STEP, col_base * COL_STEP
        g = ()
        for r in tl.static_range(R):
            row = row_base * R + r
            for k in tl.static_range(CC):
                col = col_base * CC + k
                inside = (base < bases) & (row < out_h) & (col < out_w)
                at = grad + (((image * out_h + row) * out_w + col) * channels)[:, None] + c[None, :]
                g = g + (tl.load(at, mask=inside[:, None] & in_c[None, :], other=0.0).to(tl.float32),)
        pointer = x + (((image * x_h + row0) * x_w + col0) * channels)[:, None] + c[None, :]
        for a in tl.static_range(N_ROWS):
            in_row = (base < bases) & (row0 + ROWS[a] >= 0) & (row0 + ROWS[a] < x_h)
            for b in tl.static_range(N_COLS):
                inside = in_row & (col0 + COLS[b] >= 0) & (col0 + COLS[b] < x_w)
                at = pointer + (ROWS[a] * x_w + COLS[b]) * channels
                value = tl.load(at, mask=inside[:, None] & in_c[None, :], other=0.0).to(tl.float32)
                for i in tl.static_range(KH):
                    if _class_of(ROWS[a], i, STRIDE_H, PAD_H, DIL_H, False, R) >= 0:
                        for j in tl.static_range(KW):
                            if _class_of(COLS[b], j, STRIDE_W, PAD_W, DIL_W, False, CC) >= 0:
                                sums = _add(
                                    sums,
                                    i * KW + j,
                                    value
                                    * g[
                                        _class_of(ROWS[a], i, STRIDE_H, PAD_H, DIL_H, False, R) * CC
                                        + _class_of(COLS[b], j, STRIDE_W, PAD_W, DIL_W, False, CC)
                                    ],
                                )
    for t in tl.static_range(KH * KW):
        tl.store(partial + (worker * KH * KW + t) * channels + c, tl.sum(sums[t], axis=0), mask=in_c)


@triton.jit(do_not_specialize=["workers", "channels", "channel_blocks"])
def _add_up_kernel(
    partial, out, workers, channels, channel_blocks, TAPS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(workers, TAPS, C) -> (C, TAPS), always added in the same order."""
    pid = tl.program_id(0)
    tap = pid // channel_blocks
    c = (pid % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    sums = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for first in range(0, workers, BLOCK_W):
        worker = first + tl.arange(0, BLOCK_W)
        at = partial + ((worker * TAPS + tap) * channels)[:, None] + c[None, :]
        sums += tl.load(at, mask=(worker < workers)[:, None] & in_c[None, :], other=0.0)
    tl.store(out + c * TAPS + tap, tl.sum(sums, axis=0).to(out.dtype.element_ty), mask=in_c)


# --- launchers -------------------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What a launch is given beside the tensors: numbers, compile-time constants, warps, and tiles to a block of channels."""

    numbers: tuple[int, ...]  # bases, bases a row, bases a column of pixels, blocks of channels
    constants: dict[str, object]
    warps: int
    tiles: int


def _offsets(classes: int, taps: int, stride: int, padding: int, dilation: int, transposed: bool) -> tuple[int, ...]:
    """Where, relative to a base's own, the input pixels lie that its ``classes`` output pixels need; along one axis."""
    pairs = [(n, tap * dilation) for n in range(classes) for tap in range(taps)]
    if transposed:
        return tuple(sorted({(n + padding - t) // stride for n, t in pairs if (n + padding - t) % stride == 0}))
    return tuple(sorted({n * stride - padding + t for n, t in pairs}))


def _classes(most: int, size: int, stride: int, transposed: bool) -> int:
    """Output pixels around a base: no more than there are; a multiple of a transposed stride, so that bases are alike."""
    multiple = stride if transposed else 1
    return -(-min(most, size) // multiple) * multiple


def _block_of_channels(channels: int) -> int:
    """64, a cache line of bf16; less where there are fewer, or where 32 leaves nothing over."""
    if channels % 64 != 0 and channels % 32 == 0:
        return 32
    return min(64, int(triton.next_power_of_2(channels)))


@lru_cache(maxsize=1024)
def _plan(batch: int, channels: int, size: Pair, geometry: Geometry, transposed: bool, tile: Tile) -> _Plan:
    """``size``: of the map that the program's tiles lie on, (height, width)."""
    kernel, padding, dilation, stride = geometry.kernels[0], geometry.paddings[0], geometry.dilations[0], geometry.stride
    classes = [_classes(most, n, s, transposed) for most, n, s in zip((tile.rows, tile.cols), size, stride, strict=True)]
    rows, cols = (_offsets(*axis, transposed) for axis in zip(classes, kernel, stride, padding, dilation, strict=True))
    steps = [n // s if transposed else n * s for n, s in zip(classes, stride, strict=True)]
    block_c = _block_of_channels(channels)
    block_p = max(1, tile.values * tile.warps * 32 // block_c)
    row_bases, col_bases, channel_blocks = -(-size[0] // classes[0]), -(-size[1] // classes[1]), -(-channels // block_c)
    bases = batch * col_bases
    constants: dict[str, object] = {
        "KH": kernel[0], "KW": kernel[1], "STRIDE_H": stride[0], "STRIDE_W": stride[1], "PAD_H": padding[0], "PAD_W": padding[1],
        "DIL_H": dilation[0], "DIL_W": dilation[1], "ROWS": rows, "N_ROWS": len(rows), "COLS": cols, "N_COLS": len(cols),
        "ROW_STEP": steps[0], "COL_STEP": steps[1], "R": classes[0], "CC": classes[1], "BLOCK_P": block_p, "BLOCK_C": block_c,
    }  # fmt: skip
    return _Plan((bases, col_bases, row_bases, channel_blocks), constants, tile.warps, row_bases * -(-bases // block_p))


def _empty_map(like: Tensor, height: int, width: int) -> Tensor:
    shape = (like.shape[0], like.shape[1], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _gather(
    source: Tensor, weight: Tensor, bias: Tensor | None, size: Pair, geometry: Geometry, transposed: bool, tile: Tile | None
) -> Tensor:
    out = _empty_map(source, *size)
    plan = _plan(source.shape[0], source.shape[1], size, geometry, transposed, tile or tile_for(geometry))
    with torch.cuda.device_of(source):
        _gather_kernel[(plan.tiles * plan.numbers[3],)](
            source, weight, bias, out, source.shape[1], source.shape[2], source.shape[3], *size, *plan.numbers,
            TRANSPOSED=transposed, HAS_BIAS=bias is not None, **plan.constants, num_warps=plan.warps,
        )  # fmt: skip
    return out


def depthwise_forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, tile: Tile | None = None) -> Tensor:
    """x: (B, C, H, W), channels-last. weight: (kh * kw, C), contiguous; bias: (C,). One branch, channel multiplier 1."""
    return _gather(x, weight, bias, geometry.output_size(x.shape[2], x.shape[3]), geometry, False, tile)


def depthwise_input_gradient(grad: Tensor, weight: Tensor, size: Pair, geometry: Geometry, tile: Tile | None = None) -> Tensor:
    """(B, C, H', W'), channels-last, and weight (kh * kw, C) -> (B, C, *size)."""
    return _gather(grad, weight, None, size, geometry, True, tile)


def depthwise_weight_gradient(x: Tensor, grad: Tensor, like: Tensor, geometry: Geometry, tile: Tile | None = None) -> Tensor:
    """x (B, C, H, W) and grad (B, C, H', W'), channels-last -> the gradient of the weight ``like``, in its type and strides."""
    (batch, channels), size, (kh, kw) = x.shape[:2], (grad.shape[2], grad.shape[3]), geometry.kernels[0]
    plan = _plan(batch, channels, size, geometry, False, tile or tile_for(geometry, of_weight=True))
    blocks = plan.numbers[3]
    each = -(-plan.tiles // max(1, _PROGRAMS // blocks))
    workers = -(-plan.tiles // each)
    partial = torch.empty((workers, kh * kw, channels), dtype=torch.float32, device=x.device)
    found = torch.empty((channels, kh * kw), dtype=like.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _weight_kernel[(workers * blocks,)](
            x, grad, partial, channels, x.shape[2], x.shape[3], *size, *plan.numbers, plan.tiles, each, **plan.constants,
            num_warps=plan.warps,
        )  # fmt: skip
        narrow = -(-channels // 8)  # blocks of 8 channels, a sector of memory
        _add_up_kernel[(narrow * kh * kw,)](partial, found, workers, channels, narrow, TAPS=kh * kw, BLOCK_W=256, BLOCK_C=8)
    if like.stride()[2:] == (kw, 1) and like.stride(0) == kh * kw:
        return found.as_strided(like.shape, like.stride())
    return torch.empty_like(like).copy_(found.view(like.shape))
