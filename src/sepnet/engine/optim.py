"""Optimisers with their parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sepnet.engine.config import FitConfig
from sepnet.engine.muon import Muon

__all__ = ["build_optimizer", "hidden_matrices", "parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of convolutions and linear layers, decayed; vectors (biases, normalisation), not decayed.

    Each trainable parameter stands in exactly one group, in the order of ``model.parameters()``.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def hidden_matrices(model: nn.Module) -> list[torch.Tensor]:
    """Weights that Muon orthogonalises: of dense convolutions and linear layers, all but the last (the classifier).

    A depthwise kernel is no matrix between channels: it has one row an image channel, and is left out.
    """
    dense = (m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1))
    weights = [m.weight for m in dense if m.weight.requires_grad]
    return list({id(w): w for w in weights[:-1] if w is not weights[-1]}.values())  # one that layers share stands there once


def _muon(model: nn.Module, config: FitConfig) -> Muon:
    hidden = hidden_matrices(model)
    chosen = {id(p) for p in hidden}
    rest = parameter_groups(model, config.weight_decay)
    for group in rest:
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
        group |= {"lr": config.lr, "momentum": config.momentum, "orthogonal": False}
    orthogonal = {
        "params": hidden,
        "lr": config.muon_lr,
        "momentum": config.muon_momentum,
        "weight_decay": config.muon_weight_decay,
        "orthogonal": True,
    }
    return Muon([g for g in [orthogonal, *rest] if g["params"]])


def build_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config`` names, over ``parameter_groups``, each update one pass over a tensor (fused)."""
    if config.opt == "muon":
        return _muon(model, config)
    groups = parameter_groups(model, config.weight_decay)
    if config.opt == "sgd":
        nesterov = config.nesterov and config.momentum > 0  # torch refuses the combination that would change nothing
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
    adam = torch.optim.Adam if config.opt == "adam" else torch.optim.AdamW
    return adam(groups, lr=config.lr, betas=(config.momentum, config.beta2), fused=True)
