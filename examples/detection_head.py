"""A small SSD-style detector on any network of sepnet: what ``features_only`` is for.

    python examples/detection_head.py                                    # 30 s on two cores
    python examples/detection_head.py --model dsrnet50 --steps 300
    python examples/detection_head.py --weights runs/digits/model.safetensors --model multiscale_concat

The images are made here: squares, disks and crosses of any colour on noise, with their boxes. On each level of the
network's pyramid a separable convolution predicts, for a few default boxes a cell, the class and the offsets of a box
(Liu et al. 2016, SSD; with separable convolutions: Sandler et al. 2018, section 6.2). It shows the parts and the
interfaces, and is no detector to deploy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sepnet import create_model
from sepnet.models import FeatureNetwork
from sepnet.nn import BatchNormReLU, depthwise

SHAPES = ("square", "disk", "cross")  # class 0 is the background
ASPECTS = (1.0, 2.0, 0.5)  # width to height of the default boxes
BOX_STRIDES = 4  # side of a default box, in strides of its level
VARIANCE = (0.1, 0.2)  # scales of the predicted offsets of centre and size, as in SSD
MATCHED = 0.5  # least overlap of a default box with the object that it shall find
NEGATIVES = 3  # of background boxes, the hardest, for each matched one


# --- images -----------------------------------------------------------------------------------------------------------


def make_images(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images with one or two shapes each.

    Returns:
        images (B, 3, size, size), and for each image its boxes (n, 4) as left, top, right, bottom in pixels, and its
        classes (n,), from 1.
    """
    images = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    grid = torch.arange(size) + 0.5
    boxes, classes = [], []
    for image in images:
        number = int(torch.randint(1, 3, (), generator=generator))
        sides = size * (0.2 + 0.3 * torch.rand(number, 1, generator=generator))
        corners = (size - sides) * torch.rand(number, 2, generator=generator)
        labels = torch.randint(1, len(SHAPES) + 1, (number,), generator=generator)
        for (left, top), side, label in zip(corners, sides[:, 0], labels, strict=True):
            dx, dy = (grid[None] - left - side / 2) / side, (grid[:, None] - top - side / 2) / side
            inside = _inside(SHAPES[int(label) - 1], dx, dy)
            image[:, inside] = torch.rand(3, 1, generator=generator) + 0.5
        boxes.append(torch.cat([corners, corners + sides], 1))
        classes.append(labels)
    return images, boxes, classes


def _inside(shape: str, dx: Tensor, dy: Tensor) -> Tensor:
    """Pixels of a shape of side 1 about the origin: (1, W), (H, 1) -> (H, W)."""
    square = (dx.abs() < 0.5) & (dy.abs() < 0.5)
    if shape == "disk":
        return dx**2 + dy**2 < 0.25
    return square & ((dx.abs() < 0.15) | (dy.abs() < 0.15)) if shape == "cross" else square


# --- network ----------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """A pyramid of features with a predictor on each level.

    Shape: (B, 3, S, S) -> scores (B, boxes, classes + 1), offsets (B, boxes, 4); the boxes in the order of ``default_boxes``.
    """

    def __init__(self, backbone: FeatureNetwork, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        outputs = len(ASPECTS) * (classes + 1 + 4)
        self.predictors = nn.ModuleList(
            nn.Sequential(depthwise(level.channels), BatchNormReLU(level.channels), nn.Conv2d(level.channels, outputs, 1))
            for level in backbone.feature_info
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> scores (B, boxes, classes + 1), offsets (B, boxes, 4)."""
        maps = self.backbone(images)
        predicted = [
            predictor(m).permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (len(ASPECTS), -1)).flatten(1, 2)
            for predictor, m in zip(self.predictors, maps, strict=True)
        ]
        scores, offsets = torch.cat(predicted, 1).split([self.classes + 1, 4], 2)
        return scores, offsets

    def default_boxes(self, size: int) -> Tensor:
        """(boxes, 4) as centre and size in pixels: ``ASPECTS`` at each cell of each level."""
        boxes = []
        for level in self.backbone.feature_info:
            stride, cells = level.reduction, size // level.reduction
            centres = (torch.arange(cells) + 0.5) * stride
            y, x = torch.meshgrid(centres, centres, indexing="ij")
            sides = torch.tensor([[a**0.5, a**-0.5] for a in ASPECTS]) * BOX_STRIDES * stride
            cell = torch.stack([x, y], -1)[:, :, None].expand(-1, -1, len(ASPECTS), -1)
            boxes.append(torch.cat([cell, sides.expand(cells, cells, -1, -1)], -1).reshape(-1, 4))
        return torch.cat(boxes)


def make_detector(model: str, size: int, weights: Path | None = None) -> Detector:
    """A detector on the levels of strides 4 to 32 of a network, with the weights of a trained one where they are given."""
    pyramid = create_model(model, features_only=True, input_size=size)
    assert isinstance(pyramid, FeatureNetwork)
    levels = [i for i, info in enumerate(pyramid.feature_info) if 4 <= info.reduction <= 32]
    backbone = create_model(model, features_only=True, out_indices=levels, input_size=size)
    assert isinstance(backbone, FeatureNetwork)
    if weights is not None:
        saved = load_file(weights)
        foreign = [k for k, v in backbone.state_dict().items() if k not in saved or saved[k].shape != v.shape]
        if foreign:
            raise SystemExit(f"error: {weights} is not of {model}: {foreign[0]} does not fit")
        backbone.load_state_dict(saved, strict=False)  # the classifier's weights are left over
    return Detector(backbone, len(SHAPES))


# --- boxes ------------------------------------------------------------------------------------------------------------


def corners(boxes: Tensor) -> Tensor:
    """Centre and size -> left, top, right, bottom. (..., 4) -> (..., 4)."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes given by corners: (n, 4), (m, 4) -> (n, m)."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def match(defaults: Tensor, boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """What each default box shall predict: class (boxes,), 0 for background, and offsets (boxes, 4)."""
    table = overlaps(corners(defaults), boxes)
    best, owner = table.max(1)
    first = table.argmax(0)  # each object gets at least the default box that is nearest to it
    best[first], owner[first] = 1.0, torch.arange(len(boxes))
    target = torch.where(best >= MATCHED, classes[owner], 0)
    centre, side = (boxes[owner][:, :2] + boxes[owner][:, 2:]) / 2, boxes[owner][:, 2:] - boxes[owner][:, :2]
    moved = (centre - defaults[:, :2]) / defaults[:, 2:] / VARIANCE[0]
    return target, torch.cat([moved, (side / defaults[:, 2:]).log() / VARIANCE[1]], 1)


def detection_loss(scores: Tensor, offsets: Tensor, defaults: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> Tensor:
    """Cross-entropy over matched boxes and the hardest of the others, and smooth L1 over the matched ones' offsets."""
    targets, wanted = map(torch.stack, zip(*(match(defaults, b, c) for b, c in zip(boxes, classes, strict=True)), strict=True))
    found = targets > 0
    loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    hardness = loss.detach().masked_fill(found, -1).sort(1, descending=True).indices.argsort(1)
    counted = found | (hardness < NEGATIVES * found.sum(1, keepdim=True))
    return (loss[counted].sum() + F.smooth_l1_loss(offsets[found], wanted[found], reduction="sum")) / found.sum()


def detect(scores: Tensor, offsets: Tensor, defaults: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``limit`` best boxes of one image that do not cover one another: corners (n, 4), classes (n,), confidences (n,)."""
    confidence, classes = scores.softmax(-1)[:, 1:].max(-1)
    centre = defaults[:, :2] + offsets[:, :2] * VARIANCE[0] * defaults[:, 2:]
    found = corners(torch.cat([centre, defaults[:, 2:] * (offsets[:, 2:] * VARIANCE[1]).exp()], 1))
    order = confidence.argsort(descending=True)
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        kept.append(int(order[0]))
        order = order[overlaps(found[order[:1]], found[order])[0] < MATCHED]
    return found[kept], classes[kept] + 1, confidence[kept]


# --- training ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def recall(detector: Detector, size: int, count: int = 64) -> float:
    """Percent of objects in new images that are found, with the right class and an overlap of at least a half."""
    images, boxes, classes = make_images(count, size, torch.Generator().manual_seed(10**6))
    defaults = detector.default_boxes(size)
    hits = total = 0
    for scores, offsets, box, label in zip(*detector.eval()(images), boxes, classes, strict=True):
        found, kinds, _ = detect(scores, offsets, defaults, limit=len(box))
        right = (overlaps(box, found) >= MATCHED) & (label[:, None] == kinds[None])
        hits, total = hits + int(right.any(1).sum()), total + len(box)
    return 100 * hits / total


def train(detector: Detector, size: int, steps: int, batch_size: int = 16, lr: float = 2e-3, seed: int = 0) -> list[float]:
    """AdamW with a falling rate; returns the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    defaults = detector.default_boxes(size)
    losses = []
    detector.train()
    for step in range(steps):
        images, boxes, classes = make_images(batch_size, size, generator)
        loss = detection_loss(*detector(images), defaults, boxes, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1:4d}   loss {losses[-1]:.3f}")
    return losses


def main() -> None:
    """Train a detector on made images and print how many objects it finds before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="multiscale_concat", help="a network of sepnet; see sepnet models")
    parser.add_argument("--weights", type=Path, help="model.safetensors of a trained network of that name, on colour images")
    parser.add_argument("--size", type=int, default=64, help="side of the images, a multiple of 32 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="training steps of 16 images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.size < 32 or options.size % 32:
        parser.error(f"--size {options.size} is no multiple of 32")
    torch.manual_seed(options.seed)
    detector = make_detector(options.model, options.size, options.weights)
    for level in detector.backbone.feature_info:
        print(f"level {level.module}: stride {level.reduction}, {level.channels} channels")
    print(f"objects found before training: {recall(detector, options.size):.0f} %")
    train(detector, options.size, options.steps, seed=options.seed)
    print(f"objects found after training:  {recall(detector, options.size):.0f} %")


if __name__ == "__main__":
    main()
