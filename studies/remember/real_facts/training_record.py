"""What teaching cost: processor time, steps of each visit, rows written."""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning

FILE = "training.json"


class TrainingRecord(Callback):
    """Writes `training.json` into the run's directory at the end of training.

    Its entries are `cpu_seconds` (processor time of this process from the start of training to its
    end, without loading, measuring and exporting), `steps` (optimizer steps of each visit that were
    taken) and `rows_written` (distinct rows of value tables; 0 without sparse memory finetuning).
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._steps: dict[int, int] = {}
        self._taken = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.process_time()
        self._steps, self._taken = {}, 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        taken = int(getattr(pl_module, "steps_taken", self._taken + 1))
        visit = int(batch["visit"])
        self._steps[visit] = self._steps.get(visit, 0) + taken - self._taken
        self._taken = taken

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        spent = time.process_time() - self._began
        callbacks: list[Callback] = getattr(trainer, "callbacks", [])
        sparse = [c for c in callbacks if isinstance(c, SparseMemoryFinetuning)]
        record = {
            "cpu_seconds": spent,
            "steps": list(self._steps.values()),
            "rows_written": sum(len(rows) for c in sparse for rows in c.rows_written),
        }
        path = Path(trainer.default_root_dir) / FILE
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")


def read_training_record(run: Path) -> dict[str, Any]:
    """Read what `TrainingRecord` wrote."""
    record: dict[str, Any] = json.loads((run / FILE).read_text(encoding="utf-8"))
    return record
