"""The handwritten digits that scikit-learn embeds: 1,797 grey images of 8x8, 10 classes; nothing to download.

The test split is a fifth of the images, stratified, with a seed of its own: no option of a run changes what it is tested on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sepnet.data._registry import dataset
from sepnet.data._split import carve, image_digests
from sepnet.data._types import RawData, ReadOptions, Split

__all__ = ["read_digits"]

TEST_SEED = 1797
TEST_FRACTION = 0.2


@dataset("digits")
def read_digits(data_dir: Path, options: ReadOptions) -> RawData:
    """Read the embedded digits; ``data_dir`` and ``options`` are not used. Intensities 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # half a second to import: only for who reads this data set

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    everything = Split(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(bunch.target.astype(np.int64)))
    classes = tuple(str(name) for name in bunch.target_names)
    kept, held_out, _ = carve(everything.labels, image_digests(everything), TEST_FRACTION, TEST_SEED, classes, "test")
    title, train, test = "digits (scikit-learn)", everything.select(kept), everything.select(held_out)
    return RawData(title, classes, train, test=test, characters=True)
