"""A figure of how the run went: every validation metric over optimizer steps."""

import csv
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking

Curve = tuple[list[int], list[float]]


class LearningCurves(Callback):
    """Draws ``figures/learning_curves.png`` from the run's metrics when training ends.

    One panel for each quantity, one line for each data set, with the training value behind it
    where there is one: ``train/bits_per_byte`` and ``val/text/bits_per_byte`` share a panel.

    Args:
        quantities: Last parts of the log keys to draw; None: all that validation logs.
    """

    def __init__(self, quantities: list[str] | None = None) -> None:
        self.quantities = quantities

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = Path(trainer.default_root_dir) / "metrics.csv"
        if not trainer.is_global_zero or trainer.fast_dev_run or not metrics.is_file():
            return
        curves = read_curves(metrics)
        drawn = self.quantities or sorted({_quantity(key) for key in curves if _is_val(key)})
        if not drawn or not any(_quantity(key) in drawn for key in curves):
            return
        figure = draw_curves(curves, drawn)
        path = metrics.parent / "figures" / "learning_curves.png"
        with atomic_file(path) as partial:
            figure.savefig(partial, dpi=150, format="png")
        for logger in trainer.loggers:
            if isinstance(logger, MLflowTracking):
                logger.log_file(path, "figures")


def read_curves(metrics: Path) -> dict[str, Curve]:
    """Read a `metrics.csv`: key -> (optimizer steps, values)."""
    curves: dict[str, Curve] = {}
    with metrics.open() as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value and key not in ("step", "epoch"):
                    steps, values = curves.setdefault(key, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return curves


def draw_curves(curves: dict[str, Curve], quantities: list[str]) -> Figure:
    """Draw a panel for each quantity."""
    num_columns = min(3, len(quantities))
    num_rows = -(-len(quantities) // num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 2.8 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat[len(quantities) :]:
        axis.set_axis_off()
    for axis, quantity in zip(axes.flat, quantities, strict=False):
        for key, (steps, values) in sorted(curves.items(), key=lambda item: _is_val(item[0])):
            if _quantity(key) != quantity:
                continue
            label = key.rpartition("/")[0].removeprefix("val/")
            if _is_val(key):
                axis.plot(steps, values, marker="o", markersize=3, label=label)
            else:
                axis.plot(steps, values, color="0.8", linewidth=0.8, label=label)
        axis.set(title=quantity.replace("_", " "), xlabel="optimizer step")
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    return figure


def _quantity(key: str) -> str:
    return key.rpartition("/")[2]


def _is_val(key: str) -> bool:
    return key.startswith("val/")
