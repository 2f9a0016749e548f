"""The figure of the identifiability study: individual latents, and blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {
    "penalty": "tab:blue",
    "decorrelation alone": "tab:orange",
    "plain autoencoder": "tab:gray",
    "FastICA": "tab:green",
}
GROUPS = ("private 0", "shared", "private 1")


def draw(numbers: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw MCC and routing by number of latents, and the block R^2 of the dense map.

    Args:
        numbers: Maps (problem, way) to outcomes of `run_fit`, one per draw of the data.
        path: Picture to write.
    """
    figure = Figure(figsize=(14, 3.8), layout="constrained")
    mcc, routing, with_penalty, without = figure.subplots(1, 4, width_ratios=(1.15, 1.15, 1, 1))
    _draw_sizes(mcc, numbers, "mcc")
    _draw_sizes(routing, numbers, "routing")
    mcc.set(title="row-sparse linear:\nlatents", ylabel="MCC, held out", ylim=(0, 1.03))
    routing.set(title="row-sparse linear:\nwho needs what", ylabel="share of (agent, latent) right")
    routing.set_ylim(0, 1.03)
    mcc.legend(frameon=False, fontsize="small")
    _draw_blocks(with_penalty, numbers, "penalty")
    _draw_blocks(without, numbers, "plain autoencoder")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_sizes(
    axis: Axes, numbers: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], metric: str
) -> None:
    for way, color in COLORS.items():
        by_size = sorted(
            (len_of(problem), [outcome[metric] for outcome in outcomes])
            for (problem, own), outcomes in numbers.items()
            if own == way and problem.startswith("row sparse linear")
        )
        if not by_size:
            continue
        sizes = [size for size, _ in by_size]
        axis.plot(sizes, [median(values) for _, values in by_size], color=color, label=way)
        for size, values in by_size:
            axis.scatter([size] * len(values), values, color=color, s=14, alpha=0.6)
    axis.set_xscale("log", base=2)
    ticks = sorted(
        {len_of(problem) for problem, _ in numbers if problem.startswith("row sparse linear")}
    )
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("latents")
    axis.spines[["top", "right"]].set_visible(False)


def len_of(problem: str) -> int:
    """Return the number of latents of a problem, from its name."""
    return int(problem.rsplit(", ", 1)[1].split()[0])


def _draw_blocks(
    axis: Axes, numbers: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], way: str
) -> None:
    axis.set_title(f"block-dense nonlinear:\n{way}")
    matrices = [
        outcome["block_r2"]
        for (problem, own), outcomes in numbers.items()
        if own == way and problem.startswith("block dense nonlinear")
        for outcome in outcomes
    ]
    if not matrices:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)
        return
    middle = np.median(np.asarray(matrices, dtype=float), axis=0)
    axis.imshow(middle.clip(0, 1), vmin=0, vmax=1, cmap="Blues")
    for (row, column), value in np.ndenumerate(middle):
        color = "white" if value > 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    axis.set_xticks(range(3), GROUPS)
    axis.set_yticks(range(3), GROUPS, rotation=90, va="center")
    axis.set(xlabel="from recovered", ylabel="of true (R², held out, median)")
