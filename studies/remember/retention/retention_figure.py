"""The figure of the retention study: learned against kept, and the recall of the first facts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.studies.figures import save_figure
from triptych.studies.remember.retention.retention_ways import NEW, OLD_DROP, TEXT_RISE
from triptych.studies.results import Numbers

# One colour per method; a line joins the rates of a sweep.
FAMILIES = {
    "sparse, TF-IDF": ("tab:blue", "o"),
    "sparse, TF only": ("tab:cyan", "v"),
    "full": ("tab:orange", "s"),
    "LoRA": ("tab:green", "D"),
    "replay": ("tab:purple", "P"),
    "EWC": ("tab:brown", "X"),
    "KL to the base": ("tab:pink", "*"),
}


def draw(numbers: Numbers, runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Draw learned against kept for the single pass, and the recall of the first 20 facts.

    Args:
        numbers: Numbers of each arm and seed.
        runs: Run directories of each arm.
        path: Picture to write.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    old, text, early = figure.subplots(1, 3)
    for family, (color, marker) in FAMILIES.items():
        arms = [name for name in numbers if name == family or name.startswith(f"{family} ")]
        for axis, key in ((old, OLD_DROP), (text, TEXT_RISE)):
            _draw_family(axis, family, [numbers[arm] for arm in arms], key, color, marker)
    old.set(title="OLD facts forgotten", ylabel="points of recall lost")
    text.set(title="text forgotten", ylabel="NLL risen, percent")
    for axis in (old, text):
        axis.set(xlabel="NEW facts recalled, in questions")
        axis.set_yscale("symlog", linthresh=1.0)
        axis.invert_yaxis()  # better is up, and to the right
    old.legend(frameon=False, fontsize="small")
    for name in ("sparse, TF-IDF", "sparse, TF only", "full 1e-05", "LoRA 3e-05"):
        if name in runs:
            family = next(f for f in FAMILIES if name.startswith(f))
            _draw_early(early, name, runs[name], FAMILIES[family][0])
    early.set(
        title="the first 20 facts", xlabel="facts taught so far", ylabel="recall, in questions"
    )
    early.set_ylim(0, 1)
    early.legend(frameon=False, fontsize="small")
    save_figure(figure, path)


def _draw_family(
    axis: Axes,
    label: str,
    arms: Sequence[Sequence[Mapping[str, float]]],
    key: str,
    color: str,
    marker: str,
) -> None:
    for seeds in arms:
        points = [(n[NEW], n[key]) for n in seeds]
        axis.plot(*zip(*points, strict=True), marker, color=color, markersize=3, alpha=0.5)
    if arms:
        middle = [(median(n[NEW] for n in seeds), median(n[key] for n in seeds)) for seeds in arms]
        line = "-" if len(arms) > 1 else ""
        axis.plot(*zip(*middle, strict=True), line + marker, color=color, label=label)


def _draw_early(axis: Axes, label: str, runs: Sequence[Path], color: str) -> None:
    for number, run in enumerate(runs):
        rows: list[dict[str, Any]] = json.loads((run / "forgetting.json").read_text())["rows"]
        curve = [
            (row["visit"] or 0, row["value"])
            for row in rows
            if (row["probe"], row["metric"]) == ("new_question", "first_20_visits_exact_match")
        ]
        axis.plot(*zip(*curve, strict=True), color=color, label=None if number else label)
