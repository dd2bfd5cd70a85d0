"""The training loop: crash-safe, resumable to the bit, the same for one process and for several.

Everything random is a function of (seed, iteration) or saved with the checkpoint, so a run that was killed and resumed
ends with the weights of one that was not (same machine, same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from sepnet.engine._history import Row, write_history
from sepnet.engine._interrupt import StopRequest
from sepnet.engine._meter import Meter
from sepnet.engine._step import TrainingStep
from sepnet.engine.checkpoint import load_checkpoint, remove_leftovers, save_checkpoint
from sepnet.engine.config import FitConfig
from sepnet.engine.devices import Fabric
from sepnet.engine.evaluate import Batches, EvalResult, evaluate
from sepnet.engine.schedule import lr_factor
from sepnet.errors import CheckpointError, NonFiniteLossError, one_line

__all__ = ["FitResult", "Interrupted", "Reporter", "TrainBatches", "fit"]


class TrainBatches(Protocol):
    """Random access to the batches of a run: ``batch(i)`` depends on i and the loader's seed alone."""

    @property
    def batches_per_epoch(self) -> int:
        """Optimiser steps in one pass."""
        ...

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """This process's share of batch ``iteration``: float32 (b, C, H, W); int64 (b,), or float32 (b, classes)."""
        ...


class Reporter(Protocol):
    """What the loop tells of its progress; called in the first process only."""

    def start(self, done: int, total: int) -> None:
        """Training begins at iteration ``done`` of ``total``."""

    def step(self, iteration: int, loss: float, accuracy: float, images_per_s: float) -> None:
        """About ten times a second: means of loss and top-1 percent since the last call."""

    def scoring(self, images: int, stopping: bool = False) -> None:
        """After each batch of an evaluation: images scored so far by this process, and whether the run was asked to stop."""

    def evaluated(self, row: Row) -> None:
        """After each evaluation, with the row that metrics.csv gets."""

    def end(self) -> None:
        """Training is over, or was left by an exception; comes once more after an evaluation that follows."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run is saved at ``iteration``."""

    def __init__(self, iteration: int, checkpoint: Path | None) -> None:
        self.iteration = iteration
        self.checkpoint = checkpoint
        super().__init__(f"interrupted at iteration {iteration}")


@dataclass
class FitResult:
    """The finished run: the module, in evaluation mode, holds the final weights (the average's, with EMA; the best, with
    keep="best"), and ``last`` their scores.
    """

    model: nn.Module
    iterations: int
    history: list[Row]
    last: EvalResult | None
    seconds: float
    best_iteration: int | None = None


class _State(BaseModel):
    """What a checkpoint holds in numbers; validated when it is read."""

    iteration: int = Field(default=0, ge=0)
    seconds: float = 0.0
    history: list[Row] = []
    best: float | None = None
    best_loss: float = math.inf
    best_iteration: int | None = None
    stale: int = 0


def fit(
    model: nn.Module,
    loader: TrainBatches,
    config: FitConfig,
    *,
    fabric: Fabric,
    num_classes: int,
    evaluation: Batches | None = None,
    run_dir: Path | None = None,
    identity: dict[str, str] | None = None,
    earlier: dict[str, str] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> FitResult:
    """Train ``model`` on ``loader`` and return it with its history.

    Args:
        model: (B, C, H, W) -> logits (B, num_classes); while training maybe a tuple, see ``classification_loss``.
        evaluation: split scored every ``config.eval_every`` iterations and at the end; needed for patience and keep="best".
        run_dir: where last.pt and metrics.csv go; None keeps nothing on disk.
        identity: what must be equal for a checkpoint to be resumed (network, data fingerprint, ...), compared key by key; the
            length of the run and the optimiser are added to it.
        earlier: what keys of ``identity`` had in checkpoints from before there were such keys.
        resume: continue from ``run_dir``/last.pt; a missing one is an error.

    Raises:
        CheckpointError: resuming from a checkpoint that is damaged or belongs to another run.
        NonFiniteLossError: the loss or a weight became NaN or infinite; the last good checkpoint stays.
        OutputError: a checkpoint cannot be written; the earlier one stays.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    return _Run(model, loader, config, fabric, num_classes, evaluation, run_dir, identity or {}, earlier or {}, reporter).run(
        resume
    )


class _Run:
    """One call of ``fit``."""

    def __init__(
        self,
        model: nn.Module,
        loader: TrainBatches,
        config: FitConfig,
        fabric: Fabric,
        num_classes: int,
        evaluation: Batches | None,
        run_dir: Path | None,
        identity: dict[str, str],
        earlier: dict[str, str],
        reporter: Reporter | None,
    ) -> None:
        if evaluation is None and (config.patience or config.keep == "best"):
            raise ValueError("patience and keep='best' need a split to evaluate on")
        self.config, self.fabric, self.loader = config, fabric, loader
        self.num_classes, self.evaluation, self.run_dir = num_classes, evaluation, run_dir
        self.reporter = reporter if fabric.is_global_zero else None
        self.total = config.total_iterations(loader.batches_per_epoch)
        self.earlier = earlier
        self.identity = {**identity, "length": f"{self.total} iterations", "optimiser": config.opt}
        self.eval_every = config.eval_every or loader.batches_per_epoch
        self.step = TrainingStep(model, config, fabric)
        self.model, self.wrapped, self.optimizer = self.step.model, self.step.wrapped, self.step.optimizer
        self.ema = self.step.ema
        self.state = _State()
        self.meter = Meter()
        self.best_weights: dict[str, Tensor] | None = None
        self.last_eval: EvalResult | None = None
        self.stop = StopRequest()
        self.good: Path | None = None  # the checkpoint that this run has written or begun from

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, resume: bool) -> FitResult:
        if self.run_dir is not None and self.fabric.is_global_zero:
            remove_leftovers(self.run_dir)
        torch.manual_seed(self.config.seed)  # dropout; its state travels in the checkpoint
        if resume:
            self._restore()
        with self._reporting(), self.stop:
            self._train()
        self._finish()
        state = self.state
        return FitResult(self.model, state.iteration, state.history, self.last_eval, state.seconds, state.best_iteration)

    def _train(self) -> None:
        state, meter, every = self.state, self.meter, self.config.checkpoint_seconds
        saved = shown = clock = time.monotonic()
        base = state.seconds
        self.wrapped.train()
        while not self._ended():
            loss, hits, images = self._step(state.iteration)
            state.iteration += 1
            meter.add(loss, hits, images)
            now = time.monotonic()
            state.seconds = base + now - clock
            stopping, due = self._agree(self.stop.requested, now - saved >= every, loss)
            if self.reporter and now - shown >= 0.1:
                self.reporter.step(state.iteration, *meter.since_shown(), meter.images_per_s(now - clock))
                shown = now
            if state.iteration % self.eval_every == 0 or state.iteration == self.total:
                self._evaluate()
                state.seconds = base + time.monotonic() - clock
                # what was asked for during a long evaluation; after the last one nobody else would look
                stopping = stopping or self._agree(self.stop.requested, False, loss)[0]
            if self._ended() or stopping or due:
                self._save()
                saved = time.monotonic()
            if stopping and not (self._ended() and self.run_dir is None):  # which would throw away all that is done
                raise Interrupted(state.iteration, self._path("last.pt") if self.run_dir else None)

    def _ended(self) -> bool:
        patience = self.config.patience
        return self.state.iteration >= self.total or (patience is not None and self.state.stale >= patience)

    def _step(self, iteration: int) -> tuple[Tensor, Tensor, int]:
        x, y = self.loader.batch(iteration)
        loss, hits = self.step(x, y, lr_factor(self.config, iteration, self.total))
        return loss, hits, len(y)

    def _evaluate(self) -> None:
        """Add a row to the history."""
        state, config = self.state, self.config
        loss, accuracy = self.meter.end_row(self.fabric)
        if not math.isfinite(loss):  # on an accelerator the steps are not looked at one by one
            self._not_finite(f"the loss became {loss}")
        row: Row = {
            "iteration": state.iteration,
            "epoch": round(state.iteration / self.loader.batches_per_epoch, 3),
            "lr": config.lr * lr_factor(config, state.iteration - 1, self.total),
            "train_loss": loss,
            "train_accuracy": accuracy,
        }
        self._share_buffers()
        if self.evaluation is not None:
            result = self.last_eval = self._score(self._scored(), self.evaluation)
            if not math.isfinite(result.loss):
                self._not_finite(f"the evaluation's loss became {result.loss}")
            row |= {"eval_loss": result.loss, "eval_accuracy": result.accuracy}
            if config.tta:
                row["eval_accuracy_tta"] = result.accuracy_tta
            self._track_best(result)
        row["seconds"] = round(state.seconds, 2)
        state.history.append(row)
        if self.run_dir and self.fabric.is_global_zero:
            write_history(self._path("metrics.csv"), state.history)
        if self.reporter:
            self.reporter.evaluated(row)

    def _track_best(self, result: EvalResult) -> None:
        """The highest accuracy is the best; among equals, which are many on a small split, the lowest loss."""
        state = self.state
        if state.best is not None and (result.accuracy, -result.loss) <= (state.best, -state.best_loss):
            state.stale += 1
            return
        state.best, state.best_loss, state.best_iteration, state.stale = result.accuracy, result.loss, state.iteration, 0
        if self.config.keep == "best":
            self.best_weights = {name: t.clone() for name, t in self._scored().state_dict().items()}

    def _finish(self) -> None:
        """Put the weights that the run ends with into the module, and see that ``last_eval`` is theirs."""
        if self.best_weights is not None and self.state.best_iteration != self.state.iteration:
            self.model.load_state_dict(self.best_weights)
            self.last_eval = None
        elif self.ema:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.model.eval()
        if self.last_eval is None and self.evaluation is not None:
            self.last_eval = self._score(self.model, self.evaluation)

    def _score(self, model: nn.Module, split: Batches) -> EvalResult:
        return evaluate(model, split, self.num_classes, self.fabric, tta=self.config.tta, progress=self._scoring)

    def _scoring(self, images: int) -> None:
        if self.reporter:
            self.reporter.scoring(images, self.stop.requested)

    def _scored(self) -> nn.Module:
        return self.ema.module if self.ema else self.model

    def _networks(self) -> list[nn.Module]:
        return [self.model, self.ema.module] if self.ema else [self.model]

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        assert self.run_dir is not None
        return self.run_dir / name

    def _save(self) -> None:
        """Write last.pt. Every process must call it; the first one writes."""
        row = self.meter.row(self.fabric)
        self._check_finite()
        if self.run_dir is None or not self.fabric.is_global_zero:
            return
        content: dict[str, Any] = {
            "identity": self.identity,
            "state": self.state.model_dump(),
            "row": row,
            "model": self.model.state_dict(),
            "best_model": self.best_weights,
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.fabric.device.type == "cuda":
            content["rng_cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        save_checkpoint(self._path("last.pt"), content)
        self.good = self._path("last.pt")

    def _restore(self) -> None:
        if self.run_dir is None:
            raise ValueError("resume needs run_dir")
        path = self._path("last.pt")
        # read by the first process, handed to the others: they may not share its disk
        saved: dict[str, Any] = self.fabric.broadcast(load_checkpoint(path) if self.fabric.is_global_zero else {})
        self._check_identity(saved.get("identity"))
        try:
            self.state = _State.model_validate(saved["state"])
            self.meter = Meter(saved["row"])
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.best_weights = saved["best_model"]
            if self.ema:
                self.ema.load_state_dict(saved["ema"])
            torch.set_rng_state(saved["rng"])
            if "rng_cuda" in saved and self.fabric.device.type == "cuda":
                torch.cuda.set_rng_state(saved["rng_cuda"], self.fabric.device)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = one_line(" ".join(str(error).split()))
            raise CheckpointError(f"{one_line(path)} does not fit this network and optimiser: {reason}") from error
        self.good = path

    def _check_identity(self, saved: object) -> None:
        name = one_line(self._path("last.pt"))
        if not isinstance(saved, dict):
            raise CheckpointError(f"{name} is not the checkpoint of a training run")
        for key, now in self.identity.items():
            before = saved.get(key, self.earlier.get(key))
            if before != now:
                raise CheckpointError(
                    f"{name} was trained with {key} {one_line(before)}, this run has {key} {one_line(now)}: "
                    "resume with the same, or choose another --output"
                )

    def _check_finite(self) -> None:
        """A checkpoint must not replace a good one with weights that nothing can be done with."""
        for module in self._networks():
            for name, value in module.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    self._not_finite(f"{name} is no longer finite")

    def _not_finite(self, what: str) -> NoReturn:
        kept = f"; the last good checkpoint is {one_line(self.good)}" if self.good else ""
        raise NonFiniteLossError(
            f"{what} at iteration {self.state.iteration}: lower --lr, lengthen --warmup or set --clip-grad{kept}"
        )

    # --- several processes ----------------------------------------------------------------------------------------

    def _agree(self, stop: bool, due: bool, loss: Tensor) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether a checkpoint is due by the first one's clock: for all the same.

        Raises NonFiniteLossError in all of them when the loss of one is not finite. A single process on an accelerator looks at
        the loss when the history gets a row: every look would wait for the device.
        """
        several = self.fabric.world_size > 1
        bad = mine = (several or loss.device.type == "cpu") and not math.isfinite(float(loss))
        if several:
            flags = torch.tensor([stop, due and self.fabric.is_global_zero, mine], dtype=torch.float32, device=self.fabric.device)
            summed: Any = self.fabric.all_reduce(flags, reduce_op="sum")
            stop, due, bad = (summed > 0).tolist()
        if bad:
            self._not_finite(f"the loss became {float(loss)}" if mine else "the loss of another process is not finite")
        return stop, due

    def _share_buffers(self) -> None:
        """Give every process the running statistics of the first: those are what is scored, saved and resumed."""
        if self.fabric.world_size > 1:
            for module in self._networks():
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        if self.reporter:
            self.reporter.start(self.state.iteration, self.total)
        try:
            yield
        finally:
            if self.reporter:
                self.reporter.end()
