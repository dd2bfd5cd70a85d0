"""What a training run needs to know besides the network and the data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = ["FitConfig"]


def _from_yaml_bool(value: object) -> object:
    """YAML reads a bare ``off`` as false and ``on`` as true."""
    return {False: "off", True: "bf16"}[value] if isinstance(value, bool) else value


class FitConfig(BaseModel):
    """Frozen settings of one training run. Fields carry the names of the command line's flags.

    Times are iterations (optimiser steps) or fractions of the run, so that a schedule scales with the budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # length
    epochs: int | None = Field(default=None, ge=1, description="passes over the training data")
    iterations: int | None = Field(default=None, ge=1, description="optimiser steps; goes before epochs")
    batch_size: int = Field(default=128, ge=1, description="images a step, over all processes together")
    seed: int = Field(default=0, ge=0, lt=2**32)

    # optimiser
    opt: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum, or Adam's beta1")
    nesterov: bool = Field(default=True, description="SGD: look ahead by the momentum; without momentum it changes nothing")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Adam's beta2")
    weight_decay: float = Field(default=5e-4, ge=0, description="never on normalisation and biases")
    muon_lr: float = Field(default=0.02, gt=0, description="Muon: lr of the hidden matrices; lr is that of the rest")
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon: momentum of the hidden matrices")
    muon_weight_decay: float = Field(default=0.1, ge=0, description="Muon: of the hidden matrices, decoupled (times lr)")
    clip_grad: float | None = Field(default=None, gt=0, description="largest 2-norm of the whole gradient")

    # schedule
    sched: Literal["constant", "step", "triangular", "cosine"] = "triangular"
    warmup: float = Field(default=0.2, ge=0, lt=1, description="fraction of the run in which lr rises linearly")
    final_lr: float = Field(default=0.0, ge=0, le=1, description="lr at the end, as a fraction of its peak")
    step_at: tuple[float, ...] = Field(default=(0.5, 0.75), description="'step': fractions of the run where lr drops")
    step_gamma: float = Field(default=0.1, gt=0, le=1, description="'step': factor of each drop")

    # loss and averaging
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the moving average of the weights")

    # evaluation and stopping
    eval_every: int | None = Field(default=None, ge=1, description="iterations between evaluations; None: each epoch")
    patience: int | None = Field(default=None, ge=1, description="stop after so many evaluations without a new best")
    keep: Literal["last", "best"] = Field(default="last", description="which weights the run ends with")
    tta: bool = Field(default=False, description="also report accuracy averaged over the flipped image, apart")

    # execution
    amp: Annotated[Literal["auto", "bf16", "off"], BeforeValidator(_from_yaml_bool)] = Field(
        default="auto", description="bf16 arithmetic where the processor has it"
    )
    channels_last: bool = True
    checkpoint_seconds: float = Field(default=20.0, ge=0, description="least time between two checkpoints")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(not 0 < at < 1 for at in self.step_at) or list(self.step_at) != sorted(self.step_at):
            raise ValueError(f"step_at must ascend between 0 and 1, got {self.step_at}")
        return self

    def total_iterations(self, batches_per_epoch: int) -> int:
        """Length of the run in optimiser steps: ``iterations``, else ``epochs`` passes, else 10 passes."""
        if self.iterations is not None:
            return self.iterations
        return (self.epochs or 10) * batches_per_epoch
