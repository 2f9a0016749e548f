"""Stops a run with a non-finite loss before it overwrites a good checkpoint."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.trainer_parts import datamodule_of
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.models.sharding import local
from triptych.protocols import NamesSources


class NonFiniteError(ArithmeticError):
    """A loss or a parameter has become NaN or infinite."""


class NanGuard(Callback):
    """Raises at the first loss that is NaN or infinite, on every process at once.

    The loss is checked before its backward pass, so it never reaches the parameters. A finite loss
    can still have a non-finite gradient, so the parameters are checked before each checkpoint, and
    a broken one is not written.

    Reading the loss synchronises host and device once per micro-batch.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        value = loss.detach()
        if _all_finite(trainer, value):
            return
        raise NonFiniteError(
            f"The loss is {float(value)} at step {trainer.global_step}{self._source(trainer)}. "
            f"{_last_good_checkpoint(trainer)} A smaller learning rate, a longer warm-up or "
            "gradient clipping usually helps."
        )

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        broken = _first_broken(pl_module)
        if _on_all_ranks(trainer, broken is None):
            return
        raise NonFiniteError(
            f"The parameter {broken or 'of another process'} is not finite at step "
            f"{trainer.global_step}: no checkpoint was written. {_last_good_checkpoint(trainer)}"
        )

    def _source(self, trainer: Trainer) -> str:
        """Name the sources of the batch, if batch and datamodule know them."""
        data = datamodule_of(trainer)
        if not isinstance(data, NamesSources) or not isinstance(self._batch, dict):
            return ""
        if "source_ids" not in self._batch:
            return ""
        names = data.source_names
        present = self._batch["source_ids"].unique().tolist()
        return f", on a batch from {', '.join(names[i] for i in present)}"


def _first_broken(module: LightningModule) -> str | None:
    """Name a parameter that is not finite, by one wait for a device."""
    finite: dict[torch.device, dict[str, Tensor]] = {}
    for name, parameter in module.named_parameters():
        flag = torch.isfinite(local(parameter)).all()
        finite.setdefault(flag.device, {})[name] = flag
    for flags in finite.values():
        answers = torch.stack([*flags.values()]).tolist()
        for name, is_finite in zip(flags, answers, strict=True):
            if not is_finite:
                return name
    return None


def _all_finite(trainer: Trainer, loss: Tensor) -> bool:
    """Return whether the loss is finite on all ranks, by one collective and one wait."""
    if trainer.world_size == 1:
        return math.isfinite(loss)
    return not sum_over_ranks(trainer, (~torch.isfinite(loss)).int())


def _on_all_ranks(trainer: Trainer, decision: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(decision, all=True)


def _last_good_checkpoint(trainer: Trainer) -> str:
    """Name the last good checkpoint.

    A checkpoint of this very step may be broken: this is the first loss after it.
    """
    checkpoint, paths = trainer.checkpoint_callback, list[str]()
    if isinstance(checkpoint, Checkpoint):
        steps = {
            checkpoint.last_model_path: checkpoint.last_step,
            checkpoint.best_model_path: checkpoint.best_step,
        }
        paths = [path for path in steps if path and Path(path).exists()]
        good = [path for path in paths if steps[path] < trainer.global_step]
        if good:
            return f"The last good checkpoint is {good[0]}."
    if paths:
        return (
            f"The checkpoint {paths[0]} is of this very step: resuming from it may fail again at "
            "once."
        )
    started = f"; this run began with {trainer.ckpt_path}" if trainer.ckpt_path else ""
    return f"No checkpoint had been written yet{started}."
