"""What a depthwise convolution looks like, apart from its tensors."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Geometry", "Pair"]

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Strides, and for each branch (filter bank) its kernel size, padding and dilation; (height, width) pairs.

    ``interleaved``: the output channel of channel c and branch j is c * branches + j (a channel multiplier in PyTorch's order, all
    branches alike), otherwise j * channels + c (the branches' outputs concatenated).
    """

    stride: Pair
    kernels: tuple[Pair, ...]
    paddings: tuple[Pair, ...]
    dilations: tuple[Pair, ...]
    interleaved: bool

    def output_size(self, height: int, width: int) -> Pair:
        """Size of the output.

        Raises:
            ValueError: the branches' outputs differ in size, or are empty; the message shows the sizes.
        """
        sizes = [
            tuple(
                (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, d, s in zip((height, width), *branch, self.stride, strict=True)
            )
            for branch in zip(self.kernels, self.paddings, self.dilations, strict=True)
        ]
        first = sizes[0]  # compared one by one: a size may be a symbol, which has no hash
        if any(size != first for size in sizes[1:]) or min(first) < 1:
            raise ValueError(f"a map of {height}x{width} gives outputs of {sizes} with {self}")
        return first[0], first[1]
