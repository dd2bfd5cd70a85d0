"""The settings that the papers' ``modern`` recipes share: Muon with a triangular schedule and label smoothing."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["MUON", "MUON_FOR_LONG", "MUON_WITHOUT_NORM"]

# chosen for wang2018's networks on a validation split, see LOG.md
MUON: Final[dict[str, Any]] = {
    "opt": "muon",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "muon_lr": 0.02,
    "muon_momentum": 0.95,
    "muon_weight_decay": 0.1,
    "sched": "triangular",
    "warmup": 0.2,
    "smoothing": 0.1,
}
# in a long run weights that are normalised come to turn by some sqrt(2 x rate x decay) a step (Kosson et al. 2023): a tenth of the
# decay. Chosen for separable_cnn with augmentation on a validation split (LOG.md); without augmentation it overfits more
MUON_FOR_LONG: Final[dict[str, Any]] = MUON | {"muon_weight_decay": 0.01}
# networks without batch normalisation do not forget the size of their weights: a quarter of the rates; not measured
MUON_WITHOUT_NORM: Final[dict[str, Any]] = MUON | {"lr": 0.0125, "muon_lr": 0.005}
