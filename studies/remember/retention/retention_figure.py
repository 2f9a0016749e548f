"""The figure of the retention study: learned against forgotten, and the first facts' recall."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
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
from triptych.studies.remember.retention.retention_ways import NEW, OLD_DROP, TEXT_RISE
from triptych.studies.results import Numbers, saved_numbers

#: One colour and marker per method; a line joins the rates of a sweep.
FAMILIES = (
    *("sparse, TF-IDF", "sparse, TF only", "full", "LoRA", "replay", "EWC", "KL to the base"),
    *("3 passes: sparse", "3 passes: full"),
)
#: Arms whose recall of the first facts is drawn.
EARLY = ("sparse, TF-IDF", "sparse, TF only", "full 1e-05", "LoRA 3e-05")
#: Arm -> for each seed: (facts taught so far, recall) of each measurement.
EarlyCurves = Mapping[str, Sequence[Sequence[Sequence[float]]]]


def early_curves(runs: Mapping[str, Sequence[Path]]) -> dict[str, list[list[list[float]]]]:
    """Read the recall of the first 20 facts over the facts taught.

    Args:
        runs: Run directories of each arm.
    """
    curves: dict[str, list[list[list[float]]]] = {}
    for arm in EARLY:
        for run in runs.get(arm, ()):
            rows: list[dict[str, Any]] = json.loads((run / "forgetting.json").read_text())["rows"]
            curve = [
                [float(row["visit"] or 0), float(row["value"])]
                for row in rows
                if (row["probe"], row["metric"]) == ("new_question", "first_20_visits_exact_match")
            ]
            curves.setdefault(arm, []).append(curve)
    return curves


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`."""
    draw(saved_numbers(results), results.get("early_curves", {}), path)


def draw(numbers: Numbers, early: EarlyCurves, path: Path) -> None:
    """Draw what is forgotten against what is learned, and the recall of the first 20 facts.

    Args:
        numbers: Numbers of each arm and seed.
        early: Curves from `early_curves`, possibly none.
        path: Picture to write.
    """
    save_figure(_draw(numbers, early), path)


@styled
def _draw(numbers: Numbers, early: EarlyCurves) -> Figure:
    num_panels = 3 if early else 2
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    old, text, *rest = figure.subplots(1, num_panels)
    for place, family in enumerate(FAMILIES):
        arms = [name for name in numbers if name == family or name.startswith(f"{family} ")]
        for axis, key in ((old, OLD_DROP), (text, TEXT_RISE)):
            _draw_family(axis, family, [numbers[arm] for arm in arms], key, place)
    old.set(title="old facts forgotten", ylabel="recall lost (points)")
    old.set_yticks(range(0, 101, 20))
    old.set_ylim(-3, 103)
    text.set(title="text forgotten", ylabel="rise of the loss (percent)")
    text.set_yscale("symlog", linthresh=1.0)  # from a tenth of a percent to many times the loss
    text.set_yticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
    text.set_ylim(-0.3, max(12.0, *(1.5 * n[TEXT_RISE] for arm in numbers.values() for n in arm)))
    text.minorticks_off()
    for axis in (old, text):
        axis.set_xlabel("new facts recalled (share)")
        share_axis(axis, "x")
    better_arrow(old, "down")
    better_arrow(text, "down")
    handles, labels = old.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    if rest:
        for arm, curves in early.items():
            _draw_early(rest[0], curves, next(f for f in FAMILIES if arm.startswith(f)))
        rest[0].set(title="recall of the first 20 facts", xlabel="facts taught so far")
        rest[0].set_ylabel("share")
        share_axis(rest[0])
        count_axis(rest[0])
    return figure


def _draw_family(
    axis: Axes, label: str, arms: Sequence[Sequence[Mapping[str, float]]], key: str, place: int
) -> None:
    color, marker = _look(place)
    for seeds in arms:
        points = [(n[NEW], n[key]) for n in seeds]
        seeds_x, seeds_y = zip(*points, strict=True)
        axis.plot(seeds_x, seeds_y, marker, color=color, markersize=3, alpha=0.4)
    if arms:
        middle = sorted(
            (median(n[NEW] for n in seeds), median(n[key] for n in seeds)) for seeds in arms
        )
        line = LINES[place % len(LINES)] if len(arms) > 1 else "none"
        x, y = zip(*middle, strict=True)
        axis.plot(x, y, marker=marker, linestyle=line, color=color, markersize=6, label=label)


def _look(place: int) -> tuple[str, str]:
    return COLORS[place % len(COLORS)], (*MARKERS, "<", ">")[place]


def _draw_early(axis: Axes, curves: Sequence[Sequence[Sequence[float]]], family: str) -> None:
    place = FAMILIES.index(family)
    for curve in curves:
        x, y = zip(*curve, strict=True)
        axis.plot(x, y, color=_look(place)[0], linestyle=LINES[place % len(LINES)], linewidth=1.2)
