"""Mixup and CutMix: images and labels against the papers' formulas, image by image, and the loader that applies them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import sepnet
from cli_runner import error_of, invoke
from sepnet.data import AugmentConfig, Preprocessing, Split, TrainLoader
from sepnet.data._mix import MixParameters, draw_mix, mix, mix_labels, partners
from sepnet.engine import FitConfig, TrainingStep, make_fabric
from sepnet.engine.loss import classification_loss
from sepnet.report.plots import AUGMENTATIONS

HEIGHT, WIDTH, CLASSES = 8, 10, 5
PRE = Preprocessing((HEIGHT, WIDTH), 3, "crop", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def coloured(count: int = 50) -> Split:
    """Image i has one colour, i in every channel; labels 0 to 4 in turn."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, HEIGHT, WIDTH).contiguous()
    return Split(images, torch.arange(count) % CLASSES)


def loader(config: AugmentConfig, **options: int) -> TrainLoader:
    settings = {"batch_size": 16, "seed": 7, "classes": CLASSES} | options
    return TrainLoader(coloured(), PRE, augment=config, **settings)  # type: ignore[arg-type]


def pixels(x: Tensor) -> Tensor:
    """Normalised images on the scale 0..255 again."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PRE.mean, PRE.std))
    return 255 * (x * std + mean)


def drawn(config: AugmentConfig, count: int = 4000) -> MixParameters:
    return draw_mix(config, count, HEIGHT, WIDTH, np.random.default_rng(0))


def test_cutmix_pastes_the_rectangle_and_nothing_else() -> None:
    images, others = (torch.randint(256, (30, 3, HEIGHT, WIDTH), dtype=torch.uint8) for _ in range(2))
    p = drawn(AugmentConfig(cutmix=1.0), 30)
    found = mix(images, others, p)
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    for i, (top, bottom, left, right) in enumerate(p.box.tolist()):
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = others[i, :, top:bottom, left:right]
        assert torch.equal(found[i], expected)
        pasted = (bottom - top) * (right - left) / (HEIGHT * WIDTH)
        assert float(p.share(HEIGHT, WIDTH)[i]) == pytest.approx(pasted)


def test_mixup_fades() -> None:
    images, others = (torch.randint(256, (30, 3, HEIGHT, WIDTH), dtype=torch.uint8) for _ in range(2))
    p = drawn(AugmentConfig(mixup=0.8), 30)
    share = p.share(HEIGHT, WIDTH)
    weight = share.view(-1, 1, 1, 1)
    torch.testing.assert_close(mix(images, others, p), images * (1 - weight) + others * weight)
    assert share.min() < 0.1
    assert share.max() > 0.9


def test_with_both_each_image_has_one_of_them() -> None:
    p = drawn(AugmentConfig(mixup=1.0, cutmix=1.0))
    assert p.faded is not None
    faded, pasted = p.faded > 0, (p.box[:, 1] > p.box[:, 0]) & (p.box[:, 3] > p.box[:, 2])
    assert not (faded & pasted).any()
    assert 0.47 < faded.float().mean() < 0.53


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_the_share_is_of_a_beta_distribution(field: str) -> None:
    for alpha in (0.2, 1.0, 5.0):
        share = drawn(AugmentConfig(**{field: alpha})).share(HEIGHT, WIDTH)
        assert bool(((share >= 0) & (share <= 1)).all())
        if field == "mixup":  # a rectangle at the border is cut off, so its share is smaller
            assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
            assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
        else:
            assert 0.25 < share.mean() < 0.45


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_mix_prob_is_the_share_of_images_mixed(field: str) -> None:
    share = drawn(AugmentConfig(**{field: 5.0}, mix_prob=0.3)).share(HEIGHT, WIDTH)
    assert 0.25 < (share > 0).float().mean() < 0.33


def test_partners_are_others_and_each_is_one_once() -> None:
    for count in (2, 7, 16, 51):
        other = partners(count)
        assert not (other == torch.arange(count)).any()
        assert sorted(other.tolist()) == list(range(count))
    assert partners(1).tolist() == [0]


def test_labels_are_shared_as_the_images_are() -> None:
    labels = mix_labels(torch.tensor([1, 2, 3]), torch.tensor([4, 2, 0]), torch.tensor([0.25, 0.5, 0.0]), 5)
    expected = [[0, 0.75, 0, 0, 0.25], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    torch.testing.assert_close(labels, torch.tensor(expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_certain_labels_is_that_of_class_numbers(smoothing: float) -> None:
    logits, y = torch.randn(6, CLASSES), torch.arange(6) % CLASSES
    certain = functional.one_hot(y, CLASSES).float()
    torch.testing.assert_close(classification_loss(logits, certain, smoothing)[0], classification_loss(logits, y, smoothing)[0])


def test_a_batch_holds_what_its_labels_say() -> None:
    """Images of one colour: the mean colour is that of the two, in the share of their labels."""
    for config in (AugmentConfig(cutmix=1.0), AugmentConfig(mixup=1.0), AugmentConfig(mixup=1.0, cutmix=1.0)):
        x, y = loader(config).batch(4)
        plain, numbers = loader(AugmentConfig(hflip="random")).batch(4)  # the same images in the same order
        own, other = pixels(plain)[:, 0, 0, 0], pixels(plain)[partners(16)][:, 0, 0, 0]
        mean = pixels(x).mean((1, 2, 3))
        share = (mean - own) / (other - own)
        torch.testing.assert_close(y, mix_labels(numbers, numbers[partners(16)], share, CLASSES), atol=1e-4, rtol=0)
        assert (share > 0.01).sum() > 8


@pytest.mark.parametrize(("batch_size", "world_size"), [(16, 2), (16, 16), (12, 4), (15, 5)])
@pytest.mark.parametrize("ahead", [1, 4])
@pytest.mark.parametrize(
    "config", [AugmentConfig(cutmix=1.0, shift=2), AugmentConfig(mixup=0.4, rotate=5)], ids=["cutmix", "mixup"]
)
def test_processes_together_see_the_batch_of_one(batch_size: int, world_size: int, ahead: int, config: AugmentConfig) -> None:
    """Whose partners are all their own, all others', and some of each."""
    whole = loader(config, batch_size=batch_size)
    parts = [loader(config, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for part in parts:
        part._ahead = ahead
    for i in (0, 1, 5):
        x, y = whole.batch(i)
        for rank, part in enumerate(parts):
            share_x, share_y = part.batch(i)
            torch.testing.assert_close(share_y, y[rank::world_size])
            torch.testing.assert_close(share_x, x[rank::world_size])


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 16}], ids=["one process", "one of 16"])
def test_batches_made_together_are_those_made_one_by_one(options: dict[str, int]) -> None:
    config = AugmentConfig(hflip="random", shift=2, mixup=0.5, cutmix=0.5)
    one, many = (loader(config, **options, augment_until=7) for _ in range(2))
    many._ahead = 4
    for iteration in [*range(10), 3, 30]:
        for ours, theirs in zip(many.batch(iteration), one.batch(iteration), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_towards_the_end_nothing_is_mixed_and_the_labels_keep_their_shape() -> None:
    mixed, light = loader(AugmentConfig(shift=1, cutmix=1.0), augment_until=3), loader(AugmentConfig(shift=1))
    for iteration in range(6):
        x, y = mixed.batch(iteration)
        x_light, numbers = light.batch(iteration)
        certain = functional.one_hot(numbers, CLASSES).float()
        assert (torch.equal(x, x_light) and torch.equal(y, certain)) == (iteration >= 3)
        assert y.shape == certain.shape
        assert y.dtype == certain.dtype


def test_mixing_leaves_the_other_draws_as_they_are() -> None:
    config = AugmentConfig(hflip="random", shift=2)
    x, _ = loader(config).batch(2)
    almost, _ = loader(config.model_copy(update={"cutmix": 1.0, "mix_prob": 1e-9})).batch(2)
    assert torch.equal(x, almost)


def test_a_step_counts_by_the_larger_share() -> None:
    """Certain labels give the same step as class numbers; of mixed ones the larger share is the right answer."""
    results = []
    x, numbers = torch.randn(8, 3, 16, 16), torch.arange(8) % CLASSES
    others = (numbers + 1) % CLASSES
    for y in (numbers, functional.one_hot(numbers, CLASSES).float(), mix_labels(numbers, others, torch.full((8,), 0.4), CLASSES)):
        torch.manual_seed(0)
        model = sepnet.create_model("mobilenet_units", units=(8, 16), num_classes=CLASSES, input_size=16)
        step = TrainingStep(model, FitConfig(lr=0.05, amp="off"), make_fabric("cpu", "off"))
        results.append([torch.stack(step(x, y)) for _ in range(12)])
    torch.testing.assert_close(results[0], results[1])
    assert results[0][-1][1] == results[2][-1][1] == 8
    assert results[2][-1][0] > results[0][-1][0]


def test_pages_know_every_augmentation() -> None:
    assert set(AUGMENTATIONS) == set(AugmentConfig.model_fields) - {"pad_mode", "mix_prob"}


def test_mixing_alone_leaves_each_image_alone() -> None:
    assert loader(AugmentConfig(cutmix=1.0))._augment is None


def test_a_loader_must_know_the_classes() -> None:
    with pytest.raises(ValueError, match="number of classes"):
        TrainLoader(coloured(), PRE, batch_size=16, seed=0, augment=AugmentConfig(cutmix=1.0))


def test_a_run_with_both_trains(tmp_path: Path) -> None:
    settings = {"iterations": 60, "batch_size": 32, "mixup": 0.2, "cutmix": 1.0, "mix_prob": 0.5, "augment_until": 0.8}
    run = sepnet.train("digits", output=tmp_path / "run", **settings)
    assert run.record.result["test"]["accuracy"] > 60  # of 10 classes
    plain = sepnet.train("digits", output=tmp_path / "plain", **(settings | {"mixup": 0, "cutmix": 0, "mix_prob": 1.0}))
    assert run.record.history[0]["train_loss"] > plain.record.history[0]["train_loss"]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [("--cutmix", "-1", "cutmix"), ("--mixup", "101", "mixup"), ("--mix-prob", "0", "mix_prob"), ("--mix-prob", "1.5", "mix_prob")],
)
def test_values_out_of_range_are_refused(flag: str, value: str, said: str, tmp_path: Path) -> None:
    message = error_of("train", "digits", flag, value, "--output", tmp_path / "run")
    assert said in message.replace("-", "_")
    assert f"got {value}" in message


def test_a_share_of_nothing_is_refused(tmp_path: Path) -> None:
    message = error_of("train", "digits", "--mix-prob", "0.5", "--output", tmp_path / "run")
    assert "flags: mix_prob=0.5 does nothing without mixup or cutmix" in message


def test_the_flags_reach_the_run(tmp_path: Path) -> None:
    invoke("train", "digits", "--iterations", 5, "--mixup", 0.2, "--cutmix", 1, "--mix-prob", 0.5, "--output", tmp_path / "run")
    written = (tmp_path / "run/config.yaml").read_text()
    assert all(line in written for line in ("mixup: 0.2", "cutmix: 1.0", "mix_prob: 0.5"))
