"""What a study leaves: `results.json`, a table on the terminal, all of it in MLflow."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from scipy import stats

#: Columns of a table where there is no terminal to fit.
_WIDTH = 150


@dataclass(frozen=True)
class Check:
    """A number that was promised: `value` against `bound`.

    Args:
        value: What came out.
        bound: What it is held against.
        held: Whether it is on the right side of it.
    """

    value: float
    bound: float
    held: bool


def at_most(value: float, bound: float) -> Check:
    """A check that holds if the value does not exceed the bound."""
    return Check(value, bound, value <= bound)


def at_least(value: float, bound: float) -> Check:
    """A check that holds if the value reaches the bound."""
    return Check(value, bound, value >= bound)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Values of the seeds, their mean and Student's t interval (null for a single seed).

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


def paired_test(name: str, first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Paired t-test of first - second over seeds, two-sided; null where it is not defined."""
    if len(first) < 2 or np.allclose(np.subtract(first, second), np.subtract(first, second)[0]):
        return {"name": name, "statistic": None, "p": None}
    outcome = stats.ttest_rel(first, second)
    return {"name": name, "statistic": float(outcome.statistic), "p": float(outcome.pvalue)}


def write_results(
    out: Path,
    claim: str,
    preset: str,
    arms: dict[str, dict[str, Any]],
    tests: list[dict[str, Any]],
    checks: dict[str, Check],
    **more: Any,
) -> dict[str, Any]:
    """Write `results.json` and print it as tables.

    Args:
        out: Folder of the study.
        claim: What was to be shown, in one sentence.
        preset: Which preset ran.
        arms: arm -> metric -> `mean_interval`.
        tests: Of `paired_test`.
        checks: name -> check.
        more: Further entries.

    Returns:
        What was written. `held` is true if every check is; false is a result, not a failure.
    """
    results = {
        "claim": claim,
        "preset": preset,
        "device": "cpu",
        "arms": arms,
        "tests": tests,
        "checks": {name: asdict(check) for name, check in checks.items()},
        "held": all(check.held for check in checks.values()),
        **more,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    _print(results)
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
    """What there are fewer of, arms or metrics, across: a study of many arms stays readable."""
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
