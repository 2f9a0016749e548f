"""The schedule of checkpoints, and the choice of the best one."""

import copy
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from typing_extensions import override

from triptych.callbacks.run.interruption import Interrupted, Interruption
from triptych.callbacks.run.training_loops import EpochLoop, owing_validation
from triptych.callbacks.trainer_parts import num_dry_run_batches

LARGE = ("state_dict", "optimizer_states")  # entries that a validation leaves as they are


class Checkpoint(lightning_callbacks.Checkpoint):
    """Keeps ``last.ckpt`` to resume from and, with ``monitor``, ``best.ckpt``.

    The last one is written after each validation, at the end, and at the intervals below. The best
    one is written after a validation in which ``monitor`` beats all earlier values. Both are
    replaced in one step, so one is always there. (Lightning's ModelCheckpoint with a monitor writes
    ``last.ckpt`` only if it is the best, and with an interval of steps it compares the metric of an
    earlier validation.)

    A checkpoint between a step and its validation owes that validation: a run that resumes from it
    validates first. After Ctrl-C or SIGTERM the run ends with the checkpoint of the step in
    progress. In the middle of a validation it ends at once, with the checkpoint of the step before
    the validation; several processes finish the validation first.

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
        minutes_between: PositiveFloat | None = 10.0,
        dirpath: str | None = None,
    ) -> None:
        self.monitor, self.mode, self.dirpath = monitor, mode, dirpath
        self.best_model_path = self.last_model_path = ""
        self.best_model_score: float | None = None
        self._every_n_train_steps = every_n_train_steps
        self._seconds_between = 60 * minutes_between if minutes_between else math.inf
        self.last_step = self.best_step = 0
        self._saved_at = time.monotonic()
        self.interruption = Interruption()  # without handlers, no signal arrives
        self._is_due = self._owes_validation = self._leaves = False
        self._unvalidated: dict[str, Any] | None = None
        self._trainer: Trainer | None = None
        self._earlier_metrics: dict[str, float] = {}

    @property
    @override
    def state_key(self) -> str:
        return "Checkpoint"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        default = Path(trainer.default_root_dir).absolute() / "checkpoints"
        self.dirpath = trainer.strategy.broadcast(self.dirpath or str(default))
        self._trainer = trainer

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step, self._saved_at = trainer.global_step, time.monotonic()
        for metrics in (trainer.logged_metrics, trainer.callback_metrics):
            for name, value in self._earlier_metrics.items():
                metrics.setdefault(name, torch.tensor(value, dtype=torch.float64))
        self.interruption.install()  # Lightning has set its own handler of SIGTERM

    @override
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._leaves:
            self.interruption.leave()
        self.interruption.waits = True

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # accumulated gradients are in no checkpoint
        every = self._every_n_train_steps
        due = bool(every and trainer.global_step % every == 0)
        due |= time.monotonic() - self._saved_at >= self._seconds_between
        due |= self.interruption.signum is not None
        # Clocks and signals differ between processes.
        self._is_due = trainer.strategy.reduce_boolean_decision(due, all=False)
        self._leaves = self._is_due and self._is_interrupted(trainer)
        if self._is_due and trainer.global_step != self.last_step:
            loop = trainer.fit_loop.epoch_loop
            if isinstance(loop, EpochLoop) and loop.validates_next():
                return  # `on_validation_start` saves
            self._save_last(trainer)
        self._is_due = False

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        exact = isinstance(trainer.fit_loop.epoch_loop, EpochLoop)  # it makes up for a validation
        if trainer.fit_loop._should_accumulate() or not exact:
            return
        self._owes_validation = True
        if self._is_due:
            self._save_last(trainer)
            if self._leaves:
                self.interruption.leave()
        if trainer.world_size == 1 and not num_dry_run_batches(trainer):
            state: Any = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            self._unvalidated = {
                name: value if name in LARGE else copy.deepcopy(value)
                for name, value in state.items()
            }
            self.interruption.waits = False
        self._owes_validation = self._is_due = False

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor is not None and self._is_best(trainer):
            self.best_model_path, self.best_step = self._path("best"), trainer.global_step
            self._save(trainer, self.best_model_path)
        self._save_last(trainer)
        self._unvalidated = None
        if not trainer.fit_loop._should_accumulate() and self._is_interrupted(trainer):
            self.interruption.leave()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self.last_step:
            self._save_last(trainer)
        if self._is_interrupted(trainer):
            self.interruption.leave()
        self.interruption.waits = False

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, Interrupted) and self._unvalidated is not None:
            self.last_model_path = self._path("last")
            trainer.strategy.save_checkpoint(self._unvalidated, self.last_model_path)
            self.last_step = trainer.global_step

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._owes_validation:
            owing_validation(checkpoint["loops"])

    @override
    def state_dict(self) -> dict[str, Any]:
        names = ("monitor", "dirpath", "best_model_path", "best_model_score", "last_model_path")
        return {name: getattr(self, name) for name in names} | {"metrics": self._metrics()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self._earlier_metrics = state.pop("metrics", {})
        # A run resumed in a new directory starts without a best checkpoint: the old one stays with
        # the old run. Nor is the best checkpoint by one metric the best by another.
        if (state["dirpath"], state["monitor"]) == (self.dirpath, self.monitor):
            self.__dict__.update(state)

    def _metrics(self) -> dict[str, float]:
        """Return the last values, which the summary of a resumed run would else lack."""
        if self._trainer is None:
            return {}
        metrics = {**self._trainer.logged_metrics, **self._trainer.callback_metrics}
        return {name: float(value) for name, value in metrics.items()}

    def _is_interrupted(self, trainer: Trainer) -> bool:
        """Tell whether a signal has arrived at any process, and let all processes know it."""
        if trainer.world_size > 1:
            own = torch.tensor(
                self.interruption.signum or 0,
                device=trainer.strategy.root_device,
                dtype=torch.int64,
            )
            self.interruption.signum = int(trainer.strategy.reduce(own, reduce_op="max")) or None
        return self.interruption.signum is not None

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
