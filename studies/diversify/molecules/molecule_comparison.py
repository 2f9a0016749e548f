"""Paired comparison of two search methods by several metrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from triptych.studies.diversify.molecules.molecule_search import (
    Search,
    diversity,
    equal_calls,
    equal_number,
    equal_samples,
)
from triptych.studies.results import Check, at_least, at_most, mean_interval

YIELD, AT_CALLS, AT_SAMPLES = "Yield", "Yield at equal calls", "Yield at equal samples"
BURDEN, CALLS = "calls until hit 100", "oracle calls spent"
INT_DIV, CIRCLES = "IntDiv1 at equal N", "Circles at equal N"
NUM_HITS = 100
# Fixed before the runs, for the cell of the pilot.
ALPHA, MOST_BURDEN, LEAST_INT_DIV, LEAST_CIRCLES = 0.05, 0.15, -0.03, -0.20


@dataclass(frozen=True)
class Paired:
    """One metric of both methods, paired by seed.

    Args:
        first: Values of MARA.
        second: Values of the rival.
    """

    first: Sequence[float]
    second: Sequence[float]

    @property
    def differences(self) -> np.ndarray:
        """Differences first - second, one per seed."""
        return np.subtract(self.first, self.second)

    @property
    def p(self) -> float:
        """One-sided p of a paired t-test of first > second; 1 where the test is undefined."""
        if len(self.first) < 2 or np.allclose(self.differences, self.differences[0]):
            return 1.0
        return float(stats.ttest_rel(self.first, self.second, alternative="greater").pvalue)

    def bound(self, side: int) -> float:
        """Compute the one-sided 95% bound of the mean difference, upper (1) or lower (-1).

        >>> round(Paired([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]).bound(1), 3)  # 2 + 2.920 / sqrt(3)
        3.686
        """
        each = self.differences
        if len(each) < 2:
            return float(each.mean())
        quantile = float(stats.t.ppf(1 - ALPHA, len(each) - 1))
        return float(each.mean() + side * quantile * each.std(ddof=1) / math.sqrt(len(each)))

    def share(self, side: int) -> float:
        """Return the bound as a share of the mean of `second`; 0 if that mean is 0."""
        mean = float(np.mean(self.second))
        return self.bound(side) / mean if mean else 0.0

    def entry(self) -> dict[str, Any]:
        """Return the entry of `results.json`."""
        return {
            "mara": mean_interval(self.first),
            "rival": mean_interval(self.second),
            "difference": mean_interval(self.differences.tolist()),
            "p_greater": self.p,
        }


Comparison = dict[str, Paired]


def compare(mara: Sequence[Search], rival: Sequence[Search], seeds: Sequence[int]) -> Comparison:
    """Compute all metrics of two methods.

    Args:
        mara: One search per seed.
        rival: Searches with the same seeds in the same order.
        seeds: Seeds, which also select the hits for the diversity metrics.

    Returns:
        Maps names to paired values. `BURDEN` leaves out seeds in which a method has fewer than 100
        hits, and is absent if none remain.
    """
    pairs = list(zip(mara, rival, strict=True))
    burdens = [(a.burden(NUM_HITS), b.burden(NUM_HITS)) for a, b in pairs]
    hits = [equal_number(a.hits, b.hits, s) for (a, b), s in zip(pairs, seeds, strict=True)]
    diverse = [(diversity(a), diversity(b)) for a, b in hits]
    rows: dict[str, list[tuple[Any, Any]]] = {
        YIELD: [(a.found(), b.found()) for a, b in pairs],
        AT_CALLS: [equal_calls(a, b) for a, b in pairs],
        AT_SAMPLES: [equal_samples(a, b) for a, b in pairs],
        CALLS: [(a.num_calls, b.num_calls) for a, b in pairs],
        BURDEN: [(a, b) for a, b in burdens if a is not None and b is not None],
        INT_DIV: [(a[0], b[0]) for a, b in diverse],
        CIRCLES: [(a[1], b[1]) for a, b in diverse],
    }
    return {
        name: Paired([float(a) for a, _ in both], [float(b) for _, b in both])
        for name, both in rows.items()
        if both
    }


def gates(numbers: Comparison, num_seeds: int) -> dict[str, Check]:
    """Compare the gated cell with the bounds that were fixed beforehand."""
    burden = numbers.get(BURDEN)
    checks = {
        f"{YIELD}, MARA - REINVENT: one-sided p": at_most(numbers[YIELD].p, ALPHA),
        "seeds in which both had 100 hits": at_least(len(burden.first) if burden else 0, num_seeds),
        f"{INT_DIV}, lower bound of the difference": at_least(
            numbers[INT_DIV].bound(-1), LEAST_INT_DIV
        ),
        f"{CIRCLES}, lower bound of the change (share)": at_least(
            numbers[CIRCLES].share(-1), LEAST_CIRCLES
        ),
    }
    if burden is not None:
        checks[f"{BURDEN}, upper bound of the rise (share)"] = at_most(burden.share(1), MOST_BURDEN)
    return checks


def show(comparisons: dict[str, Comparison]) -> None:
    """Print all comparisons as tables."""
    console = Console()
    for title, numbers in comparisons.items():
        table = Table("", "MARA", "rival", "difference [95%]", "p, MARA greater", title=title)
        for name, paired in numbers.items():
            entry = paired.entry()
            interval = entry["difference"]["interval"]
            spread = "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
            table.add_row(
                name,
                f"{entry['mara']['mean']:.4g}",
                f"{entry['rival']['mean']:.4g}",
                f"{entry['difference']['mean']:.4g}{spread}",
                f"{entry['p_greater']:.2g}",
            )
        console.print(table)
