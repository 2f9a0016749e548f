"""Figures, tables, files, parameters and tags of a run, for its directory and all its loggers.

This is the one place that knows what loggers can take. A callback writes into the run's directory
through it, and the loggers of the trainer get the same: `MLflowTracking` mirrors the directory, and
those of other libraries get what they have a method for.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking
from triptych.callbacks.tracking.other_loggers import Receiver, receiver_of


def mlflow_loggers(trainer: Trainer) -> list[MLflowTracking]:
    """Return those of the trainer's loggers that mirror the run into MLflow, possibly none."""
    return [logger for logger in trainer.loggers if isinstance(logger, MLflowTracking)]


def save_figure(trainer: Trainer, figure: Figure, name: str, *, track: bool = True) -> None:
    """Write ``figures/<name>.png`` into the run's directory, and give it to the loggers.

    Args:
        trainer: The run's trainer; call on rank 0 only.
        figure: The figure.
        name: Name of the file, without suffix.
        track: Whether loggers other than MLflow's get it. Those keep every version of a figure that
            is drawn again and again; MLflow's mirror always has the last one.
    """
    path = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    log_file(trainer, path, track=track)


def log_table(trainer: Trainer, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Write ``<name>.json`` into the run's directory, and give the table to the loggers.

    Args:
        trainer: The run's trainer; call on rank 0 only.
        rows: Rows of plain values.
        name: Path in the run's directory, without suffix, such as ``samples/step_250``.
    """
    path = Path(trainer.default_root_dir) / f"{name}.json"
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n")
    _files_changed(trainer)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = [[row.get(column) for column in columns] for row in rows]
    folder, _, last = name.rpartition("/")
    for receiver in _receivers(trainer):
        # Steps belong to the table's name in the directory only; loggers have an axis for them.
        series = folder if folder and last.startswith("step_") else name
        receiver.table(series, columns, data, trainer.global_step)


def log_file(trainer: Trainer, path: str | Path, *, track: bool = True) -> None:
    """Give a file of the run's directory to the loggers; a PNG file as an image.

    Args:
        trainer: The run's trainer; call on rank 0 only.
        path: The file.
        track: As in `save_figure`.
    """
    _files_changed(trainer)
    if not track:
        return
    path, run_dir = Path(path), Path(trainer.default_root_dir)
    for receiver in _receivers(trainer):
        if path.suffix == ".png":
            name = path.relative_to(run_dir) if path.is_relative_to(run_dir) else Path(path.name)
            receiver.image(name.with_suffix("").as_posix(), path, trainer.global_step)
        else:
            receiver.file(path, run_dir)


def log_params(trainer: Trainer, params: Mapping[str, Any]) -> None:
    """Give parameters to the loggers: settings, and numbers that stay the same during the run."""
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(params))


def log_tags(trainer: Trainer, tags: Mapping[str, str]) -> None:
    """Give tags to the loggers."""
    for logger in mlflow_loggers(trainer):
        logger.log_tags(tags)
    for receiver in _receivers(trainer):
        receiver.tags(tags)


def log_dataset(trainer: Trainer, name: str, digest: str, source: str) -> None:
    """Give the name of the training data, their fingerprint and source to MLflow."""
    for logger in mlflow_loggers(trainer):
        logger.log_dataset(name, digest, source)


@contextmanager
def closed_loggers(trainer: Trainer) -> Iterator[None]:
    """Send what the end of a run has written after its loggers were finalized."""
    try:
        yield
    finally:
        for logger in mlflow_loggers(trainer):
            logger.close()


def _files_changed(trainer: Trainer) -> None:
    for logger in mlflow_loggers(trainer):
        logger.files_changed()


def _receivers(trainer: Trainer) -> list[Receiver]:
    others: list[Logger] = [log for log in trainer.loggers if not isinstance(log, MLflowTracking)]
    return [receiver for logger in others if (receiver := receiver_of(logger)) is not None]
