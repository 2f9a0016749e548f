"""The schedule of checkpoints, and the choice of the best one."""

import math
import time
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from typing_extensions import override

from triptych.callbacks.trainer_parts import num_dry_run_batches


class Checkpoint(lightning_callbacks.Checkpoint):
    """Keeps ``last.ckpt`` to resume from and, with ``monitor``, ``best.ckpt``.

    The last one is written after each validation, at the end, and at the intervals below. The best
    one is written after a validation in which ``monitor`` beats all earlier values. Both are
    replaced in one step, so one is always there. (Lightning's ModelCheckpoint with a monitor writes
    ``last.ckpt`` only if it is the best, and with an interval of steps it compares the metric of an
    earlier validation.)

    Args:
        monitor: Name of the logged metric that decides which checkpoint is the best.
        mode: Whether the best value of ``monitor`` is the smallest or the largest one.
        every_n_train_steps: Also save after every n optimizer steps; null: never.
        minutes_between: Also save when this much time has passed; null: never.
        dirpath: Folder; by default ``checkpoints`` in the run's directory.

    Raises:
        ValueError: after a validation, if no metric is called ``monitor``.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: PositiveInt | None = None,
        minutes_between: PositiveFloat | None = None,
        dirpath: str | None = None,
    ) -> None:
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
        # A run resumed in a new directory starts without a best checkpoint: the old one stays with
        # the old run. Nor is the best checkpoint by one metric the best by another.
        if (state_dict["dirpath"], state_dict["monitor"]) == (self.dirpath, self.monitor):
            self.__dict__.update(state_dict)

    def _is_best(self, trainer: Trainer) -> bool:
        if self.monitor not in trainer.callback_metrics:
            self._save_last(trainer)  # a typo must not lose the training so far
            names = [name for name in sorted(trainer.callback_metrics) if name.startswith("val/")]
            raise ValueError(
                f"checkpoint.monitor: there is no metric {self.monitor}. Choose among "
                f"{', '.join(names or sorted(trainer.callback_metrics))}, and resume from "
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
        if not num_dry_run_batches(trainer):
            trainer.save_checkpoint(path, weights_only=False)  # the optimizer's state too

    def _path(self, name: str) -> str:
        assert self.dirpath is not None  # known since `setup`
        return str(Path(self.dirpath) / f"{name}.ckpt")
