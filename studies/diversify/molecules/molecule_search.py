"""The record of one search for molecules, and fair comparisons of two searches."""

import csv
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Search:
    """The oracle calls and hits of a search.

    Args:
        smiles: Molecule of each oracle call, in order.
        is_hit: True for a molecule that reaches the threshold.
        calls: Oracle calls made after each training step.
        samples: Molecules sampled after each training step, known ones included.
    """

    smiles: list[str]
    is_hit: np.ndarray
    calls: np.ndarray
    samples: np.ndarray

    @property
    def num_calls(self) -> int:
        """Number of oracle calls."""
        return len(self.smiles)

    @property
    def num_samples(self) -> int:
        """Number of sampled molecules."""
        return int(self.samples[-1])

    @property
    def hits(self) -> list[str]:
        """Distinct molecules that reach the threshold, in the order of discovery."""
        return [text for text, is_hit in zip(self.smiles, self.is_hit, strict=True) if is_hit]

    def found(self, num_calls: int | None = None) -> int:
        """Count hits within the first `num_calls` calls (the Yield); None: within all."""
        return int(self.is_hit[:num_calls].sum())

    def found_in_samples(self, num_samples: int) -> int:
        """Count hits among the first samples, rounded down to whole training steps."""
        steps = int(np.searchsorted(self.samples, num_samples, side="right"))
        return self.found(int(self.calls[steps - 1])) if steps else 0

    def burden(self, num_hits: int) -> int | None:
        """Return the number of oracle calls until `num_hits` hits; None if never reached."""
        places = np.flatnonzero(self.is_hit)
        return int(places[num_hits - 1]) + 1 if len(places) >= num_hits else None


def read_search(run: Path, threshold: float) -> Search:
    """Read the oracle ledger and the metrics of a run.

    Args:
        run: Run directory.
        threshold: Minimum score of a hit.
    """
    with closing(sqlite3.connect(run / "oracle.sqlite")) as ledger:
        rows = ledger.execute(
            "SELECT smiles, score FROM calls WHERE score IS NOT NULL ORDER BY call"
        ).fetchall()
    with (run / "metrics.csv").open(newline="") as file:
        steps = [row for row in csv.DictReader(file) if row.get("train/oracle_calls")]
    return Search(
        [smiles for smiles, _ in rows],
        np.array([score >= threshold for _, score in rows], dtype=bool),
        np.array([float(row["train/oracle_calls"]) for row in steps]).astype(int),
        np.array([float(row["train/generated_samples"]) for row in steps]).astype(int),
    )


def equal_calls(first: Search, second: Search) -> tuple[int, int]:
    """Return the Yields within the number of calls that both searches made."""
    calls = min(first.num_calls, second.num_calls)
    return first.found(calls), second.found(calls)


def equal_samples(first: Search, second: Search) -> tuple[int, int]:
    """Return the Yields within the number of samples that both searches drew."""
    samples = min(first.num_samples, second.num_samples)
    return first.found_in_samples(samples), second.found_in_samples(samples)


def equal_number(
    first: Sequence[str], second: Sequence[str], seed: int
) -> tuple[list[str], list[str]]:
    """Draw the same number of hits from both searches at random, since diversity grows with it.

    Args:
        first: Hits of one search, whose order is kept.
        second: Hits of another search.
        seed: Seed of the draws.
    """
    count = min(len(first), len(second))
    random = np.random.default_rng(seed)
    drawn = [np.sort(random.permutation(len(hits))[:count]) for hits in (first, second)]
    return [first[i] for i in drawn[0]], [second[i] for i in drawn[1]]


def diversity(hits: Sequence[str]) -> tuple[float, float]:
    """Compute IntDiv1 (MOSES) and #Circles (Leader in given order, distance 0.75); 0 if empty."""
    from triptych.metrics.diversify.molecules.circles import Circles
    from triptych.metrics.diversify.molecules.internal_diversity import InternalDiversity

    if not hits:
        return 0.0, 0.0
    values = []
    for metric in (InternalDiversity(), Circles()):
        metric.update(hits)
        values.append(float(metric.compute()))
    return values[0], values[1]
