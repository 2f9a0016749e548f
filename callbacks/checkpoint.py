"""When checkpoints are written, and which one counts as the best."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, kept in the run's directory.

    ``last.ckpt`` is always there to resume from. With ``monitor`` set, ``best.ckpt`` is the one
    with the best value of it so far. Both are replaced in one step and never removed first.

    Args:
        monitor: Name of the logged metric that decides which checkpoint is the best.
        mode: Whether the best value of ``monitor`` is the smallest or the largest one.
        every_n_train_steps: Save each time this many optimizer steps were taken.
        every_n_epochs: Save each time this many epochs were completed.
        minutes_between: Save each time this much time has gone by.
        dirpath: Folder; by default ``checkpoints`` in the run's directory.

    Without any of the three intervals, a checkpoint follows each validation.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        minutes_between: float | None = None,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=0 if monitor is None else 1,
            save_last=True,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=minutes_between and timedelta(minutes=minutes_between),
            enable_version_counter=False,
        )

    @property
    @override
    def state_key(self) -> str:
        return (
            "Checkpoint"  # Lightning's changes with the intervals, which a resumed run may change
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        with warnings.catch_warnings():
            # RunDirectory has already made sure that what is there belongs to the resumed run.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run resumed in a directory of its own starts with no best checkpoint: the old one stays
        # with the old run. And the best by one metric says nothing about another.
        if (state_dict["dirpath"], state_dict["monitor"]) == (self.dirpath, self.monitor):
            super().load_state_dict(state_dict)
