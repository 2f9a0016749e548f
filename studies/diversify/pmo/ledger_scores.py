"""Scores of a search in the order of its oracle calls, and their area under the top-k curve."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np


def scores_of_calls(run: Path) -> list[float]:
    """Read the scores of a run's ledger, in the order of the calls."""
    with closing(sqlite3.connect(run / "oracle.sqlite")) as ledger:
        rows = ledger.execute("SELECT score FROM calls WHERE score IS NOT NULL ORDER BY call")
        return [float(score) for (score,) in rows]


def auc_top_k(scores: Sequence[float], k: int, budget: int, every: int = 100) -> float:
    """Compute the area under the mean of the best k scores, over the budget, by mol_opt's rule.

    The mean is taken every `every` calls and joined by straight lines, from 0 before the first
    call. A search that ends early keeps its last mean for the rest of the budget.

    >>> auc_top_k([0.0, 1.0, 0.5, 0.5], k=1, budget=4, every=2)  # 0 to 1 over 2 calls, then 1
    0.75
    >>> auc_top_k([0.0, 1.0], k=1, budget=4, every=2)  # at its end, and kept
    0.75
    """
    if not scores:
        return 0.0
    made = np.asarray(scores[:budget], dtype=float)
    total = before = 0.0
    called = 0
    for calls in range(every, len(made), every):
        now = top_k(made[:calls], k)
        total += every * (before + now) / 2
        before, called = now, calls
    last = top_k(made, k)
    total += (len(made) - called) * (before + last) / 2
    total += (budget - len(made)) * last
    return total / budget


def top_k(scores: Sequence[float] | np.ndarray, k: int) -> float:
    """Compute the mean of the best k scores, or of all if there are fewer."""
    return float(np.sort(np.asarray(scores, dtype=float))[-k:].mean())
