"""Ends a run before its last step, as an interruption would, but with an export."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAfterTwoSteps(Callback):
    """Stops at the second step; schedules are those of all steps, and a resumed run goes on."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        if trainer.global_step == 2:
            trainer.should_stop = True
