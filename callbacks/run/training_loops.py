"""Lightning's training loops, with the three changes that an exact end of a run needs.

- A run validates after its last step, whatever the interval between validations.
- A checkpoint can owe a validation. A run that resumes from it validates first, also if no step is
  left to take.
- A run that resumes after its last step still runs `on_train_end`.

Metrics are logged with the number of completed optimizer steps. (Lightning logs the result of the
250th step with step 249.)
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from typing_extensions import override

_VALIDATION_BATCHES = "epoch_loop.val_loop.batch_progress"


class EpochLoop(_TrainingEpochLoop):
    """Validates after the last step of a run, and before the first one if a validation is owed."""

    owes_validation = False

    def validates_next(self) -> bool:
        """Tell whether a validation follows the step that has just been taken."""
        fetcher: Any = self.trainer.fit_loop._data_fetcher
        return self._should_check_val_fx(fetcher) and not self.val_loop.skip

    @override
    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        due = super()._should_check_val_fx(data_fetcher)
        return due or self.owes_validation or (self.trainer.enable_validation and self._is_last())

    def _is_last(self) -> bool:
        fit_loop = self.trainer.fit_loop
        last_epoch = self._num_ready_batches_reached() and _is_max_limit_reached(
            self.trainer.current_epoch + 1, fit_loop.max_epochs or -1
        )
        stopped = self.trainer.should_stop and fit_loop._can_stop_early
        return last_epoch or stopped or _is_max_limit_reached(self.global_step, self.max_steps)

    @override
    def update_restart_stage(self) -> None:
        super().update_restart_stage()
        self.owes_validation = self.val_loop.restarted_mid_evaluation
        if self.owes_validation:
            _level(self.val_loop.batch_progress.total)

    @override
    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        if self.restarting and self.restarted_on_last and self.batch_progress.total.ready:
            # Lightning counts the step of such a checkpoint only where a validation would be due.
            self._batches_that_stepped += not self._should_check_val_fx(data_fetcher)

    @override
    def on_iteration_done(self) -> None:
        super().on_iteration_done()
        self.owes_validation = False


class FitLoop(_FitLoop):
    """Ends a resumed run as an uninterrupted one, also if it resumes after its last step."""

    epoch_loop: EpochLoop

    @property
    @override
    def skip(self) -> bool:
        has_ended = self.restarting and self.max_batches and self.trainer.limit_train_batches
        return False if has_ended else super().skip

    @property
    @override
    def done(self) -> bool:
        return not self.epoch_loop.owes_validation and super().done


class _CompletedSteps(_LoggerConnector):
    @override
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        steps = self.trainer.fit_loop.epoch_loop
        lightnings, steps._batches_that_stepped = (
            steps._batches_that_stepped,
            self.trainer.global_step,
        )
        try:
            super().log_metrics(metrics, step)
        finally:
            steps._batches_that_stepped = lightnings


def use_exact_loops(trainer: Trainer) -> None:
    """Replace a new trainer's loops and its count of logged steps."""
    lightnings = trainer.fit_loop
    loop = FitLoop(trainer, lightnings.min_epochs, lightnings.max_epochs)
    steps = lightnings.epoch_loop
    loop.epoch_loop = EpochLoop(trainer, steps.min_steps, steps.max_steps)
    trainer.fit_loop = loop
    connector = _CompletedSteps(trainer)
    vars(connector).update(vars(trainer._logger_connector))
    trainer._logger_connector = connector


def owing_validation(loops: dict[str, Any]) -> None:
    """Change the state of the loops in a checkpoint so that it owes a validation.

    Args:
        loops: The entry `loops` of a checkpoint that was made when a validation started.
    """
    progress = loops["fit_loop"][_VALIDATION_BATCHES]
    total = progress["total"]
    # To Lightning, this is a validation in which one batch was started and not finished.
    total["ready"] = total["started"] = total["processed"] + 1
    total["completed"] = total["processed"]


def _level(tracker: Any) -> None:
    tracker.ready = tracker.started = tracker.completed = tracker.processed
