"""Tables of the model's samples, beside the expected ones."""

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.run_artifacts import mlflow_loggers
from triptych.protocols import ShowsSamples


class SampleTable(Callback):
    """Keeps the rows of a module that `ShowsSamples` as ``samples/step_<n>.json`` and in MLflow.

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
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ShowsSamples):
            return
        rows = pl_module.sample_rows[: self.max_rows]
        if not rows or trainer.sanity_checking or not trainer.is_global_zero:
            return
        name = f"samples/step_{trainer.global_step}.json"
        with atomic_file(Path(trainer.default_root_dir) / name) as partial:
            partial.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        for logger in mlflow_loggers(trainer):
            logger.log_table(rows, name)
