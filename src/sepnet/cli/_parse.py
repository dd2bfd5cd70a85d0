"""Values that the command line takes in a form of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sepnet.errors import ConfigError, one_line

__all__ = ["input_shape", "key_values", "listed", "numbers"]

MAX_SIDE = 4096
MAX_CHANNELS = 64


def key_values(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """["units=[32,64]", "residual=false"] -> {"units": [32, 64], "residual": False}; values are YAML.

    Raises:
        ConfigError: a word without "=", a value that is no YAML, or a key given twice.
    """
    import yaml

    from sepnet.recipes import parse_yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{flag} {one_line(pair)}: write KEY=VALUE, e.g. {flag} units=[32,64]")
        if key in values:
            raise ConfigError(f"{flag} {key} is given twice")
        try:
            values[key] = parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{flag} {one_line(pair)}: the value is not valid YAML") from error
    return values


def input_shape(text: str, flag: str) -> tuple[int, int, int]:
    """ "3x32x32" -> (3, 32, 32), channels, height and width.

    Raises:
        ConfigError: another form, or a number out of range.
    """
    match = re.fullmatch(r"(\d{1,18})x(\d{1,18})x(\d{1,18})", text, re.ASCII)
    if not match:
        raise ConfigError(f"{flag} {one_line(text)}: write CHANNELSxHEIGHTxWIDTH, e.g. 3x32x32")
    channels, height, width = (int(number) for number in match.groups())
    if not 1 <= channels <= MAX_CHANNELS or not 1 <= height <= MAX_SIDE or not 1 <= width <= MAX_SIDE:
        raise ConfigError(f"{flag} {one_line(text)}: channels go from 1 to {MAX_CHANNELS}, height and width from 1 to {MAX_SIDE}")
    return channels, height, width


def listed(values: Sequence[str], flag: str) -> list[str]:
    """A repeatable flag that also takes commas: ["plain,modern", "x"] -> ["plain", "modern", "x"].

    Raises:
        ConfigError: the flag is given without any name.
    """
    parts = [part.strip() for value in values for part in value.split(",") if part.strip()]
    if values and not parts:
        raise ConfigError(f"{flag} {one_line(','.join(values))}: it names nothing; leave it away for all")
    return parts


def numbers(values: Sequence[str], flag: str) -> list[int]:
    """``listed``, as whole numbers. Raises ConfigError."""
    parts = listed(values, flag)
    for part in parts:
        if not re.fullmatch(r"\d{1,4}", part, re.ASCII):
            raise ConfigError(f"{flag} {one_line(part)}: give a number, as in {flag} 4")
    return [int(part) for part in parts]
