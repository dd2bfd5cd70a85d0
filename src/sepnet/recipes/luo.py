"""Luo, Kuang, Liu, Ma: DSRNet, Tables 2, 3, 4 and Figure 2. Run by ``sepnet reproduce luo``.

The paper gives SGD with momentum 0.9 at 0.1 "reduced by 1/10", weight decay 5e-4, batch 128, random crops and flips; not the
length, nor when the rate falls. Our reading: 39,000 iterations on CIFAR (100 passes), 7,800 on STL-10 (200 passes), the rate
falling at a half and at three quarters (``plain``); crops are shifts by an eighth of the side over zeros. ``modern`` is the same
network for as long with wang2018's Muon settings, not yet chosen by a measurement on these networks. Expected of DSRNet on
CIFAR-10: the paper's 9.2 % error (plain), at most 6 % (modern).

Times are measured on the device at hand, without any data. (The paper's row is headed "fps/ms"; its text makes it
milliseconds an image at batch 128.)
"""

from __future__ import annotations

from typing import Any

from sepnet.recipes._claims import Claim, Findings, best_of, faster, parameters
from sepnet.recipes._config import TrainConfig
from sepnet.recipes._modern import MUON
from sepnet.recipes._paper import Figure, Paper, PaperTable, Published, Speed, papers
from sepnet.recipes._registry import DataFacts, register_recipe
from sepnet.report import TOP1_ERROR, TOP3_ERROR

__all__ = ["PAPER", "modern", "plain"]

MODELS = ("dsrnet50", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x4d")
LABELS = ("DSRNet", "ResNet-50", "ResNet-101", "ResNeXt-50", "ResNeXt-101")
BATCH_SIZE, EPOCHS = 128, 100
LEAST_SIZE = 16  # smaller images of one's own are enlarged

# iterations, iterations between tests, side of the images, classes
BUDGETS = {
    "cifar10": (39_000, 7_800, 32, 10),
    "cifar100": (39_000, 7_800, 32, 100),
    "stl10": (7_800, 1_560, 96, 10),
}
LENGTH = "the paper does not give the length: our choice, with the rate falling at a half and at three quarters of it"
STEM = "the stem for images of this size is not described; here it has stride 1 below 64 pixels and halves the map once below 128"


def _table(
    number: int, caption: str, data: str, top1: tuple[float, ...], top3: tuple[float, ...], times: tuple[float, ...]
) -> PaperTable:
    _, _, size, classes = BUDGETS[data]
    rows = {}
    for i, (model, label) in enumerate(zip(MODELS, LABELS, strict=True)):
        figures = {TOP1_ERROR.key: top1[i]} | ({TOP3_ERROR.key: top3[i]} if top3 else {})
        rows[model] = Published(label, None, 21_900_000 if model == "dsrnet50" else None, "", figures, times[i])
    return PaperTable(
        number,
        caption,
        data,
        rows,
        metrics=(TOP1_ERROR, TOP3_ERROR) if top3 else (TOP1_ERROR,),
        speed=Speed((3, size, size), classes, BATCH_SIZE),
        notes=(LENGTH, STEM),
    )


TABLES = {
    2: _table(2, "CIFAR-10", "cifar10", (9.20, 11.85, 11.88, 10.44, 10.91), (), (0.148, 0.719, 1.406, 0.406, 0.977)),
    3: _table(
        3,
        "CIFAR-100",
        "cifar100",
        (33.50, 38.48, 39.43, 36.53, 35.20),
        (17.80, 22.02, 22.47, 20.09, 19.06),
        (0.180, 0.719, 1.445, 0.430, 0.977),
    ),
    4: _table(
        4,
        "STL-10",
        "stl10",
        (25.26, 27.28, 28.11, 27.96, 26.90),
        (7.25, 8.11, 8.59, 8.65, 8.37),
        (0.430, 0.633, 1.953, 1.031, 2.969),
    ),
}

FIGURES = {
    2: Figure(
        2,
        "Parameters of the networks, 100 classes",
        rows={
            "dsrnet50": Published("DSRNet, as counted", None, 21_900_000),
            "dsrnet50_printed": Published("DSRNet, as printed in Table 1", None, None),
            **{model: Published(label, None, None) for model, label in zip(MODELS[1:], LABELS[1:], strict=True)},
        },
        show="parameters",
        counted=Speed((3, 32, 32), 100, BATCH_SIZE),
        notes=("the paper names one figure, 21.9 M for DSRNet",),
    )
}


def configure(data: str, row: str, recipe: str, seed: int) -> TrainConfig:
    """The configuration of one run: batches of 128 of the whole training set, tested on the test set."""
    iterations, eval_every, size, _ = BUDGETS[data]
    return TrainConfig(
        data=data,
        model=row,
        recipe=f"luo-{recipe}",
        size=size,
        iterations=iterations,
        batch_size=BATCH_SIZE,
        eval_every=eval_every,
        seed=seed,
        val_fraction=0.0,
        **_settings(recipe, size),
    )


def _settings(recipe: str, size: int) -> dict[str, Any]:
    augmentation = {"hflip": "random", "shift": size // 8, "pad_mode": "zeros"}
    if recipe == "modern":
        return MUON | augmentation
    return augmentation | {
        "opt": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "sched": "step",
        "step_at": (0.5, 0.75),
        "step_gamma": 0.1,
        "warmup": 0.0,
    }


def _for_own_data(facts: DataFacts, recipe: str) -> TrainConfig:
    settings = _settings(recipe, facts.size) | {"hflip": facts.hflip}
    return TrainConfig(
        data=facts.name,
        model="dsrnet50",
        recipe=f"luo-{recipe}",
        size=LEAST_SIZE if facts.size < LEAST_SIZE else None,
        epochs=EPOCHS,
        batch_size=min(BATCH_SIZE, facts.train_images),
        **settings,
    )


@register_recipe("luo-plain")
def plain(facts: DataFacts) -> TrainConfig:
    """The plain recipe on any data: DSRNet, SGD at 0.1 falling twice, crops and (not for grey images) flips, 100 epochs of 128."""
    return _for_own_data(facts, "plain")


@register_recipe("luo-modern")
def modern(facts: DataFacts) -> TrainConfig:
    """The modern recipe on any data: DSRNet, Muon, crops and (not for grey images) flips, 100 epochs of 128."""
    return _for_own_data(facts, "modern")


def _most_accurate(data: str) -> Claim:
    def check(found: Findings, recipe: str) -> str:
        rows = zip(LABELS, MODELS, strict=True)
        return best_of({label: found.accuracy(data, model, recipe) for label, model in rows}, "DSRNet")

    table = next(table for table in TABLES.values() if table.data == data)
    return Claim(f"Is DSRNet the most accurate of the five on {table.caption}?", check, tables=(table.number,))


def _faster_than(model: str, factor: float) -> Claim:
    label = LABELS[MODELS.index(model)]

    def check(found: Findings, _: str) -> str:
        return faster(found.ms_per_image("cifar10", "dsrnet50"), found.ms_per_image("cifar10", model), ("DSRNet", label), factor)

    return Claim(f"Is DSRNet about {factor:g} times faster than {label} on CIFAR-10?", check, tables=(2,), trained=False)


def _fewest_parameters(_: Findings, __: str) -> str:
    millions = {label: parameters(model, 100) / 1e6 for label, model in zip(LABELS, MODELS, strict=True)}
    others = ", ".join(f"{label} {value:.1f} M" for label, value in millions.items() if label != "DSRNet")
    answer = "yes" if min(millions, key=lambda label: millions[label]) == "DSRNet" else "no"
    return f"{answer}: {millions['DSRNet']:.1f} M against {others} (trainable, 100 classes)"


PAPER = Paper(
    name="luo",
    title="DSRNet: A Novel Feature Extraction Network achieving trade off between accuracy and speed",
    reference="Luo, Kuang, Liu, Ma, DSRNet",
    tables=TABLES,
    figures=FIGURES,
    recipes={
        "plain": "nearest to the paper: SGD at 0.1 falling by ten, crops and flips (the length is our choice)",
        "modern": "same network, same iterations, same augmentation: Muon; not yet chosen by measurement",
    },
    configure=configure,
    claims=(
        _faster_than("resnet50", 5),
        _faster_than("resnext50_32x4d", 3),
        _faster_than("resnet101", 10),
        *(_most_accurate(data) for data in BUDGETS),
        Claim("Has DSRNet the fewest parameters of the five?", _fewest_parameters, figures=(2,), trained=False),
    ),
)
papers.register("luo")(PAPER)
