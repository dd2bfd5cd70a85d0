"""One optimiser step on one batch: what the training loop repeats, and what the estimate of its time measures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sepnet.engine._graph import WARM_UP, GraphedStep, Step
from sepnet.engine._recorded import RECORD_AFTER, RecordedStep, takes_rates_as_tensors
from sepnet.engine.config import FitConfig
from sepnet.engine.devices import Fabric, keep_large_buffers
from sepnet.engine.ema import Ema
from sepnet.engine.loss import classification_loss
from sepnet.engine.optim import build_optimizer

__all__ = ["TrainingStep"]


class TrainingStep:
    """Forward pass, loss, backward pass, update of weights and of their average.

    In a run of one process the step is recorded after the first few calls: on a GPU as a CUDA graph, on a CPU as a list of
    operations, whose last is the update, but for Muon's.

    Args:
        model: (B, C, H, W) -> logits, or a tuple of them, see ``classification_loss``; brought to the fabric's device and into
            the memory layout of ``config``.

    Attributes:
        model, wrapped: the network, and the same as Fabric set it up.
        ema: the moving average of its weights, None without.
        warm_up: calls until a step takes the time that it will take from then on.
    """

    def __init__(self, model: nn.Module, config: FitConfig, fabric: Fabric) -> None:
        keep_large_buffers()
        self.config, self.fabric = config, fabric
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.wrapped, self.optimizer = fabric.setup(model, build_optimizer(model, config))
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = Ema(model, config.ema) if config.ema else None
        self.warm_up = 2
        self._update: Step = self._compute
        self._gradients: Step = self._differentiate
        if fabric.world_size == 1 and fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # every batch has the same shape
            self._update = GraphedStep(self._compute, self.optimizer, fabric.device)
            self.warm_up = WARM_UP + 2
        elif fabric.world_size == 1 and fabric.device.type == "cpu":
            if takes_rates_as_tensors(self.optimizer):
                self._update = RecordedStep(self._compute, self, self.wrapped, self.optimizer, updates=True)
            else:
                self._gradients = RecordedStep(self._differentiate, self, self.wrapped, self.optimizer, updates=False)
            self.warm_up = RECORD_AFTER + 2

    def __call__(self, x: Tensor, y: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Train by one batch at ``factor`` of the peak learning rates; its mean loss, and how many images it got right.

        Labels are class numbers (B,), or probabilities (B, classes), of which the most probable is the right one.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        loss, hits = self._update(x, y)
        if self.ema:
            self.ema.update(self.model)
        return loss, hits

    def _compute(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, hits = self._gradients(x, y)
        if self.config.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad, foreach=True)
        self.optimizer.step()
        return loss, hits

    def _differentiate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both passes: the gradients are left in the parameters."""
        loss, logits = classification_loss(self.wrapped(x), y, self.config.smoothing)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        right = y if y.ndim == 1 else y.argmax(1)
        return loss.detach(), (logits.detach().argmax(1) == right).sum()
