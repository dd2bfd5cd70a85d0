"""Recipes by name: functions from facts about the data to a complete configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sepnet.recipes._config import TrainConfig
from sepnet.registry import Registry

__all__ = ["DataFacts", "Recipe", "recipes", "register_recipe"]


@dataclass(frozen=True)
class DataFacts:
    """What a recipe may look at: name, number of training images and classes, image channels and side in pixels; whether the
    classes are characters.
    """

    name: str
    train_images: int
    num_classes: int
    channels: int
    size: int
    characters: bool = False

    @property
    def hflip(self) -> Literal["off", "random"]:
        """Mirrored at random, except characters, which then are others, or none; grey images may well be such."""
        return "off" if self.characters or self.channels == 1 else "random"


Recipe = Callable[[DataFacts], TrainConfig]

recipes: Registry[Recipe] = Registry("recipe", "sepnet.recipes")


def register_recipe(name: str) -> Callable[[Recipe], Recipe]:
    """Decorator: enters a recipe under ``name``."""
    return recipes.register(name)
