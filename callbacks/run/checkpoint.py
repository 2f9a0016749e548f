"""When checkpoints are written, and which one is the best."""

import math
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from typing_extensions import override


class Checkpoint(lightning_callbacks.Checkpoint):
    """Keeps ``last.ckpt`` to resume from and, with ``monitor``, ``best.ckpt``.

    The last one is written after each validation, at the end, and at the intervals below; the best
    one after a validation whose ``monitor`` beats all before it. Both are replaced in one step, so
    that there always is one. (Lightning's ModelCheckpoint with a monitor does not write
    ``last.ckpt`` unless it is the best, and with an interval of steps compares the metric of a
    validation long past.)

    Args:
        monitor: Name of the logged metric that decides which checkpoint is the best.
        mode: Whether the best value of ``monitor`` is the smallest or the largest one.
        every_n_train_steps: Also save each time this many optimizer steps were taken.
        minutes_between: Also save each time this much time has gone by.
        dirpath: Folder; by default ``checkpoints`` in the run's directory.

    Raises:
        ValueError: if an interval is not positive or, after a validation, if no metric is called
            ``monitor``.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = None,
        minutes_between: float | None = None,
        dirpath: str | None = None,
    ) -> None:
        for name, value in (
            ("every_n_train_steps", every_n_train_steps),
            ("minutes_between", minutes_between),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"checkpoint.{name} must be positive, got {value}; null is never")
        self.monitor, self.mode, self.dirpath = monitor, mode, dirpath
        self.best_model_path = self.last_model_path = ""
        self.best_model_score: float | None = None
        self._every_n_train_steps = every_n_train_steps
        self._seconds_between = 60 * minutes_between if minutes_between else math.inf
        self.last_step = self.best_step = 0
        self._saved_at = time.monotonic()

    @property
    @override
    def state_key(self) -> str:
        return "Checkpoint"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        default = Path(trainer.default_root_dir).absolute() / "checkpoints"
        self.dirpath = trainer.strategy.broadcast(self.dirpath or str(default))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step, self._saved_at = trainer.global_step, time.monotonic()

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        due = self._every_n_train_steps and trainer.global_step % self._every_n_train_steps == 0
        if math.isfinite(self._seconds_between):  # the clock of rank 0 decides for all
            late = time.monotonic() - self._saved_at >= self._seconds_between
            due = trainer.strategy.broadcast(bool(due or late))
        if due and trainer.global_step != self.last_step:
            self._save_last(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor is not None and self._is_best(trainer):
            self.best_model_path, self.best_step = self._path("best"), trainer.global_step
            self._save(trainer, self.best_model_path)
        self._save_last(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self.last_step:
            self._save_last(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        names = ("monitor", "dirpath", "best_model_path", "best_model_score", "last_model_path")
        return {name: getattr(self, name) for name in names}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run resumed in a directory of its own starts with no best checkpoint: the old one stays
        # with the old run. And the best by one metric says nothing about another.
        if (state_dict["dirpath"], state_dict["monitor"]) == (self.dirpath, self.monitor):
            self.__dict__.update(state_dict)

    def _is_best(self, trainer: Trainer) -> bool:
        if self.monitor not in trainer.callback_metrics:
            self._save_last(trainer)  # a slip in a name shall not cost what was trained so far
            names = [name for name in sorted(trainer.callback_metrics) if name.startswith("val/")]
            raise ValueError(
                f"checkpoint.monitor: there is no metric {self.monitor}. Choose among "
                f"{', '.join(names or sorted(trainer.callback_metrics))}, and go on from "
                f"{self.last_model_path}"
            )
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        best = self.best_model_score
        better = best is None or (score < best if self.mode == "min" else score > best)
        if better and not math.isnan(score):
            self.best_model_score = score
            return True
        return False

    def _save_last(self, trainer: Trainer) -> None:
        self.last_model_path = self._path("last")
        self._save(trainer, self.last_model_path)
        self.last_step, self._saved_at = trainer.global_step, time.monotonic()

    def _save(self, trainer: Trainer, path: str) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(path, weights_only=False)  # the optimizer's state too

    def _path(self, name: str) -> str:
        return str(Path(self.dirpath) / f"{name}.ckpt")
