"""The figure of the telepathy study on real language models: accuracy against bytes and time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import GREY, WIDTH, series, styled
from triptych.studies.figures import save_figure
from triptych.studies.results import Numbers, saved_numbers

#: Conditions that send something, with their names in the figure.
SENT = {
    "text_2": "2 words",
    "text_4": "4 words",
    "text_full": "whole notes",
    "thought": "thoughts",
    "KV passed": "KV caches",
}
CONTROLS = ("single", "shuffled", "constant")


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    draw(saved_numbers(results), results["claimed"], path)


def draw(numbers: Numbers, claimed: Sequence[str], path: Path) -> None:
    """Draw accuracy against bytes and milliseconds, and the axes of the study.

    Args:
        numbers: Numbers of each way and seed.
        claimed: The ways that the claim is about; the others are axes.
        path: Picture to write.
    """
    save_figure(_draw(numbers, claimed), path)


@styled
def _draw(numbers: Numbers, claimed: Sequence[str]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4 + 0.25 * len(numbers)), layout="constrained")
    (by_bytes, by_time), (axes, rest) = figure.subplots(
        2, 2, height_ratios=[2.2, 0.3 * len(numbers) + 0.6]
    )
    rest.axis("off")
    for place, label in enumerate(claimed):
        style = series(place) | {"linestyle": "none"}
        for axis, unit in ((by_bytes, "bytes"), (by_time, "ms")):
            _against(axis, numbers[label], unit, style, label)
    by_bytes.set(xlabel="bytes a question", ylabel="answers right")
    by_time.set(xlabel="milliseconds a question")
    for axis in (by_bytes, by_time):
        axis.set_xscale("log")
        axis.set_ylim(-0.02, 1.08)
    handles, names = by_bytes.get_legend_handles_labels()
    rest.legend(handles, names, loc="upper left", title="grey: agents alone")
    for row, per_seed in enumerate(numbers.values()):
        axes.plot([n["thought"] for n in per_seed], [row] * len(per_seed), "o", color="black")
        for name in CONTROLS:
            values = [n[name] for n in per_seed]
            axes.plot(values, [row] * len(values), "|", color=GREY)
    axes.set_yticks(range(len(numbers)), list(numbers))
    axes.set(xlabel="answers right with thoughts (grey: controls)", xlim=(-0.02, 1.02))
    axes.invert_yaxis()
    return figure


def _against(
    axis: Axes,
    per_seed: Sequence[Mapping[str, float]],
    unit: str,
    style: Mapping[str, Any],
    label: str,
) -> None:
    axis.axhline(sum(n["single"] for n in per_seed) / len(per_seed), color=GREY, linestyle=":")
    for name, shown in SENT.items():
        points = [(n[f"{name}, {unit}"], n[name]) for n in per_seed if f"{name}, {unit}" in n]
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), **style)
        axis.annotate(shown, points[0], textcoords="offset points", xytext=(4, 5), fontsize="small")
    axis.plot([], [], label=label, **style)
