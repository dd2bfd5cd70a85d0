"""Stratified splits, decided by a seed, in which equal images always stay on one side."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sepnet.data._notes import some
from sepnet.data._types import Split

__all__ = ["carve", "image_digests"]


def image_digests(split: Split) -> tuple[bytes, ...]:
    """A 16-byte content hash of each image as it is stored."""
    return tuple(
        hashlib.blake2b(image.data, digest_size=16).digest()
        for chunk in split.stored_chunks()
        for image in chunk.permute(0, 2, 3, 1).contiguous().numpy()
    )


def carve(
    labels: Tensor, digests: Sequence[bytes], fraction: float, seed: int, classes: Sequence[str], part: str
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Divide images into those kept and those held out, class by class.

    Images with the same digest form a group, and a group is never divided: no image of one side also lies on the other.
    A class gives ``round(fraction * images)`` images, at least one while it has two groups; a class with one group keeps it.

    Args:
        labels: int64 (N,).
        digests: N content hashes.
        fraction: share to hold out, above 0 and below 1.
        seed: decides which; the same seed and images give the same division.
        classes: class names, for the notes.
        part: what is being carved ("validation"), for the notes.

    Returns:
        Indices kept and indices held out (int64, ascending), and a note if there are classes too small to divide.
    """
    held_out: list[int] = []
    undivided: list[str] = []
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(digests)]))
    for label, groups in enumerate(_groups(labels.tolist(), digests, len(classes))):
        count = sum(map(len, groups))
        if len(groups) < 2:
            if count:
                undivided.append(classes[label])
            continue
        held_out += _draw([groups[i] for i in rng.permutation(len(groups))], max(1, round(fraction * count)))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[torch.tensor(held_out, dtype=torch.int64)] = True
    few = f"{len(undivided)} class(es) have too few distinct images for a {part} split and stay in training: {some(undivided)}"
    return (~mask).nonzero().view(-1), mask.nonzero().view(-1), (few,) if undivided else ()


def _groups(labels: list[int], digests: Sequence[bytes], classes: int) -> list[list[list[int]]]:
    """For each class the groups of equal images; a group with several labels belongs to the class of its first image."""
    members: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        members[digest].append(index)
    by_class: list[list[list[int]]] = [[] for _ in range(classes)]
    for group in members.values():
        by_class[labels[group[0]]].append(group)
    return by_class


def _draw(groups: list[list[int]], quota: int) -> list[int]:
    """Whole groups, in the given order, up to ``quota`` images; never none of them and never all."""
    drawn: list[int] = []
    left = len(groups)
    for group in groups:
        if left > 1 and len(drawn) + len(group) <= quota:
            drawn += group
            left -= 1
        if len(drawn) == quota:
            break
    return drawn or min(groups, key=len)
