"""Figures of a run: written with the run's name in a corner."""

from pathlib import Path

from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from triptych.callbacks.tracking.run_artifacts import save_figure
from triptych.metrics.display.figure_style import run_stamp, stamp


def save_run_figure(trainer: Trainer, figure: Figure, name: str, *, track: bool = True) -> None:
    """Write ``figures/<name>.png`` with name and date of the run, and give it to the loggers.

    Args:
        trainer: The run's trainer; call on rank 0 only.
        figure: The figure.
        name: Name of the file, without suffix.
        track: Whether loggers get it too.
    """
    save_figure(
        trainer, stamp(figure, run_stamp(Path(trainer.default_root_dir))), name, track=track
    )
