"""A paper with one small table on the embedded digits, for the tests of ``reproduce``; not in the registry."""

from __future__ import annotations

from collections.abc import Callable

from sepnet.recipes import Figure, Paper, PaperTable, Published, TrainConfig

RECIPES = {"plain": "plain", "modern": "modern"}
BROKEN = 1e30  # a learning rate whose second loss is not finite


def configure(data: str, model: str, recipe: str, seed: int) -> TrainConfig:
    return TrainConfig(
        data=data,
        model=model,
        model_options={"units": [8, 16]},
        iterations=20,
        batch_size=32,
        eval_every=10,
        seed=seed,
        lr={"plain": 0.05, "modern": 0.1}.get(recipe, BROKEN),
        val_fraction=0.0,
        amp="off",
    )


def lasting(iterations: int) -> Callable[[str, str, str, int], TrainConfig]:
    """``configure`` for runs that last long enough to be interrupted."""
    return lambda *names: configure(*names).model_copy(update={"iterations": iterations})


def small_paper(recipes: dict[str, str] = RECIPES, configure: Callable[[str, str, str, int], TrainConfig] = configure) -> Paper:
    rows = {"multiscale_concat": Published("method 1", 90.0, 70), "mobilenet_units": Published("MobileNet", 80.0, 40)}
    return Paper(
        name="small",
        title="A small paper",
        reference="Nobody 2018",
        tables={1: PaperTable(1, "digits", "digits", rows), 3: PaperTable(3, "absent", "mnist", rows, "there is no reader yet")},
        figures={2: Figure(2, "digits: accuracy against iterations", 1)},
        recipes=recipes,
        configure=configure,
    )
