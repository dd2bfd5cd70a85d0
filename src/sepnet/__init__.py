"""Small, fast image classifiers of depthwise-separable convolutions.

    import sepnet

    run = sepnet.train("digits")
    model = sepnet.create_model("multiscale_concat", num_classes=10)

Names are imported on first use, so that ``import sepnet`` (and ``sepnet --help``) does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sepnet._version import __version__

if TYPE_CHECKING:
    from sepnet.api import compare, evaluate, load_release, predict, reproduce, train
    from sepnet.data import load_dataset
    from sepnet.models import create_model, list_models

__all__ = [
    "__version__",
    "compare",
    "create_model",
    "evaluate",
    "list_models",
    "load_dataset",
    "load_release",
    "predict",
    "reproduce",
    "train",
]

_HOMES = {
    "create_model": "sepnet.models",
    "list_models": "sepnet.models",
    "load_dataset": "sepnet.data",
    "compare": "sepnet.api",
    "evaluate": "sepnet.api",
    "load_release": "sepnet.api",
    "predict": "sepnet.api",
    "reproduce": "sepnet.api",
    "train": "sepnet.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sepnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
