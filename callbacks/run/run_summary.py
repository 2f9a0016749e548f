"""What is left of a run for studies to read: ``summary.json``."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.run.run_directory import RunDirectory
from triptych.callbacks.tracking.code_version import code_version
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking


@contextmanager
def recorded_run(run: RunDirectory, trainer: Trainer, seed: int) -> Iterator[None]:
    """Write ``summary.json`` when the run has ended, in whichever way."""
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
            content = {
                "status": status,
                "run_name": run.name,
                "experiment": run.experiment,
                "seed": seed,
                "wall_seconds": round(time.monotonic() - started, 3),
                **_what_the_trainer_knows(trainer, run.path),
                "code_version": code_version(),
            }
            with atomic_file(run.path / "summary.json") as partial:
                partial.write_text(json.dumps(content, indent=2) + "\n")


def _what_the_trainer_knows(trainer: Trainer, run_dir: Path) -> dict[str, Any]:
    checkpoint = trainer.checkpoint_callback
    tracking = [logger for logger in trainer.loggers if isinstance(logger, MLflowTracking)]
    return {
        "steps": trainer.global_step,
        "device": _device_name(trainer),
        "processes": trainer.world_size,
        "metrics": final_metrics(trainer),
        "best_checkpoint": _inside(run_dir, getattr(checkpoint, "best_model_path", None)),
        "last_checkpoint": _inside(run_dir, getattr(checkpoint, "last_model_path", None)),
        "export": "export" if (run_dir / "export").is_dir() else None,
        "data_fingerprint": _data_fingerprint(trainer),
        "tracking": tracking[0].status() if tracking else None,
    }


def final_metrics(trainer: Trainer) -> dict[str, float | None]:
    """The last value of everything that was logged; None for a value that is not a finite number.

    JSON knows neither NaN nor infinity.
    """
    logged = {**trainer.logged_metrics, **trainer.callback_metrics}
    values = {name: float(value) for name, value in sorted(logged.items())}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _data_fingerprint(trainer: Trainer) -> str | None:
    fingerprint: Callable[[], str] | None = getattr(trainer.datamodule, "fingerprint", None)
    try:
        return fingerprint() if fingerprint else None
    except (OSError, ValueError):  # the data are gone or broken: this very run has said so already
        return None


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _inside(run_dir: Path, path: str | None) -> str | None:
    """Path relative to the run's directory, which may be moved."""
    if not path or not os.path.exists(path):
        return None
    path, run_dir = Path(path).resolve(), run_dir.resolve()
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else str(path)
