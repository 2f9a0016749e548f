"""The figure of the study of real facts: recall, what it costs, and what later facts overwrite."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import (
    COLORS,
    LINES,
    MARKERS,
    WIDTH,
    better_arrow,
    count_axis,
    share_axis,
    styled,
)
from triptych.studies.figures import save_figure
from triptych.studies.remember.real_facts.real_facts_numbers import HELD_OUT, RETAINED, TAUGHT
from triptych.studies.results import Numbers, saved_numbers

#: Methods whose rates are joined by a line, by the beginning of the names of their tuning runs.
SWEPT = {"full": "tuning: full ", "LoRA": "tuning: LoRA "}
Positions = Mapping[str, Sequence[Sequence[Sequence[float]]]]


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    draw(
        saved_numbers(results),
        results["trade_off_on_the_tuning_seed"],
        results["recall_by_position"],
        path,
    )


def draw(
    numbers: Numbers,
    trade_off: Mapping[str, Mapping[str, float]],
    positions: Positions,
    path: Path,
) -> None:
    """Draw recall by arm, recall against retention, and recall by position.

    Args:
        numbers: Numbers of each arm and seed.
        trade_off: Numbers of the tuning runs, possibly none.
        positions: For each arm and seed, (facts taught, recall) of groups of facts.
        path: Picture to write.
    """
    save_figure(_draw(numbers, trade_off, positions), path)


@styled
def _draw(
    numbers: Numbers, trade_off: Mapping[str, Mapping[str, float]], positions: Positions
) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    recall, cost, place = figure.subplots(1, 3)
    _draw_recall(recall, numbers)
    for number, (arm, seeds) in enumerate(numbers.items()):
        look = {"color": _color(number), "marker": _marker(number), "linestyle": "none"}
        points = [(n[HELD_OUT], n[RETAINED]) for n in seeds]
        cost.plot(*zip(*points, strict=True), markersize=6, label=arm, **look)
        for method, beginning in SWEPT.items():
            rates = [n for name, n in trade_off.items() if name.startswith(beginning)]
            if method == arm and rates:
                line = [(n[HELD_OUT], n[RETAINED]) for n in rates]
                style = {**look, "linestyle": ":", "markersize": 3}
                cost.plot(*zip(*line, strict=True), alpha=0.6, **style)
        curves = positions.get(arm, ())
        if curves:
            x = [point[0] for point in curves[0]]
            y = [fmean(points) for points in zip(*(_heights(c) for c in curves), strict=True)]
            line_style = LINES[number % len(LINES)]
            place.plot(x, y, color=_color(number), linestyle=line_style, marker=_marker(number))
    cost.set(title="learned and retained", xlabel="held-out wordings (share)")
    cost.set_ylabel("replies retained (share)")
    share_axis(cost)
    share_axis(cost, "x")
    better_arrow(cost)
    place.set(title="recall by position", xlabel="facts, in the order of teaching")
    place.set_ylabel("held-out wordings (share)")
    share_axis(place)
    count_axis(place)
    figure.legend(*cost.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


def _draw_recall(axis: Axes, numbers: Numbers) -> None:
    width = 0.38
    for number, seeds in enumerate(numbers.values()):
        for offset, key, alpha in ((-width / 2, TAUGHT, 0.45), (width / 2, HELD_OUT, 1.0)):
            values = [n[key] for n in seeds]
            axis.bar(number + offset, median(values), width, color=_color(number), alpha=alpha)
            axis.plot([number + offset] * len(values), values, "k.", markersize=3)
    axis.set_xticks(range(len(numbers)), list(numbers), rotation=30, ha="right")
    axis.set(title="recall: taught (pale), held out", ylabel="share of wordings")
    share_axis(axis)


def _heights(curve: Sequence[Sequence[float]]) -> list[float]:
    return [point[1] for point in curve]


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]
