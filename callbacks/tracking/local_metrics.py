"""The metrics of a run in ``metrics.csv``, with or without a tracking server."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from typing_extensions import override


class LocalMetrics(CSVLogger):
    """A CSVLogger that writes into the run's directory itself and continues an earlier file.

    Lightning's logger deletes the metrics of a resumed run. Its ``hparams.yaml`` is left out, since
    ``config.yaml`` holds all settings.

    Args:
        run_dir: The run's directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        if self._experiment is None:
            self._experiment = _ContinuingWriter(log_dir=self.log_dir)
        return self._experiment

    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Do nothing: ``config.yaml`` holds the settings."""


class _ContinuingWriter(ExperimentWriter):
    @override
    def _check_log_dir_exists(self) -> None:
        metrics = Path(self.metrics_file_path)
        if metrics.is_file():
            self.metrics_keys = metrics.read_text().partition("\n")[0].strip().split(",")
