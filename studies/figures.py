"""Common steps of the figures of studies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import run_stamp, stamp


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a picture, with the study's folder and the date in a corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp(figure, run_stamp(path.parent)).savefig(path, dpi=150)


def spread_out(count: int, width: float) -> Sequence[float]:
    """Return offsets that keep the points of several seeds apart.

    Args:
        count: Number of points.
        width: Distance between the first and the last.

    >>> spread_out(3, 0.2)
    [-0.1, 0.0, 0.1]
    """
    offsets: list[float] = np.linspace(-width / 2, width / 2, count).tolist()
    return offsets if count > 1 else [0.0]
