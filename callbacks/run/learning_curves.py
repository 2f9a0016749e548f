"""The figure of a run: validation metrics over completed optimizer steps, then training."""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from typing_extensions import override

from triptych.callbacks.report.guard import reports
from triptych.callbacks.run.run_figures import save_run_figure
from triptych.callbacks.trainer_parts import num_dry_run_batches
from triptych.metrics.display.figure_style import (
    BLUE,
    GREY,
    WIDTH,
    count_axis,
    series,
    share_axis,
    styled,
)
from triptych.metrics.display.metric_names import FRACTION, SHARE, importance, quantity_of, set_name

Curve = tuple[list[int], list[float]]

#: Quantities of training that say how it goes; others are in `metrics.csv`.
TRAINING = (
    *("reward", "nll_nats_per_token", "loss_nats", "loss", "squared_error", "kl_nats"),
    *("entropy_nats", "jacobian_penalty", "distinct_share", "valid_share"),
)
#: Other forms of a loss: drawn only where that loss is not.
SAME_CURVE = {
    "perplexity": {"bits_per_byte", "nll_nats_per_token", "loss_nats"},
    "nll_nats_per_token": {"bits_per_byte"},
    "no_mode_share": {"right_share"},
}
_COLUMNS, _TITLE_WIDTH = 3, 34


class LearningCurves(Callback):
    """Draws ``figures/learning_curves.png`` from the run's metrics when training ends.

    Validation and training have rows of panels of their own. Each quantity has a panel, and each
    data set a line. The most important quantity comes first.

    Args:
        quantities: Last parts of the log keys to draw; null: the most important ones of validation,
            and those of training that say how it goes.
        most_panels: Largest number of panels of validation that null draws. Training gets half.
    """

    def __init__(self, quantities: list[str] | None = None, most_panels: int = 6) -> None:
        self.quantities = quantities
        self.most_panels = most_panels

    @override
    @reports
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = Path(trainer.default_root_dir) / "metrics.csv"
        if not trainer.is_global_zero or num_dry_run_batches(trainer) or not metrics.is_file():
            return
        curves = read_curves(metrics)
        groups = chosen_panels(curves, self.quantities, self.most_panels)
        if groups:
            save_run_figure(trainer, draw_curves(curves, groups), "learning_curves")


def read_curves(metrics: Path) -> dict[str, Curve]:
    """Read a `metrics.csv`: key -> (numbers of completed optimizer steps, values).

    In files of 0.1, which have no column ``time``, rows with an epoch stand under the index of the
    step, counted from 0; all other rows are written with completed steps.
    """
    curves: dict[str, Curve] = {}
    with metrics.open() as file:
        rows = csv.DictReader(file)
        is_old = "time" not in (rows.fieldnames or ())
        for row in rows:
            step = _number(row["step"])
            if step is None or step % 1:  # what a full disk may leave of a line
                continue
            completed = int(step) + (is_old and bool(row.get("epoch")))
            for key, cell in row.items():
                if key in (None, "step", "epoch", "time") or (value := _number(cell)) is None:
                    continue
                steps, values = curves.setdefault(key, ([], []))
                steps.append(completed)
                values.append(value)
    return curves


def _number(cell: str | None) -> float | None:
    try:
        return float(cell or "")
    except ValueError:
        return None


def chosen_panels(
    curves: Mapping[str, Curve], quantities: Sequence[str] | None = None, most_panels: int = 6
) -> dict[str, list[str]]:
    """Choose the quantities of "validation" and "training", the most important ones first.

    Args:
        curves: Curves by log key.
        quantities: Last parts of log keys to keep; None: a choice of them.
        most_panels: Largest number for validation; training gets half.

    Returns:
        Groups that have at least one quantity.
    """
    groups: dict[str, list[str]] = {}
    for group, place, most in (
        ("validation", "val", most_panels),
        ("training", "train", -(-most_panels // 2)),
    ):
        own = [key for key in curves if key.partition("/")[0] == place and not is_flat(curves[key])]
        found = {_quantity(key): importance(key) for key in own}
        if quantities is not None:
            kept = [
                name for name in quantities if any(_quantity(k) == name for k in _of(curves, place))
            ]
        elif place == "val":
            shown = [name for name in found if not SAME_CURVE.get(name, set()) & set(found)]
            kept = sorted(shown, key=lambda name: (found[name], name))[:most]
            if len(kept) > _COLUMNS and len(kept) % _COLUMNS == 1:
                kept.pop()  # the least important one would have a row for itself
        else:
            kept = [name for name in TRAINING if name in found][:most]
        if kept:
            groups[group] = kept
    return groups


def is_flat(curve: Curve) -> bool:
    """Return whether a curve of several points never changes: nothing that a picture could show."""
    return len(curve[1]) > 1 and min(curve[1]) == max(curve[1])


@styled
def draw_curves(curves: Mapping[str, Curve], groups: Mapping[str, Sequence[str]]) -> Figure:
    """Draw a panel for each quantity, below a headline for each group.

    Args:
        curves: Curves by log key.
        groups: "validation" or "training" -> last parts of log keys.
    """
    rows = {group: -(-len(names) // _COLUMNS) for group, names in groups.items()}
    columns = min(_COLUMNS, max(len(names) for names in groups.values()))
    figure = Figure(
        figsize=(max(5.0, WIDTH * columns / _COLUMNS), 2.5 * sum(rows.values()) + 0.3),
        layout="constrained",
    )
    parts = figure.subfigures(len(groups), 1, height_ratios=list(rows.values()), squeeze=False)[
        :, 0
    ]
    for part, (group, names) in zip(parts, groups.items(), strict=True):
        _draw_group(part, curves, group, names, rows[group], columns)
    return figure


def _draw_group(
    part: SubFigure,
    curves: Mapping[str, Curve],
    group: str,
    names: Sequence[str],
    rows: int,
    columns: int,
) -> None:
    place = {"validation": "val", "training": "train"}[group]
    panels = [
        {key: curves[key] for key in _of(curves, place) if _quantity(key) == name} for name in names
    ]
    sets = {set_name(key) for own in panels for key in own}
    only = sets.pop() if len(sets) == 1 else ""  # then the headline names it, not every panel
    headline = f"{group}: {only}" if only else group
    part.suptitle(headline, x=0.01, ha="left", color=GREY)
    axes = part.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, own in zip(axes, panels, strict=False):
        _draw_panel(axis, own, names_set=not only)


def _draw_panel(axis: Axes, own: Mapping[str, Curve], names_set: bool) -> None:
    for place, (key, (steps, values)) in enumerate(own.items()):
        if key.startswith("train/"):
            axis.plot(steps, values, color=BLUE, linewidth=1.0)
        else:
            axis.plot(steps, values, label=set_name(key), **series(place))
    (first, *others) = own
    quantity = quantity_of(first)
    title = quantity.text
    if others:
        axis.legend()
        title = quantity_of(f"val/{_quantity(first)}").text
    elif names_set and (only := set_name(first)) and not title.startswith(only):
        title = f"{only}: {title}"  # a single line needs no legend
    axis.set_title("\n".join(textwrap.wrap(title, _TITLE_WIDTH)))
    axis.set(xlabel="completed optimizer steps", ylabel=quantity.unit)
    axis.set_xlim(left=0)
    count_axis(axis, most=4)
    if quantity.unit in (SHARE, FRACTION):
        share_axis(axis)


def _of(curves: Mapping[str, Curve], place: str) -> list[str]:
    return [key for key in curves if key.partition("/")[0] == place]


def _quantity(key: str) -> str:
    return key.rpartition("/")[2]
