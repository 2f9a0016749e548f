"""The figure of the telepathy study: accuracies with controls, and leakage of messages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import GREY, WIDTH, series, styled
from triptych.metrics.display.metric_names import set_name
from triptych.studies.commune import telepathy_notes_figure
from triptych.studies.figures import save_figure
from triptych.studies.results import Numbers, saved_numbers

# From the least to the most helpful condition, as expected.
ORDER = (
    *("shuffled", "constant", "zero", "no_prefix", "single"),
    *("text_1", "text_2", "text_full", "thought"),
)


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw the figure from the content of `results.json`, of any preset."""
    if "claimed" in results:
        telepathy_notes_figure.draw_results(results, path)
        return
    bounds = results["figure"]
    draw(saved_numbers(results), bounds["single_optimum"], bounds["chance"], path)


def draw(numbers: Numbers, single_optimum: float, chance: float, path: Path) -> None:
    """Draw seeds as points and their mean as a bar.

    Args:
        numbers: Numbers of each way and seed.
        single_optimum: Best possible accuracy of a single agent.
        chance: Accuracy of an uninformed probe.
        path: Picture to write.
    """
    save_figure(_draw(numbers, single_optimum, chance), path)


@styled
def _draw(numbers: Numbers, single_optimum: float, chance: float) -> Figure:
    height = 1.6 + max(0.3 * len(ORDER), 0.42 * len(numbers))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    accuracy, leakage = figure.subplots(1, 2, width_ratios=[1.5, 1])
    step = 0.8 / len(numbers)
    probes = [key for key in next(iter(numbers.values()))[0] if "probe" in key]
    for place, (label, per_seed) in enumerate(numbers.items()):
        style = series(place) | {"linestyle": "none"}
        shift = step * (place - (len(numbers) - 1) / 2)
        for row, name in enumerate(ORDER):
            _points(accuracy, [n[name] for n in per_seed], row + shift, style, step)
        accuracy.plot([], [], label=label, **style)
        for row, key in enumerate(probes):
            _points(leakage, [n[key] for n in per_seed], row + shift, style, step)
    names = [set_name(f"val/{name}/accuracy") for name in ORDER]
    accuracy.set_yticks(range(len(ORDER)), names)
    accuracy.set_title("answers right (a point a seed, bars: means)")
    accuracy.set(xlabel="share; dotted: best possible alone", xlim=(0, 1.02))
    accuracy.axvline(single_optimum, color=GREY, linestyle=":", zorder=0)
    leakage.set_title("others' evidence that a probe reads")
    leakage.set_yticks(range(len(probes)), [_probe_name(key) for key in probes])
    leakage.set(xlabel="share of held-out cases; dotted: chance", xlim=(0, 1.02))
    leakage.axvline(chance, color=GREY, linestyle=":", zorder=0)
    leakage.set_ylim(-0.6, len(probes) - 0.4)
    figure.legend(
        *accuracy.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        title="routing, codec",
    )
    return figure


def _probe_name(key: str) -> str:
    return key.rpartition(", ")[2].replace(" probe", "\nprobe")


def _points(
    axis: Axes, values: Sequence[float], row: float, style: dict[str, Any], step: float
) -> None:
    axis.plot(values, [row] * len(values), alpha=0.7, **style)
    mean = sum(values) / len(values)
    ends = [row - 0.45 * step, row + 0.45 * step]
    axis.plot([mean, mean], ends, color=style["color"], linewidth=2)
