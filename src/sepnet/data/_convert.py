"""Images brought to another size or number of channels: small ones at once, or each time that they are taken."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LUMA", "convert"]

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in a grey pixel: ITU-R BT.601, as Pillow's "L"


def convert(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 (B, C, H, W) -> uint8 (B, *shape), channels innermost; bilinear with antialiasing, as Pillow's. On any device."""
    channels, height, width = shape
    x = images
    if channels == 1 and x.shape[1] == 3:
        x = (x * _luma(x.device)).sum(1, keepdim=True).round_().to(torch.uint8)
    if x.shape[2:] != (height, width):
        x = _resize(x, height, width)
    return x.expand(-1, channels, -1, -1).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    """uint8 -> uint8. On a CPU PyTorch has a kernel for bytes, 30 times faster than for numbers; a GPU has none."""
    if x.device.type == "cpu":
        return functional.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    smaller = height < x.shape[2] or width < x.shape[3]  # where an image is enlarged antialiasing changes nothing
    y = functional.interpolate(x.to(torch.float32), size=(height, width), mode="bilinear", antialias=smaller, align_corners=False)
    return y.round_().clamp_(0, 255).to(torch.uint8)


@cache
def _luma(device: torch.device) -> Tensor:
    return torch.tensor(LUMA, device=device).view(1, 3, 1, 1)
