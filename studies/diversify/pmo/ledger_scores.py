"""Scores of a search in the order of its oracle calls, and the mean of the best."""

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


def top_k(scores: Sequence[float] | np.ndarray, k: int) -> float:
    """Compute the mean of the best k scores, or of all if there are fewer; 0 without a score."""
    if not len(scores):
        return 0.0
    return float(np.sort(np.asarray(scores, dtype=float))[-k:].mean())
