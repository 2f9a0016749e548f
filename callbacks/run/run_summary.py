"""The record of a run that studies read: ``summary.json``."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.run_directory import RunDirectory
from triptych.callbacks.tracking.code_version import code_version
from triptych.callbacks.tracking.run_artifacts import mlflow_loggers
from triptych.callbacks.trainer_parts import data_fingerprint, rows_left_out
from triptych.models.host.secrets import settings_without_secrets


@contextmanager
def recorded_run(run: RunDirectory, trainer: Trainer, seed: int) -> Iterator[None]:
    """Write ``summary.json`` when the run ends, in whichever way."""
    started = time.monotonic()
    status = "failed"
    try:
        yield
        status = "finished"
    except (KeyboardInterrupt, SystemExit, SIGTERMException):
        status = "interrupted"
        raise
    finally:
        if trainer.is_global_zero:
            content: dict[str, Any] = {
                "status": status,
                "run_name": run.name,
                "experiment": run.experiment,
                "seed": seed,
                "wall_seconds": round(time.monotonic() - started, 3),
                **_trainer_summary(trainer, run.path),
                "code_version": code_version(),
            }
            try:
                with atomic_file(run.path / "summary.json") as partial:
                    partial.write_text(
                        json.dumps(settings_without_secrets(content), indent=2) + "\n"
                    )
            except OSError as error:
                if status == "finished":
                    raise
                # What ended the run is more important, and mostly the same full disk.
                print(f"\nsummary.json was not written: {error}", file=sys.stderr)


def _trainer_summary(trainer: Trainer, run_dir: Path) -> dict[str, Any]:
    checkpoint = trainer.checkpoint_callback
    best = last = ""
    if isinstance(checkpoint, Checkpoint | ModelCheckpoint):
        best, last = checkpoint.best_model_path, checkpoint.last_model_path
    tracking = mlflow_loggers(trainer)
    return {
        "steps": trainer.global_step,
        "device": _device_name(trainer),
        "processes": trainer.world_size,
        "metrics": final_metrics(trainer),
        "best_checkpoint": _inside(run_dir, best),
        "last_checkpoint": _inside(run_dir, last),
        "export": "export" if (run_dir / "export").is_dir() else None,
        "data_fingerprint": data_fingerprint(trainer),
        "left_out": rows_left_out(trainer),
        "tracking": tracking[0].status() if tracking else None,
    }


def final_metrics(trainer: Trainer) -> dict[str, float | None]:
    """Return the last value of each log key; None replaces a value that is not finite.

    JSON has neither NaN nor infinity.
    """
    logged = {**trainer.logged_metrics, **trainer.callback_metrics}
    values = {name: float(value) for name, value in sorted(logged.items())}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _inside(run_dir: Path, path: str) -> str | None:
    """Return a path relative to the run's directory, which may be moved."""
    if not path or not os.path.exists(path):
        return None
    full, root = Path(path).resolve(), run_dir.resolve()
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else str(full)
