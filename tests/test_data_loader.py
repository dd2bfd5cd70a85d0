"""Splits, augmentation and loaders: what must hold for every seed, batch and configuration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from sepnet.data import Augment, AugmentConfig, EvalLoader, Preprocessing, Split, TrainLoader
from sepnet.data._augment import AugmentParameters
from sepnet.data._split import carve
from sepnet.errors import ConfigError

PRE = Preprocessing((8, 10), 3, "crop", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
FAST = settings(max_examples=40, deadline=None, derandomize=True)


def numbered(count: int = 50, channels: int = 3) -> Split:
    """Image i is random, its label is i, so that a batch tells which images it holds."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 8, 10, channels), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    return Split(images, torch.arange(count))


def drawn(config: AugmentConfig, images: Tensor, seed: int = 0, epoch: int = 0) -> Tensor:
    augment = Augment(config, seed=0)
    generator = torch.Generator().manual_seed(seed)
    return augment.apply(images, augment.draw(len(images), generator, epoch, torch.arange(len(images))))


# ---- splits ----


@FAST
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    kinds=st.integers(1, 60),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 2**40),
)
def test_carve(labels: list[int], kinds: int, fraction: float, seed: int) -> None:
    digests = [bytes([i * 7 % kinds]) for i in range(len(labels))]
    names = ["a", "b", "c", "d"]
    kept, held, notes = carve(torch.tensor(labels), digests, fraction, seed, names, "validation")
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    assert not {digests[i] for i in kept.tolist()} & {digests[i] for i in held.tolist()}
    again = carve(torch.tensor(labels), digests, fraction, seed, names, "validation")
    assert torch.equal(again[1], held)
    assert all("too few" in note for note in notes)


def test_carve_is_stratified_and_moved_by_the_seed() -> None:
    labels = torch.arange(300) % 3
    digests = [i.to_bytes(4, "big") for i in range(300)]
    held = [carve(labels, digests, 0.1, seed, ["a", "b", "c"], "test")[1] for seed in (0, 1)]
    assert labels[held[0]].bincount().tolist() == [10, 10, 10]
    assert not torch.equal(held[0], held[1])


# ---- augmentation ----

CONFIGS = st.builds(
    AugmentConfig,
    hflip=st.sampled_from(["off", "random", "alternate"]),
    shift=st.integers(0, 7),
    pad_mode=st.sampled_from(["reflect", "zeros"]),
    cutout=st.integers(0, 12),
    rotate=st.floats(0, 180),
    shear=st.floats(0, 80),
    scale=st.floats(0, 0.9),
    elastic=st.floats(0, 5),
    brightness=st.floats(0, 1),
    contrast=st.floats(0, 1),
    saturation=st.floats(0, 1),
)


@FAST
@given(config=CONFIGS, seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]), batch=st.integers(1, 5))
def test_any_configuration_keeps_shape_range_and_source(config: AugmentConfig, seed: int, channels: int, batch: int) -> None:
    images = numbered(batch, channels).images
    before = images.clone()
    out = drawn(config, images, seed)
    assert out.shape == images.shape
    assert torch.isfinite(out.float()).all()
    assert out.min() >= 0
    assert out.max() <= 255
    assert torch.equal(images, before)
    assert torch.equal(out, drawn(config, images, seed))


def test_off_is_the_identity() -> None:
    images = numbered().images
    assert torch.equal(drawn(AugmentConfig(), images), images)
    zero = torch.zeros(50)
    params = Augment(AugmentConfig(shift=2)).draw(50, torch.Generator(), 0, torch.arange(50))
    assert params.shift is not None
    still = type(params)(shift=torch.zeros_like(params.shift), flip=torch.zeros(50, dtype=torch.bool))
    for mode in ("reflect", "zeros"):
        assert torch.equal(Augment(AugmentConfig(shift=2, pad_mode=mode)).apply(images, still), images)
    turned = Augment(AugmentConfig()).apply(images, type(params)(angle=zero, magnify=zero + 1))
    torch.testing.assert_close(turned, images.float(), atol=0.02, rtol=0)
    still = type(params)(shear=zero, elastic=torch.zeros(50, 2, 5, 5))
    torch.testing.assert_close(Augment(AugmentConfig()).apply(images, still), images.float(), atol=0.02, rtol=0)
    coloured = Augment(AugmentConfig()).apply(images, type(params)(brightness=zero + 1, contrast=zero + 1, saturation=zero + 1))
    torch.testing.assert_close(coloured, images.float(), atol=0.02, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "wanted",
    [
        "brightness",
        "contrast",
        "saturation",
        "brightness contrast",
        "contrast saturation",
        "brightness saturation",
        "brightness contrast saturation",
    ],
)
def test_colour_is_that_of_the_textbook(wanted: str, channels: int) -> None:
    """Against one change after the other, one image at a time, in float64: the order is brightness, contrast, saturation."""
    images = numbered(channels=channels).images
    config = AugmentConfig(**dict.fromkeys(wanted.split(), 0.6))
    params = Augment(config).draw(50, torch.Generator().manual_seed(3), 0, torch.arange(50))
    for number, got in enumerate(Augment(config).apply(images, params)):
        image = images[number].double()
        luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
        if params.brightness is not None:
            image = image * params.brightness[number]
        if params.contrast is not None:
            mean = (image * luma).sum(0).mean() if channels == 3 else image.mean()
            image = mean + (image - mean) * params.contrast[number]
        if params.saturation is not None and channels == 3:
            grey = (image * luma).sum(0)
            image = grey + (image - grey) * params.saturation[number]
        torch.testing.assert_close(got.double(), image.clamp(0, 255), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_flip_and_shift_are_those_of_the_textbook(mode: str) -> None:
    """Against the obvious way: mirror, pad, cut out a window, one image at a time."""
    images = numbered().images
    augment = Augment(AugmentConfig(hflip="random", shift=3, pad_mode=mode))
    params = augment.draw(50, torch.Generator().manual_seed(5), 0, torch.arange(50))
    assert params.flip is not None
    assert params.shift is not None
    assert set(params.shift.flatten().tolist()) == set(range(-3, 4))
    for got, image, flip, (dy, dx) in zip(augment.apply(images, params), images, params.flip, params.shift.tolist(), strict=True):
        source = image.flip(2) if flip else image
        options = {"mode": "reflect"} if mode == "reflect" else {"value": 0}
        padded = torch.nn.functional.pad(source.float().unsqueeze(0), (3, 3, 3, 3), **options)[0]
        assert torch.equal(got.float(), padded[:, 3 + dy : 11 + dy, 3 + dx : 13 + dx])


def test_alternate_shows_each_image_both_ways_in_two_epochs() -> None:
    config = AugmentConfig(hflip="alternate")
    flips = [Augment(config, seed=3).draw(1000, torch.Generator(), epoch, torch.arange(1000)).flip for epoch in range(3)]
    assert flips[0] is not None
    assert flips[1] is not None
    assert flips[2] is not None
    assert torch.equal(flips[0], ~flips[1])
    assert torch.equal(flips[0], flips[2])
    assert 400 < int(flips[0].sum()) < 600
    other = Augment(config, seed=4).draw(1000, torch.Generator(), 0, torch.arange(1000)).flip
    assert other is not None
    assert 400 < int((other ^ flips[0]).sum()) < 600


def test_cutout_fills_a_square_with_the_given_colour() -> None:
    augment = Augment(AugmentConfig(cutout=4), fill=(1.0, 2.0, 3.0))
    images = torch.full((20, 3, 8, 10), 200, dtype=torch.uint8)
    centre = torch.tensor([[0.5, 0.5]] * 19 + [[0.0, 0.0]])
    out = augment.apply(images, type(augment.draw(1, torch.Generator(), 0, torch.arange(1)))(cutout=centre))
    hole = out[0, 0] != 200
    assert int(hole.sum()) == 16
    assert out[0, :, hole].unique(dim=1).flatten().tolist() == [1, 2, 3]
    assert int((out[19, 0] != 200).sum()) == 4, "at the corner a quarter of the square is inside"


def test_a_quarter_turn_turns() -> None:
    images = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    images[0, 0, 0] = 255
    params = type(Augment(AugmentConfig()).draw(1, torch.Generator(), 0, torch.arange(1)))(angle=torch.tensor([torch.pi / 2]))
    out = Augment(AugmentConfig()).apply(images, params)[0, 0]
    sides = [float(s.mean()) for s in (out[:, 0], out[:, -1])]
    assert max(sides) > 250
    assert min(sides) < 1


def test_a_shear_slides_rows_about_the_middle() -> None:
    images = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    images[..., 4] = 255  # a vertical line
    params = AugmentParameters(shear=torch.tensor([torch.pi / 4]))
    out = Augment(AugmentConfig(pad_mode="zeros")).apply(images, params)[0, 0]
    assert out.argmax(1).tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0], "45 degrees: a pixel a row"


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_an_elastic_field_moves_in_pixels(height: int, width: int) -> None:
    """The same at every node is a shift by so many pixels: each place shows what lies 2 to the right of it and 1 above."""
    images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
    nodes = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(3, 2, 5, 5)
    out = Augment(AugmentConfig()).apply(images, AugmentParameters(elastic=nodes))
    torch.testing.assert_close(out[:, :, 1:, :-2], images[:, :, :-1, 2:].float(), atol=0.02, rtol=0)


def test_an_elastic_field_is_smooth_and_of_the_given_strength() -> None:
    augment = Augment(AugmentConfig(elastic=2.0))
    nodes = augment.draw(2000, torch.Generator().manual_seed(1), 0, torch.arange(2000)).elastic
    assert nodes is not None
    assert float(nodes.std()) == pytest.approx(2.0, rel=0.02)
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(2000, 1, 32, 32)  # tells where a pixel came from
    moved = (augment.apply(ramp, AugmentParameters(elastic=nodes)) / 8 - torch.arange(32.0))[:, 0, 8:24, 8:24]
    assert 1.0 < float(moved.std()) < 2.2
    assert float(moved.diff(dim=2).abs().max()) < 3, "neighbours move alike"


@pytest.mark.parametrize(
    ("given_value", "meant"), [("off", "off"), (False, "off"), (None, "off"), (True, "random"), ("alternate", "alternate")]
)
def test_hflip_as_yaml_reads_it(given_value: object, meant: str) -> None:
    assert AugmentConfig.model_validate({"hflip": given_value}).hflip == meant


def test_none_and_false_are_off() -> None:
    off = dict.fromkeys(("shift", "cutout", "rotate", "shear", "scale", "elastic", "brightness", "contrast", "saturation"))
    assert AugmentConfig.model_validate(off) == AugmentConfig()


@pytest.mark.parametrize(
    "wrong",
    [
        {"hflip": "left"},
        {"shift": -1},
        {"scale": 1.0},
        {"rotate": 181},
        {"shear": 90},
        {"elastic": -1},
        {"contrast": 2},
        {"zoom": 1},
        {"shift": 1.5},
    ],
)
def test_configuration_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(wrong)


# ---- loaders ----


@pytest.mark.parametrize(("side", "batch"), [(28, 1000), (64, 1000), (128, 250), (224, 81), (4096, 1)])
def test_large_images_are_scored_a_few_at_a_time(side: int, batch: int) -> None:
    split = Split(torch.zeros((2, 1, 1, 1), dtype=torch.uint8).expand(2, 1, side, side), torch.zeros(2, dtype=torch.int64))
    assert EvalLoader(split, Preprocessing((side, side), 1, "crop", (0.5,), (0.5,))).batch_size == batch


STRONG = AugmentConfig(hflip="random", shift=2, cutout=3, rotate=10, brightness=0.2, saturation=0.1)


def trainer(augment: AugmentConfig | None = STRONG, **options: int) -> TrainLoader:
    return TrainLoader(numbered(), PRE, **({"batch_size": 16, "seed": 7} | options), augment=augment)  # type: ignore[arg-type]


def test_a_batch_is_a_function_of_seed_and_iteration() -> None:
    one, two = trainer(), trainer()
    forward = [one.batch(i) for i in range(8)]
    for i in reversed(range(8)):
        x, y = two.batch(i)
        assert torch.equal(x, forward[i][0])
        assert torch.equal(y, forward[i][1])
    assert not torch.equal(trainer(seed=8).batch(0)[1], forward[0][1])


def test_an_epoch_shows_no_image_twice() -> None:
    loader = trainer()
    assert loader.batches_per_epoch == 3
    epochs = [torch.cat([loader.batch(3 * e + i)[1] for i in range(3)]) for e in range(2)]
    for epoch in epochs:
        assert len(epoch.unique()) == 48
    assert not torch.equal(epochs[0], epochs[1])


def test_batches_are_the_images_they_claim() -> None:
    split = numbered()
    x, y = trainer(augment=None).batch(4)
    assert torch.equal(x, PRE.normalise(split.gather(y)))
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_see_the_batch_of_one(world_size: int) -> None:
    whole = trainer()
    parts = [trainer(rank=rank, world_size=world_size) for rank in range(world_size)]
    for i in (0, 5):
        x, y = whole.batch(i)
        for rank, part in enumerate(parts):
            share_x, share_y = part.batch(i)
            assert torch.equal(share_y, y[rank::world_size])
            torch.testing.assert_close(share_x, x[rank::world_size])


def test_a_small_set_is_one_batch() -> None:
    loader = trainer(batch_size=128)
    assert loader.batches_per_epoch == 1
    assert sorted(loader.batch(3)[1].tolist()) == list(range(50))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"world_size": 3}, {"world_size": 2, "rank": 2}])
def test_loader_options_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        trainer(**wrong)


@pytest.mark.parametrize("ahead", [1, 4], ids=["one by one", "several at once"])
def test_towards_the_end_of_a_run_only_flips_and_shifts_are_left(ahead: int) -> None:
    strong = AugmentConfig(hflip="random", shift=1, rotate=20, scale=0.2, elastic=1, brightness=0.5, cutout=3)
    changing = trainer(augment=strong, augment_until=6)
    changing._ahead = ahead
    before, after = trainer(augment=strong), trainer(augment=AugmentConfig(hflip="random", shift=1))
    for iteration in range(10):
        x, y = changing.batch(iteration)
        expected, labels = (before if iteration < 6 else after).batch(iteration)
        assert torch.equal(y, labels)
        assert torch.equal(x, expected)


def test_a_shift_as_large_as_the_image() -> None:
    with pytest.raises(ConfigError, match="shift=8"):
        trainer(augment=AugmentConfig(shift=8))


def test_a_distortion_as_large_as_the_image() -> None:
    with pytest.raises(ConfigError, match="elastic=8 must be below the image size 8x10"):
        trainer(augment=AugmentConfig(elastic=8.0))


@pytest.mark.parametrize("world_size", [1, 3, 60])
@pytest.mark.parametrize("channels_last", [True, False])
def test_evaluation_covers_everything_once_in_order(world_size: int, channels_last: bool) -> None:
    split = numbered()
    loaders = [
        EvalLoader(split, PRE, batch_size=16, rank=r, world_size=world_size, channels_last=channels_last) for r in range(world_size)
    ]
    batches = [list(loader) for loader in loaders]
    assert [len(b) for b in batches] == [len(loader) for loader in loaders]
    assert [sum(len(y) for _, y in b) for b in batches] == [loader.num_images for loader in loaders]
    assert torch.cat([y for b in batches for _, y in b]).tolist() == list(range(50))
    assert torch.equal(torch.cat([x for b in batches for x, _ in b]), PRE.normalise(split.images))
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert all(x.is_contiguous(memory_format=wanted) for b in batches for x, _ in b)
    assert {loader.dataset_size for loader in loaders} == {50}


def test_batches_made_together_are_those_made_one_by_one() -> None:
    """As an accelerator gets them; 7 batches an epoch, so that what is made together crosses its end."""
    config = AugmentConfig(hflip="alternate", shift=2, rotate=10, scale=0.1, cutout=3, brightness=0.2)
    one, many = (TrainLoader(numbered(), PRE, batch_size=7, seed=3, augment=config) for _ in range(2))
    many._ahead = 4
    for iteration in [*range(9), 3, 30]:
        for ours, theirs in zip(many.batch(iteration), one.batch(iteration), strict=True):
            torch.testing.assert_close(ours, theirs)
            assert ours.stride() == theirs.stride()
