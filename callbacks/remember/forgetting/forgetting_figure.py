"""The figure of learning and forgetting in a run."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.callbacks.remember.forgetting.forgetting_history import ForgettingHistory
from triptych.callbacks.remember.probes.base import Probe
from triptych.metrics.display.figure_style import WIDTH, count_axis, series, share_axis, styled
from triptych.metrics.display.metric_names import quantity_of, set_name

_RISE = "retained: rise of the loss"


@styled
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
        _RISE: [(n, p) for n, p in _retained(probes) if not p.higher_is_better],
    }
    drawn = {title: members for title, members in panels.items() if members}
    figure = Figure(figsize=(max(5.0, WIDTH * len(drawn) / 3), 3.2), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (title, members) in zip(axes, drawn.items(), strict=True):
        place = 0
        for name, probe in members:
            for metric in probe.shown:
                _draw_line(axis, history, name, metric, axis_name, title == _RISE, place)
                place += 1
        axis.set(
            title=title,
            xlabel="visits" if axis_name == "visit" else "completed optimizer steps",
            ylabel="percent" if title == _RISE else "share",
        )
        if title != _RISE and all(probe.higher_is_better for _, probe in members):
            share_axis(axis)
        count_axis(axis)
        axis.legend()
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
    place: int,
) -> None:
    rows = history.of(probe, metric)
    values = [row["value"] for row in rows]
    if in_percent:
        values = [100 * (value / values[0] - 1) if values[0] else value for value in values]
    positions = [row[axis_name] or 0 for row in rows]
    key = f"forgetting/{probe}/{metric}"
    label = f"{set_name(key)}: {quantity_of(key).text}"
    axis.plot(positions, values, label=label, **series(place))
