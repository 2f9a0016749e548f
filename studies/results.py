"""Output of a study: `results.json`, `report.html` and tables on the terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from scipy import stats

from triptych.callbacks.report.study_page import write_study_report
from triptych.studies.study_tracking import end_study

#: Characters per line if the output is not a terminal.
_WIDTH = 150

#: Maps each arm to the metrics of each seed.
Numbers = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Check:
    """A comparison of a measured value with its bound.

    Args:
        value: Measured value.
        bound: Bound that was fixed beforehand.
        held: True if the value is on the right side of the bound.
    """

    value: float
    bound: float
    held: bool


def at_most(value: float, bound: float) -> Check:
    """Return a check that holds if the value does not exceed the bound."""
    return Check(value, bound, value <= bound)


def at_least(value: float, bound: float) -> Check:
    """Return a check that holds if the value reaches the bound."""
    return Check(value, bound, value >= bound)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Return the values of the seeds, their mean and Student's t interval (None for one seed).

    >>> mean_interval([1.0, 2.0, 3.0])["interval"]
    [-0.484..., 4.484...]
    """
    array = np.asarray(values, dtype=float)
    interval = None
    if len(array) > 1:
        quantile = float(stats.t.ppf(0.5 + confidence / 2, len(array) - 1))
        half = quantile * float(array.std(ddof=1)) / math.sqrt(len(array))
        interval = [float(array.mean()) - half, float(array.mean()) + half]
    return {"per_seed": array.tolist(), "mean": float(array.mean()), "interval": interval}


def summarize(numbers: Numbers) -> dict[str, dict[str, Any]]:
    """Return the `mean_interval` of each metric of each arm."""
    return {
        arm: {key: mean_interval([n[key] for n in per_seed]) for key in per_seed[0]}
        for arm, per_seed in numbers.items()
    }


def saved_numbers(results: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Return the numbers of each arm and seed from the content of a `results.json`.

    >>> numbers = {"ours": [{"recall": 0.5}, {"recall": 0.7}]}
    >>> saved_numbers({"arms": summarize(numbers)}) == numbers
    True
    """
    return {
        arm: [
            dict(zip(metrics, values, strict=True))
            for values in zip(*(entry["per_seed"] for entry in metrics.values()), strict=True)
        ]
        for arm, metrics in results["arms"].items()
    }


def paired_test(name: str, first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Run a two-sided paired t-test of first - second over seeds; None where it is undefined."""
    if len(first) < 2 or np.allclose(np.subtract(first, second), np.subtract(first, second)[0]):
        return {"name": name, "statistic": None, "p": None}
    outcome = stats.ttest_rel(first, second)
    return {"name": name, "statistic": float(outcome.statistic), "p": float(outcome.pvalue)}


def compare_arms(numbers: Numbers, key: str, first: str, second: str) -> dict[str, Any]:
    """Run a `paired_test` on one metric of two arms."""
    values = ([n[key] for n in numbers[arm]] for arm in (first, second))
    return paired_test(f"{key}, {first} - {second}", *values)


def write_results(
    out: Path,
    claim: str,
    preset: str,
    arms: dict[str, dict[str, Any]],
    tests: list[dict[str, Any]],
    checks: Mapping[str, Check],
    *,
    device: str,
    **more: Any,
) -> dict[str, Any]:
    """Write `results.json` and `report.html`, and print the results as tables.

    Args:
        out: Folder of the study.
        claim: The claim under test, in one sentence.
        preset: Name of the preset that ran.
        arms: Maps arm and metric to a `mean_interval`.
        tests: Entries from `paired_test`.
        checks: Maps names to checks.
        device: Device that the runs used.
        more: Further entries.

    Returns:
        The content of the file. `held` is true if every check holds; false is a valid result.
    """
    results = {
        "claim": claim,
        "preset": preset,
        "device": device,
        "arms": arms,
        "tests": tests,
        "checks": {name: asdict(check) for name, check in checks.items()},
        "held": all(check.held for check in checks.values()),
        **more,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_study_report(out)
    _print(results)
    end_study(out, results)
    return results


def _print(results: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(_table(results["claim"], results["arms"]))
    for test in results["tests"]:
        p = "not defined" if test["p"] is None else f"{test['p']:.2g}"
        console.print(f"{test['name']}: p = {p}")
    for name, check in results["checks"].items():
        verdict = "held" if check["held"] else "[bold]not held[/bold]"
        console.print(f"{name}: {check['value']:.4g} against {check['bound']:.4g}: {verdict}")


def _table(claim: str, arms: dict[str, dict[str, Any]]) -> Table:
    """Build a table with arms or metrics as columns, whichever are fewer, to keep it narrow."""
    metrics = sorted({metric for arm in arms.values() for metric in arm})
    cells = {(name, key): _cell(entry) for name, arm in arms.items() for key, entry in arm.items()}
    caption = "means over seeds ± half of the 95% interval (Student's t)"
    if len(arms) > len(metrics):
        table = Table(Column("arm", no_wrap=True), *metrics, title=claim, caption=caption)
        for arm in arms:
            table.add_row(arm, *(cells.get((arm, metric), "") for metric in metrics))
        return table
    table = Table("metric", *arms, title=claim, caption=caption)
    for metric in metrics:
        table.add_row(metric, *(cells.get((arm, metric), "") for arm in arms))
    return table


def _cell(entry: dict[str, Any]) -> str:
    interval = entry["interval"]
    spread = "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2g}"
    return f"{entry['mean']:.4g}{spread}"
