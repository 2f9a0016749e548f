"""Tables of the model's samples, beside the expected ones."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from triptych.callbacks.report.guard import reports
from triptych.callbacks.tracking.run_artifacts import log_table
from triptych.protocols import ShowsSamples


class SampleTable(Callback):
    """Keeps the rows of a module that `ShowsSamples` as ``samples/step_<n>.json``.

    The loggers get the same table.

    Args:
        max_rows: Largest number of rows kept of each validation.
    """

    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows = max_rows

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ShowsSamples):
            rank_zero_info(
                f"SampleTable keeps nothing: {type(pl_module).__name__} has no `sample_rows` "
                "(triptych.protocols.ShowsSamples)"
            )

    @override
    @reports
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ShowsSamples):
            return
        rows = pl_module.sample_rows[: self.max_rows]
        if not rows or trainer.sanity_checking or not trainer.is_global_zero:
            return
        log_table(trainer, rows, f"samples/step_{trainer.global_step}")
