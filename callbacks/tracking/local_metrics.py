"""The metrics of a run in ``metrics.csv``, with or without a tracking server."""

import csv
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file

METRICS_FILE = "metrics.csv"
TIME = "time"  # seconds since 1970


class LocalMetrics(CSVLogger):
    """A CSVLogger that writes into the run's directory itself and continues an earlier file.

    Lightning's logger deletes the metrics of a resumed run. Its ``hparams.yaml`` is left out, since
    ``config.yaml`` holds all settings. The column ``time`` holds seconds since 1970.

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
    """Keeps the rows of an earlier file, except for one that a kill has cut short."""

    @override
    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics({**metrics_dict, TIME: round(time.time(), 3)}, step)

    @override
    def save(self) -> None:
        try:
            super().save()
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(
                f"{self.metrics_file_path} could not be written ({cause}): free some space, then "
                "resume from checkpoints/last.ckpt in the run's directory"
            ) from error

    @override
    def _check_log_dir_exists(self) -> None:
        metrics = Path(self.metrics_file_path)
        if not metrics.is_file():
            return
        content = metrics.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            with atomic_file(metrics) as partial:
                partial.write_bytes(complete)
        if complete:
            self.metrics_keys = complete.decode().partition("\n")[0].strip().split(",")
        else:
            metrics.unlink()

    @override
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with (
            path.open(newline="") as earlier,
            atomic_file(path) as partial,
            partial.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=fieldnames, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(csv.DictReader(earlier))  # one by one: there may be a million
