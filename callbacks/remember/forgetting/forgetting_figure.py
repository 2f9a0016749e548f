"""The figure of learning and forgetting in a run."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.callbacks.remember.forgetting.forgetting_history import ForgettingHistory
from triptych.callbacks.remember.probes.base import Probe


def draw_forgetting(history: ForgettingHistory, probes: Mapping[str, Probe]) -> Figure:
    """Draw a panel for each kind of number: learned, retained shares, retained likelihoods.

    Args:
        history: The measurements, at least one.
        probes: The probes by name.
    """
    axis_name = "step" if history.rows[-1]["visit"] is None else "visit"
    panels = {
        "learned": [(n, p) for n, p in probes.items() if p.role == "learned"],
        "retained": [(n, p) for n, p in _retained(probes) if p.higher_is_better],
        "retained: NLL, rise in %": [
            (n, p) for n, p in _retained(probes) if not p.higher_is_better
        ],
    }
    drawn = {title: members for title, members in panels.items() if members}
    figure = Figure(figsize=(4.6 * len(drawn), 3.2), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (title, members) in zip(axes, drawn.items(), strict=True):
        for name, probe in members:
            for metric in probe.shown:
                _draw_line(axis, history, name, metric, axis_name, in_percent="%" in title)
        axis.set(title=title, xlabel="visits" if axis_name == "visit" else "optimizer step")
        if "%" not in title and all(probe.higher_is_better for _, probe in members):
            axis.set_ylim(-0.02, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    return figure


def _retained(probes: Mapping[str, Probe]) -> list[tuple[str, Probe]]:
    return [(name, probe) for name, probe in probes.items() if probe.role == "retained"]


def _draw_line(
    axis: Axes,
    history: ForgettingHistory,
    probe: str,
    metric: str,
    axis_name: str,
    in_percent: bool,
) -> None:
    rows = history.of(probe, metric)
    values = [row["value"] for row in rows]
    if in_percent:
        values = [100 * (value / values[0] - 1) if values[0] else value for value in values]
    positions = [row[axis_name] or 0 for row in rows]
    label = f"{probe}: {metric.replace('_', ' ')}"
    axis.plot(positions, values, marker="o", markersize=3, label=label)
