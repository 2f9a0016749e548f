"""The figure of the telepathy study: accuracies with controls, and leakage of messages."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.studies.figures import save_figure
from triptych.studies.results import Numbers

# From the least to the most helpful condition, as expected.
ORDER = (
    *("shuffled", "constant", "zero", "no_prefix", "majority", "single"),
    *("text_1", "text_2", "text_full", "thought"),
)


def draw(numbers: Numbers, single_optimum: float, chance: float, path: Path) -> None:
    """Draw seeds as dots and their mean as a bar.

    Args:
        numbers: Numbers of each way and seed.
        single_optimum: Best possible accuracy of a single agent.
        chance: Accuracy of an uninformed probe.
        path: Picture to write.
    """
    height = 1.2 + max(0.3 * len(ORDER), 0.42 * len(numbers))
    figure = Figure(figsize=(11, height), layout="constrained")
    accuracy, leakage = figure.subplots(1, 2, width_ratios=[1.5, 1])
    step = 0.8 / len(numbers)
    for place, (label, per_seed) in enumerate(numbers.items()):
        color = f"C{place % 10}"
        shift = step * (place - (len(numbers) - 1) / 2)
        for row, name in enumerate(ORDER):
            _dots(accuracy, [n[name] for n in per_seed], row + shift, color, step)
        accuracy.plot([], [], "o", color=color, markersize=4, label=label)
        for row, key in enumerate(key for key in per_seed[0] if "probe" in key):
            _dots(leakage, [n[key] for n in per_seed], row + shift, color, step)
    accuracy.axvline(single_optimum, color="0.6", linestyle=":", zorder=0)
    accuracy.set_yticks(range(len(ORDER)), [name.replace("_", " ") for name in ORDER])
    accuracy.set(xlabel="accuracy; dotted: best possible alone", xlim=(0, 1.02))
    probes = [key for key in next(iter(numbers.values()))[0] if "probe" in key]
    leakage.axvline(chance, color="0.6", linestyle=":", zorder=0)
    leakage.set_yticks(range(len(probes)), [key.replace(", ", ",\n") for key in probes])
    leakage.set(xlabel="held-out accuracy of the probe; dotted: chance", xlim=(0, 1.02))
    leakage.set_ylim(-0.6, len(probes) - 0.4)
    accuracy.legend(frameon=False, fontsize="small", loc="upper left", title="routing, codec")
    save_figure(figure, path)


def _dots(axis: Axes, values: Sequence[float], row: float, color: str, step: float) -> None:
    axis.scatter(values, [row] * len(values), s=14, color=color, alpha=0.7, linewidths=0)
    mean = sum(values) / len(values)
    axis.plot([mean, mean], [row - 0.45 * step, row + 0.45 * step], color=color, linewidth=2)
