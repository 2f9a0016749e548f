"""How far a run is: a bar in a terminal, a line now and then anywhere else."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from typing_extensions import override


class Progress(RichProgressBar):
    """Lightning's rich progress bar; in a log file, one line every so often instead.

    Args:
        seconds_between_lines: How often to print a line where there is no terminal.
    """

    def __init__(self, seconds_between_lines: float = 20.0) -> None:
        super().__init__(leave=False)
        self.seconds_between_lines = seconds_between_lines
        self._console = Console()
        self._next_line_at = 0.0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._console.is_terminal:
            self.disable()
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._console.is_terminal or not trainer.is_global_zero:
            return
        if time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + self.seconds_between_lines
            self._print_line(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not (self._console.is_terminal or trainer.sanity_checking) and trainer.is_global_zero:
            self._print_line(trainer, pl_module)

    def _print_line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        values = "  ".join(f"{name} {_short(value)}" for name, value in metrics.items())
        total = trainer.estimated_stepping_batches
        print(f"step {trainer.global_step}/{total}  {values}", flush=True)


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
