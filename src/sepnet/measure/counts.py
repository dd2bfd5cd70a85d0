"""Parameters and multiply-accumulates (MACs) of a network, by one forward pass of zeros with hooks on its leaf modules.

MACs are those of convolutions and linear layers, one for each multiplication of a weight with an input value, padding
included; normalisation, activation and pooling are not counted. (A FLOP count by the usual convention is twice that.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepnet.kernels import use

__all__ = ["Counts", "LayerCounts", "count"]


@dataclass(frozen=True)
class LayerCounts:
    """One leaf module: its name, type, output shape (C, H, W) or (C,), trainable parameters and MACs of one image."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """Totals of a network for one image of ``input_shape`` (C, H, W), and a row a layer in the order of execution."""

    input_shape: tuple[int, ...]
    params_trainable: int
    params_total: int
    macs: int
    layers: tuple[LayerCounts, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def _layer_macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
        return per_output * output[0].numel()
    if isinstance(module, nn.Linear):
        return module.in_features * output[0].numel()
    return 0


def count(model: nn.Module, input_shape: tuple[int, int, int]) -> Counts:
    """Count ``model`` on one image of ``input_shape`` (C, H, W). Each module's mode and buffers are left as they were.

    ``params_total`` adds the floating-point buffers (running mean and variance) to the trainable parameters and frozen ones.

    Raises:
        RuntimeError, ValueError: the network does not take such an image.
    """
    rows: list[LayerCounts] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, _: Any, output: Any) -> None:
            params = sum(p.numel() for p in module.parameters() if p.requires_grad)
            rows.append(LayerCounts(name, type(module).__name__, tuple(output.shape[1:]), params, _layer_macs(module, output)))

        return record

    leaves = [(n, m) for n, m in model.named_modules() if next(m.children(), None) is None]
    handles = [m.register_forward_hook(hook(n)) for n, m in leaves]
    # A caller may train with some modules frozen in evaluation mode, so the mode is kept module by module.
    modes = [(m, m.training) for m in model.modules()]
    like = next(model.parameters(), torch.empty(0))
    try:
        model.eval()
        with torch.no_grad(), use("reference"):  # layer by layer, as the network is written
            model(torch.zeros(1, *input_shape, device=like.device, dtype=like.dtype))
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    buffers = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    return Counts(tuple(input_shape), trainable, trainable + frozen + buffers, sum(r.macs for r in rows), tuple(rows))
