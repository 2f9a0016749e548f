"""The figure of the identifiability study: individual latents, and blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import (
    WIDTH,
    series,
    share_axis,
    styled,
    without_minus_zero,
)
from triptych.studies.figures import save_figure
from triptych.studies.results import saved_numbers

WAYS = ("penalty", "decorrelation alone", "plain autoencoder", "FastICA")
GROUPS = ("private 0", "shared", "private 1")
LINEAR, DENSE = "row sparse linear", "block dense nonlinear"
#: (problem, way) -> outcomes of `run_fit`, one per draw of the data.
Outcomes = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    outcomes = {}
    for arm, per_seed in saved_numbers(results).items():
        problem, _, way = arm.rpartition(", ")
        blocks = results["block_r2"][arm]
        outcomes[problem, way] = [
            numbers | {"block_r2": block} for numbers, block in zip(per_seed, blocks, strict=True)
        ]
    draw(outcomes, path)


def draw(numbers: Outcomes, path: Path) -> None:
    """Draw MCC and routing by number of latents, and the block R^2 of the dense map.

    Args:
        numbers: Maps (problem, way) to outcomes of `run_fit`, one per draw of the data.
        path: Picture to write.
    """
    save_figure(_draw(numbers), path)


@styled
def _draw(numbers: Outcomes) -> Figure:
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    ((mcc, routing), (with_penalty, without)) = figure.subplots(2, 2)
    _draw_sizes(mcc, numbers, "mcc")
    _draw_sizes(routing, numbers, "routing")
    mcc.set(title="row-sparse linear map: latents recovered", ylabel="MCC, held out (0 to 1)")
    routing.set(title="row-sparse linear map: who needs which latent", ylabel="pairs right (share)")
    mcc.legend(loc="center right")
    _draw_blocks(with_penalty, numbers, "penalty")
    _draw_blocks(without, numbers, "plain autoencoder")
    return figure


def _draw_sizes(axis: Axes, numbers: Outcomes, metric: str) -> None:
    for place, way in enumerate(WAYS):
        by_size = sorted(
            (len_of(problem), [outcome[metric] for outcome in outcomes])
            for (problem, own), outcomes in numbers.items()
            if own == way and problem.startswith(LINEAR)
        )
        if not by_size:
            continue
        # Ways that reach the same value stand beside each other, not on each other.
        shift = 1.0 + 0.09 * (place - 1.5)
        style = series(place)
        sizes = [size * shift for size, _ in by_size]
        axis.plot(sizes, [median(values) for _, values in by_size], label=way, **style)
        for size, (_, values) in zip(sizes, by_size, strict=True):
            points = style | {"linestyle": "none", "markersize": 3, "alpha": 0.5}
            axis.plot([size] * len(values), values, **points)
    axis.set_xscale("log", base=2)
    ticks = sorted({len_of(problem) for problem, _ in numbers if problem.startswith(LINEAR)})
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("latents")
    share_axis(axis)


def len_of(problem: str) -> int:
    """Return the number of latents of a problem, from its name."""
    return int(problem.rsplit(", ", 1)[1].split()[0])


def _draw_blocks(axis: Axes, numbers: Outcomes, way: str) -> None:
    axis.set_title(f"block-dense nonlinear map, {way}:\nR², held out, median")
    matrices = [
        outcome["block_r2"]
        for (problem, own), outcomes in numbers.items()
        if own == way and problem.startswith(DENSE)
        for outcome in outcomes
    ]
    if not matrices:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)
        return
    middle = np.median(np.asarray(matrices, dtype=float), axis=0)
    axis.imshow(middle.clip(0, 1), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (row, column), value in np.ndenumerate(middle):
        color = "white" if value > 0.6 else "black"
        text = without_minus_zero(float(value))
        axis.text(column, row, text, ha="center", va="center", color=color)
    axis.set_xticks(range(3), GROUPS)
    axis.set_yticks(range(3), GROUPS, rotation=90, va="center")
    axis.set(xlabel="predicted from the recovered block", ylabel="true block")
