"""Training and evaluation of a module on loaders: it never sees the name of a network or of a data set."""

from sepnet.engine._step import TrainingStep
from sepnet.engine.checkpoint import atomic_write, check_within_reach, check_writable, load_checkpoint, save_checkpoint
from sepnet.engine.config import FitConfig
from sepnet.engine.devices import check_device, make_fabric, prefers_bf16
from sepnet.engine.evaluate import EvalResult, evaluate
from sepnet.engine.fit import FitResult, Interrupted, Reporter, fit
from sepnet.engine.optim import build_optimizer, parameter_groups
from sepnet.engine.schedule import lr_factor

__all__ = [
    "EvalResult",
    "FitConfig",
    "FitResult",
    "Interrupted",
    "Reporter",
    "TrainingStep",
    "atomic_write",
    "build_optimizer",
    "check_device",
    "check_within_reach",
    "check_writable",
    "evaluate",
    "fit",
    "load_checkpoint",
    "lr_factor",
    "make_fabric",
    "parameter_groups",
    "prefers_bf16",
    "save_checkpoint",
]
