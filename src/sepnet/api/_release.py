"""The release of a run: model.safetensors and config.json, all that prediction needs, and nothing that can run code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from sepnet._version import __version__
from sepnet.data import Preprocessing
from sepnet.engine import atomic_write
from sepnet.errors import CheckpointError, ConfigError, UnknownNameError, one_line
from sepnet.models import create_model

__all__ = ["Release", "load_release", "save_release"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Release:
    """A trained network (in evaluation mode, on the CPU), its class names and the preprocessing of its images.

    ``data`` says what it was trained on, with the keys data (name or folder), title, fingerprint, seed and val_fraction;
    ``precision`` in what it was scored ("bf16" or "fp32"), None in releases of older versions.
    """

    model: nn.Module
    model_name: str
    model_options: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    data: dict[str, Any]
    folder: Path
    precision: str | None = None


def save_release(
    folder: Path,
    model: nn.Module,
    *,
    model_name: str,
    model_options: dict[str, Any],
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    data: dict[str, Any],
    precision: str,
) -> None:
    """Write weights and configuration into ``folder``, each atomically. Raises OutputError."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    weights = save(tensors, metadata={"format": "pt"})
    config = {
        "sepnet": __version__,
        "model": model_name,
        "model_options": model_options,
        "classes": list(classes),
        "preprocessing": preprocessing.to_dict(),
        "data": data,
        "precision": precision,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    # surrogates of undecodable class names survive as ASCII escapes
    text = json.dumps(config, indent=1, ensure_ascii=True) + "\n"
    atomic_write(folder / WEIGHTS, lambda file: file.write(weights))
    atomic_write(folder / CONFIG, lambda file: file.write(text.encode()))


def load_release(path: Path) -> Release:
    """Read a run's folder, or the path of its model.safetensors.

    Raises:
        CheckpointError: files missing, cut short or damaged, or weights of another network; one line.
    """
    folder = path.parent if path.name in (WEIGHTS, CONFIG) else path
    config = _read_config(folder)
    weights = folder / WEIGHTS
    try:
        content = weights.read_bytes()
        state = load(content)
    except FileNotFoundError:
        raise CheckpointError(
            f"{one_line(folder)} holds no {WEIGHTS}: the run is not finished, see sepnet train --resume"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{one_line(weights)} is not a whole safetensors file (cut short or damaged)") from error
    try:
        preprocessing = Preprocessing.from_dict(config["preprocessing"])
        classes = tuple(str(c) for c in config["classes"])
        name, options = str(config["model"]), dict(config["model_options"])
        model = create_model(name, num_classes=len(classes), in_channels=preprocessing.channels, **options)
    except (KeyError, TypeError, ValueError, ConfigError, UnknownNameError) as error:
        raise CheckpointError(f"{one_line(folder / CONFIG)} does not describe a network: {one_line(error)}") from error
    _load_weights(model, state, weights, name)
    if config.get("weights_sha256") != hashlib.sha256(content).hexdigest():
        raise CheckpointError(f"{one_line(weights)} holds other weights than {CONFIG} beside it was written with")
    data, precision = config.get("data", {}), config.get("precision")
    return Release(
        model.eval(),
        name,
        options,
        classes,
        preprocessing,
        data if isinstance(data, dict) else {},
        folder,
        precision if precision in ("bf16", "fp32") else None,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        hint = " (a run still in training? see sepnet train --resume)" if (folder / "last.pt").exists() else ""
        raise CheckpointError(f"{one_line(folder)} is not the folder of a finished run: it has no {CONFIG}{hint}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {one_line(path)}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{one_line(path)} is not valid JSON (cut short or damaged)") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{one_line(path)} is not the configuration of a run")
    return config


def _load_weights(model: nn.Module, state: dict[str, Any], path: Path, name: str) -> None:
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        first = f"lacks {missing[0]}" if missing else f"has {extra[0]} too many"
        raise CheckpointError(f"{one_line(path)} holds the weights of another network than {name}: it {one_line(first)}")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{one_line(path)} holds the weights of another network than {name}: "
                f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
            )
    model.load_state_dict(state)
