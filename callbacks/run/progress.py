"""The progress of a run: a bar in a terminal, regular lines anywhere else."""

import logging
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn
from typing_extensions import override

DRAWN_PER_SECOND = 4
BAR_WIDTH = 16  # characters, so that the metrics fit into a terminal of 100


class Progress(RichProgressBar):
    """Lightning's rich progress bar in a terminal; regular lines in a log file.

    The bar counts the optimizer steps of the whole run. (Lightning's counts the batches of an
    epoch and shows "Epoch 0/-2" if only steps are limited. A thread draws it up to 100 times a
    second, which slows training.)

    Args:
        seconds_between_lines: Time between two lines outside of a terminal.
    """

    def __init__(self, seconds_between_lines: float = 20.0) -> None:
        theme = RichProgressBarTheme(metrics_text_delimiter="  ", metrics_format=",.4g")
        super().__init__(refresh_rate=DRAWN_PER_SECOND, leave=False, theme=theme)
        self.seconds_between_lines = seconds_between_lines
        self._console = Console()
        self._next_line_at = 0.0
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    @property
    def _in_terminal(self) -> bool:
        return self._console is not None and self._console.is_terminal

    @override
    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        description, _, steps, time_left, _ = super().configure_columns(trainer)
        return [description, BarColumn(bar_width=BAR_WIDTH), steps, time_left]

    @property
    @override
    def total_train_batches(self) -> int | float:
        return self.trainer.estimated_stepping_batches

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.rpartition("/")[2].replace("_per_", "/"): v for name, v in metrics.items()}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._in_terminal:
            self.disable()
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.train_progress_bar_id is None:  # all epochs share one bar
            super().on_train_epoch_start(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_progress()  # later output then stands below the bar

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._update(self.train_progress_bar_id, trainer.global_step)
        if self._in_terminal or not trainer.is_global_zero:
            return
        if time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + self.seconds_between_lines
            self._print_line(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        # Outside of fit there are no steps. Asking for their number would load the training data,
        # with a collective that the other processes do not join.
        lines = trainer.state.fn == TrainerFn.FITTING and not self._in_terminal
        if lines and not trainer.sanity_checking and trainer.is_global_zero:
            self._print_line(trainer, pl_module)

    @override
    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        # Rich redirects stderr above its bar, but Lightning's logger keeps the old stream.
        if self.is_enabled and not self._streams:
            for handler in logging.getLogger("lightning.pytorch").handlers:
                if isinstance(handler, logging.StreamHandler):
                    self._streams.append((handler, handler.setStream(sys.stderr)))

    @override
    def _stop_progress(self) -> None:
        super()._stop_progress()
        while self._streams:
            handler, before = self._streams.pop()
            handler.setStream(before)

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        return self.train_description

    def _print_line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = super().get_metrics(trainer, pl_module)  # full names can be searched for
        metrics.pop("v_num", None)
        values = "  ".join(f"{name} {_short(value)}" for name, value in metrics.items())
        total = trainer.estimated_stepping_batches
        print(f"step {trainer.global_step}/{total}  {values}", flush=True)


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
