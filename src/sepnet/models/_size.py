"""Image sizes: what a network is built for, and the stem that suits it."""

from __future__ import annotations

from typing import Literal, get_args

from sepnet.nn.conv import check_positive

__all__ = ["Stem", "check_sizes", "choose_stem"]

Stem = Literal["small", "medium", "imagenet"]
"""First layers for images of about 32x32, 64x64 and 224x224."""

MAX_SIZE = 65_536


def check_sizes(in_channels: int, num_classes: int, input_size: int, *, least: int, what: str = "the network") -> None:
    """Refuse what no network can be built for.

    Args:
        least: smallest height and width that leave a map to the last layer.
        what: what needs that much, for the message.

    Raises:
        ValueError: a count or size that is no integer of at least 1, or images smaller than ``least`` or larger than 65,536
            pixels a side; the message shows the value.
    """
    check_positive(in_channels=in_channels, num_classes=num_classes, input_size=input_size)
    if not least <= input_size <= MAX_SIZE:
        size = f"small: {what} takes at least {least}" if input_size < least else f"large: at most {MAX_SIZE}"
        raise ValueError(f"input_size {input_size} is too {size}")


def choose_stem(stem: Stem | None, input_size: int) -> Stem:
    """``stem``, or the default for images of ``input_size``: the strongest reduction that leaves a last map of 4x4 or more.

    Networks made for 224x224 reduce by 32 in all. "imagenet" (from 128 pixels) is the published one; "medium" (from 64)
    halves the map once less, "small" (below 64) twice less. How, the family's file says.

    Raises:
        ValueError: an unknown stem, or an input_size that is no integer; the message shows the value.
    """
    check_positive(input_size=input_size)
    if stem is None:
        return "small" if input_size < 64 else "medium" if input_size < 128 else "imagenet"
    if stem not in get_args(Stem):
        raise ValueError(f"stem must be {', '.join(map(repr, get_args(Stem)))} or None (by input_size), got {stem!r}")
    return stem
