"""What the model says, next to what it should have said."""

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking


class SampleTable(Callback):
    """Keeps ``pl_module.sample_rows`` as ``samples/step_<n>.json`` and in MLflow.

    The module fills ``sample_rows: list[dict[str, Any]]`` while it validates, one dict of plain
    values a row; a module without it is left alone.

    Args:
        max_rows: Rows to keep of each validation.
    """

    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows = max_rows

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = getattr(pl_module, "sample_rows", [])[: self.max_rows]
        if not rows or trainer.sanity_checking or not trainer.is_global_zero:
            return
        name = f"samples/step_{trainer.global_step}.json"
        with atomic_file(Path(trainer.default_root_dir) / name) as partial:
            partial.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, MLflowTracking):
                logger.log_table(rows, name)
