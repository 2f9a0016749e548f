"""The report of learning and forgetting: ``forgetting.json`` and rows of the final table."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.remember.forgetting.forgetting_history import ForgettingHistory
from triptych.callbacks.remember.probes.base import Probe
from triptych.metrics.remember.retention import backward_transfer, forgetting, forward_transfer

#: Probe with groups of visits -> name -> value.
Transfers = Mapping[str, Mapping[str, float]]


def transfers(history: ForgettingHistory, probes: Mapping[str, Probe]) -> Transfers:
    """Summarise the matrix R of each probe that was measured after each of its groups."""
    found = {}
    for name, probe in probes.items():
        retention = history.retention(name, probe.groups)
        if retention is not None:
            scores_TT, start_T = retention
            found[name] = {
                "backward_transfer": backward_transfer(scores_TT),
                "forward_transfer": forward_transfer(scores_TT, start_T),
                "forgetting": forgetting(scores_TT),
            }
    return found


def write_report(
    path: Path,
    history: ForgettingHistory,
    probes: Mapping[str, Probe],
    summed_up: Transfers,
    stopped: str | None,
) -> None:
    """Write all measurements as JSON, atomically.

    Args:
        path: Path of the file.
        history: The measurements.
        probes: The probes by name.
        summed_up: Result of `transfers`.
        stopped: Why the run was stopped, if it was.
    """
    content = {
        "probes": {
            name: {
                "role": probe.role,
                "headline": probe.headline,
                "higher_is_better": probe.higher_is_better,
                "num_rows": probe.num_rows_used,
                "num_rows_left_out": probe.num_rows_left_out,
            }
            for name, probe in probes.items()
        },
        "rows": [
            row | {key: _finite(row[key]) for key in ("value", "change")} for row in history.rows
        ],
        "retention": {
            name: {metric: _finite(value) for metric, value in values.items()}
            for name, values in summed_up.items()
        },
        "stopped": stopped,
    }
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def table_rows(
    history: ForgettingHistory,
    probes: Mapping[str, Probe],
    summed_up: Transfers,
    stopped: str | None,
) -> list[tuple[str, str]]:
    """Word the rows of the table; arguments are those of `write_report`."""
    rows = []
    for role, title in (("learned", "learned"), ("retained", "forgotten")):
        for name, probe in probes.items():
            if probe.role == role:
                rows += [
                    (f"{title}: {name}, {_words(metric)}", _told(history, name, probe, metric))
                    for metric in probe.shown
                ]
    for name, values in summed_up.items():
        rows += [(f"{name}: {_words(metric)}", f"{value:+.4g}") for metric, value in values.items()]
    if stopped is not None:
        rows.append(("forgetting budget spent", stopped))
    return rows


def _told(history: ForgettingHistory, name: str, probe: Probe, metric: str) -> str:
    start, value = history.first(name, metric), history.last(name, metric)
    if start is None or value is None:
        return "not measured"
    if probe.higher_is_better:
        change = f"{100 * (value - start):+.1f} points"
    else:
        change = f"{100 * (value / start - 1):+.2f}%" if start else f"{value - start:+.4g}"
    return f"{start:.4g} to {value:.4g} ({change})"


def _words(metric: str) -> str:
    """Name a number in words.

    >>> _words("nll_nats_per_token"), _words("first_20_visits_exact_match")
    ('nll nats/token', 'first 20 visits exact match')
    """
    return metric.replace("_per_", "/").replace("_", " ")


def _finite(value: float) -> float | None:
    """Replace a value that JSON cannot hold by None."""
    return value if math.isfinite(value) else None
