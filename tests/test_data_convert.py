"""Images at another size or number of channels than they are stored with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sepnet.data import AugmentConfig, TrainLoader, load_dataset
from sepnet.data import _types as types_module


@pytest.mark.parametrize(("size", "channels"), [(40, None), (40, 3), (5, None)])
def test_images_too_large_for_memory_only_when_converted(monkeypatch: pytest.MonkeyPatch, size: int, channels: int | None) -> None:
    """They stay as they are stored, are converted batch by batch, and are the same images in the same splits."""
    whole = load_dataset("digits", size=size, channels=channels)
    monkeypatch.setattr(types_module, "MEMORY_BYTES", 1_000)
    large = load_dataset("digits", size=size, channels=channels)
    for one, two in ((whole.train, large.train), (whole.val, large.val), (whole.test, large.test)):
        assert one is not None
        assert two is not None
        assert two.images.shape[1:] == (1, 8, 8)
        assert one.shape == two.shape == (channels or 1, size, size)
        assert torch.equal(one.images, two.gather(torch.arange(len(two))))
        assert torch.equal(one.images, torch.cat(list(two.chunks(100))))
        assert torch.equal(one.labels, two.labels)
    assert whole.preprocessing == large.preprocessing
    assert whole.fingerprint == large.fingerprint
    chosen = torch.tensor([5, 2, 3])
    selected = [data.train.select(chosen).gather(torch.arange(3)) for data in (whole, large)]
    assert torch.equal(*selected)
    loaders = [
        TrainLoader(data.train, data.preprocessing, batch_size=20, seed=1, augment=AugmentConfig(shift=2), device="cpu")
        for data in (whole, large)
    ]
    assert torch.equal(loaders[0].batch(3)[0], loaders[1].batch(3)[0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [20, 5])
def test_images_are_resized_as_pillow_does(size: int, channels: int) -> None:
    """To within one of 255 levels: both round twice, Pillow to bytes between rows and columns."""
    data = load_dataset("digits", size=size, channels=channels, val_fraction=0)
    small = load_dataset("digits", val_fraction=0)
    for image, source in zip(data.train.images[:20], small.train.images[:20], strict=True):
        wanted = Image.fromarray(source[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert (image.int() - torch.from_numpy(np.array(wanted)).int()).abs().max() <= 1
