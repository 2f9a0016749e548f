"""Ends a run before its last step, as an interruption would, but with an export."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAfterTwoSteps(Callback):
    """Stops at the second step; schedules are those of all steps, and a resumed run goes on."""

    def __init__(self) -> None:
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        # A resumed run is at the second step until it has accumulated all rows of the third.
        if self._first_step == 0 and trainer.global_step == 2:
            trainer.should_stop = True
