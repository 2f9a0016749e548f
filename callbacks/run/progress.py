"""The progress of a run: a bar in a terminal, regular lines anywhere else.

Validation prints its numbers as they are made, in both.
"""

import logging
import sys
import time
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn
from typing_extensions import override

from triptych.callbacks.run.summary_table import in_order
from triptych.protocols import HasHeadline

DRAWN_PER_SECOND = 4
BAR_WIDTH = 16  # characters, so that the metrics fit into a terminal of 100
MOST_VALUES = 6  # of a validation, in one line


class Progress(RichProgressBar):
    """Lightning's rich progress bar in a terminal; regular lines in a log file.

    The bar counts the optimizer steps of the whole run. (Lightning's counts the batches of an
    epoch and shows "Epoch 0/-2" if only steps are limited. A thread draws it up to 100 times a
    second, which slows training.) A line has the time of day, the step, and the time that is left.

    Args:
        seconds_between_lines: Time between two lines outside of a terminal.
    """

    def __init__(self, seconds_between_lines: float = 20.0) -> None:
        theme = RichProgressBarTheme(metrics_text_delimiter="  ", metrics_format=",.4g")
        super().__init__(refresh_rate=DRAWN_PER_SECOND, leave=False, theme=theme)
        self.seconds_between_lines = seconds_between_lines
        self._console = Console()
        self._next_line_at = 0.0
        self._began = (0.0, 0)  # time and step
        self._headline: dict[str, float] = {}
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
        shown = {name.rpartition("/")[2].replace("_per_", "/"): v for name, v in metrics.items()}
        return shown | self._headline

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._in_terminal:
            self.disable()
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = (time.monotonic(), trainer.global_step)

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
        is_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not is_fit or not trainer.is_global_zero:
            return
        headline = pl_module.headline_metrics if isinstance(pl_module, HasHeadline) else ()
        logged = {n: v for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        values = {name: float(logged[name]) for name in in_order(logged, headline)[:MOST_VALUES]}
        for name, value in list(values.items())[:1]:
            self._headline = {name.rpartition("/")[2].replace("_per_", "/"): value}
        line = f"{self._place(trainer)}  validation  {_in_words(values)}"
        if self._in_terminal and self.is_enabled and self.progress is not None:
            self.progress.console.print(line, highlight=False)  # above the bar
        elif not self._in_terminal:
            print(line, flush=True)

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
        print(f"{self._place(trainer)}  {_in_words(metrics)}", flush=True)

    def _place(self, trainer: Trainer) -> str:
        """Return the time of day, the step, and the time that is left."""
        total, step = trainer.estimated_stepping_batches, trainer.global_step
        began, first = self._began
        text = f"{datetime.now():%H:%M:%S}  step {step}/{total}"
        if step <= first or total == float("inf"):
            return text
        left = (time.monotonic() - began) / (step - first) * (total - step)
        return f"{text}  ETA {timedelta(seconds=round(left))}"


def _in_words(metrics: dict[str, Any]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in metrics.items())


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
