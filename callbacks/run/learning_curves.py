"""The figure of a run: every validation metric over optimizer steps."""

import csv
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from typing_extensions import override

from triptych.callbacks.tracking.run_artifacts import save_figure
from triptych.callbacks.trainer_parts import num_dry_run_batches

Curve = tuple[list[int], list[float]]


class LearningCurves(Callback):
    """Draws ``figures/learning_curves.png`` from the run's metrics when training ends.

    Each quantity has a panel, and each data set a line. A training value of the same quantity is
    drawn behind it: ``train/bits_per_byte`` and ``val/text/bits_per_byte`` share a panel.

    Args:
        quantities: Last parts of the log keys to draw; null: all that validation logs.
    """

    def __init__(self, quantities: list[str] | None = None) -> None:
        self.quantities = quantities

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = Path(trainer.default_root_dir) / "metrics.csv"
        if not trainer.is_global_zero or num_dry_run_batches(trainer) or not metrics.is_file():
            return
        curves = read_curves(metrics)
        drawn = self.quantities or sorted({_quantity(key) for key in curves if _is_val(key)})
        if not drawn or not any(_quantity(key) in drawn for key in curves):
            return
        save_figure(trainer, draw_curves(curves, drawn), "learning_curves")


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
