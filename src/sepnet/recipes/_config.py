"""The whole configuration of a run: network, data, augmentation and training, flat, with the names of the flags.

Order of precedence: defaults < recipe < YAML file < flags. The resolved configuration is saved with the run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from sepnet.data import AugmentConfig
from sepnet.engine import FitConfig, atomic_write
from sepnet.errors import ConfigError, one_line

__all__ = ["TrainConfig", "load_yaml", "merge", "parse_yaml", "save_yaml"]

# what other tools call a setting, where that is too far from its name here to be found as a close match
OTHER_NAMES = {
    "batch": "batch_size",
    "learning_rate": "lr",
    "lr0": "lr",
    "optimizer": "opt",
    "scheduler": "sched",
    "label_smoothing": "smoothing",
    "imgsz": "size",
    "img_size": "size",
    "fliplr": "hflip",
    "steps": "iterations",
    "wd": "weight_decay",
}


# options of a network that are no choice of the user's here
OF_THE_DATA = {
    "num_classes": "leave it away",
    "in_channels": "leave it away",
    "input_size": "for images of another size there is --size",
}
# a setting whose flag has another name
FLAGS = {"model_options": "model_kwargs"}


class _Loader(yaml.SafeLoader):
    """Without anchors: a few lines of them stand for more values than fit into memory, and no configuration needs one.

    A key that stands there twice is refused: the first value would be lost without a word.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("anchors are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"the key {one_line(name)} stands there twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """With quotes around texts that the loader would take for numbers."""


class TrainConfig(FitConfig, AugmentConfig):
    """Everything that decides the result of a run; two runs with equal configurations and data have equal weights."""

    data: str = Field(description="a registered data set, or an image folder")
    model: str = "multiscale_concat"
    model_options: dict[str, Any] = Field(default_factory=dict, description="the network's own options, see sepnet info")
    recipe: str = Field(default="auto", description="name of the recipe the run began from")
    size: int | None = Field(default=None, ge=4, le=1024, description="side of the images in pixels; None: the data set's own")
    augment_until: float = Field(
        default=1.0, ge=0, le=1, description="fraction of the run after which only flips and shifts are left of the augmentation"
    )
    val_fraction: float = Field(default=0.1, ge=0, lt=0.9, description="part of the training data held out for validation")

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's ``true`` would be taken as 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if value is True and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError("it is a number, not a switch")
        return value

    @field_validator("model_options")
    @classmethod
    def _not_the_datas(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, remedy in OF_THE_DATA.items():
            if key in options:
                raise ValueError(f"{key} follows from the data; {remedy}")
        return options


# 1e-3 is a number in YAML 1.2 and for everybody who writes one; PyYAML's 1.1 takes it as text
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def merge(base: TrainConfig, changes: Mapping[str, Any], where: str | None = None) -> TrainConfig:
    """``base`` with ``changes`` over it, validated; options of the network are changed one by one.

    Args:
        where: the file that the changes come from, for the message; None for flags, which it calls by their names.

    Raises:
        ConfigError: an unknown key (offers the close match) or a value that is refused; one line.
    """
    for key in changes:
        if key not in TrainConfig.model_fields:
            close = OTHER_NAMES.get(key) or next(iter(difflib.get_close_matches(str(key), TrainConfig.model_fields, 1, 0.5)), None)
            hint = f"did you mean {close}?" if close else f"keys are: {', '.join(sorted(TrainConfig.model_fields))}"
            raise ConfigError(f"{where or 'settings'}: unknown key '{one_line(key)}'; {hint}")
    values = base.model_dump() | dict(changes)
    if isinstance(changes.get("model_options"), Mapping):
        values["model_options"] = {**base.model_options, **changes["model_options"]}
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "configuration"
        value = f" (got {one_line(first['input'], 60)})" if first["loc"] else ""
        reason = one_line(first["msg"].removeprefix("Value error, "))
        flag = f"--{FLAGS.get(name, name).replace('_', '-')}" if first["loc"] else "flags"
        place = f"{where}: {name}" if where else flag
        raise ConfigError(f"{place}: {reason}{value}") from error


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for. Raises yaml.YAMLError, ValueError or RecursionError."""
    return yaml.load(text, _Loader)


def load_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a configuration file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or is no mapping.
    """
    name = one_line(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {name}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that does not exist
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{name} is not valid YAML: {one_line(reason)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{name} must hold 'key: value' lines, it holds a {type(content).__name__}")
    return content


def save_yaml(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration; ``--config`` reads it back. Raises OutputError."""
    # ASCII: PyYAML does not read back all the Unicode that it writes (line separators)
    text = yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    atomic_write(path, lambda file: file.write(text.encode()))
