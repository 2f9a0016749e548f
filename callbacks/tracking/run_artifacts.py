"""Files of a run that are kept in its directory and with MLflow."""

from pathlib import Path

from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking


def mlflow_loggers(trainer: Trainer) -> list[MLflowTracking]:
    """Return those of the trainer's loggers that send to MLflow, possibly none."""
    return [logger for logger in trainer.loggers if isinstance(logger, MLflowTracking)]


def save_figure(trainer: Trainer, figure: Figure, name: str, *, track: bool = True) -> None:
    """Write ``figures/<name>.png`` into the run's directory, and log it with MLflow.

    Args:
        trainer: The run's trainer; call on rank 0 only.
        figure: The figure.
        name: Name of the file, without suffix.
        track: Whether MLflow gets it too.
    """
    path = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    if track:
        for logger in mlflow_loggers(trainer):
            logger.log_file(path, "figures")
