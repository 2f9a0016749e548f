"""The efficiency of a search in oracle calls: Yield and oracle burden.

Definitions of Guo and Schwaller's sample-efficiency papers (Saturn, 2405.17066), which MARA
(2510.20817, table 2) reports: Yield(T) counts the different molecules with a reward of at least T;
the oracle burden OB(N) is the number of calls until N of them were found. A repeated molecule comes
from the oracle's cache, so it neither costs a call nor counts twice.

A search that ends before its N-th hit has no oracle burden. It is infinite here and shown as
">calls"; it must not enter a mean as if the budget had sufficed.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.molecule_ids import molecule_ids, unique_rows
from triptych.metrics.gathered_metric import GatheredMetric


def format_burden(burden: float, budget: int) -> str:
    """Format an oracle burden for a table.

    Args:
        burden: From `OracleBurden`.
        budget: Number of available calls.

    >>> format_burden(1042.0, 10_000), format_burden(math.inf, 10_000)
    ('1,042', '>10,000')
    """
    return f">{budget:,}" if math.isinf(burden) else f"{burden:,.0f}"


def summarize_burdens(burdens: Sequence[float], budget: int) -> str:
    """Format the oracle burdens of several seeds: mean and number of the successful ones.

    >>> summarize_burdens([900.0, 1100.0, math.inf], 3000)
    '1,000 (2 of 3 seeds; the others >3,000)'
    >>> summarize_burdens([math.inf], 3000)
    '>3,000 (0 of 1 seeds)'
    """
    reached = [burden for burden in burdens if math.isfinite(burden)]
    if not reached:
        return f">{budget:,} (0 of {len(burdens)} seeds)"
    mean = f"{sum(reached) / len(reached):,.0f}"
    if len(reached) == len(burdens):
        return f"{mean} (all {len(burdens)} seeds)"
    return f"{mean} ({len(reached)} of {len(burdens)} seeds; the others >{budget:,})"


class _Hits(GatheredMetric):
    """Keeps the valid molecules with a reward of at least the threshold."""

    def __init__(self, threshold: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if math.isnan(threshold):
            raise ValueError("threshold is nan: give the least reward of a hit")
        self.threshold = threshold
        self.add_row_state("ids", torch.int64)

    def _hits(self, smiles: Sequence[str], rewards: Sequence[float] | Tensor) -> Tensor:
        """Store the ids of hits; return a mask of the strings that are hits."""
        rewards_N = torch.as_tensor(rewards, dtype=torch.float64).flatten()
        if len(rewards_N) != len(smiles):
            raise ValueError(
                f"{type(self).__name__} got {len(rewards_N)} rewards for {len(smiles)} SMILES: "
                "give one of each"
            )
        is_valid_N, ids = molecule_ids(smiles)
        # Compared in float32 too, so that a reward of .8 from a float32 tensor reaches .8.
        reaches_N = (rewards_N.cpu() >= self.threshold) | (
            rewards_N.cpu().float() >= torch.tensor(self.threshold, dtype=torch.float32)
        )
        self.append_rows("ids", ids[reaches_N[is_valid_N]])
        return reaches_N & is_valid_N


class Yield(_Hits):
    """The number of different molecules with a reward of at least the threshold.

    Args:
        threshold: T.
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = Yield(threshold=0.8)
    >>> metric.update(["CCO", "OCC", "CCN", "CCC", "C1CC"], [0.9, 0.9, 0.8, 0.1, 1.0])
    >>> metric.compute()
    tensor(2)
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with repeats, misses and an invalid string."""
        return cls(0.5), [
            (["CCO", "OCC", "CCC"], [0.9, 0.9, 0.1]),
            (["CCO", "CCN", "C1CC"], torch.tensor([0.9, 0.5, 1.0], dtype=torch.float32)),
            ([], []),
        ]

    def update(self, smiles: Sequence[str], rewards: Sequence[float] | Tensor) -> None:
        """Add scored molecules.

        Args:
            smiles: SMILES strings; invalid ones are left out.
            rewards: One per string.

        Raises:
            ValueError: If the two differ in length.
        """
        self._hits(smiles, rewards)

    def compute(self) -> Tensor:
        """Return the number, an int64 scalar."""
        return torch.tensor(len(unique_rows(self.rows("ids").view(-1, 2))))


class OracleBurden(_Hits):
    """Oracle calls until `num_hits` different molecules reached the threshold.

    Args:
        num_hits: N.
        threshold: T.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `num_hits` is below 1.

    >>> metric = OracleBurden(num_hits=2, threshold=0.8)
    >>> metric.update(["CCO", "CCC", "OCC", "CCN"], [0.9, 0.1, 0.9, 0.8], [1, 2, 1, 3])
    >>> metric.compute()
    tensor(3., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, num_hits: int, threshold: float, **kwargs: Any) -> None:
        super().__init__(threshold, **kwargs)
        if num_hits < 1:
            raise ValueError(f"num_hits is {num_hits}: set it to at least 1")
        self.num_hits = num_hits
        self.add_row_state("calls", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat."""
        return cls(2, 0.5), [
            (["CCO", "CCC", "OCC"], [0.9, 0.1, 0.9], [1, 2, 1]),
            (["CCN", "CCF"], [0.7, 0.6], [4, 3]),
            ([], [], []),
        ]

    def update(
        self,
        smiles: Sequence[str],
        rewards: Sequence[float] | Tensor,
        calls: Sequence[int] | Tensor,
    ) -> None:
        """Add scored molecules.

        Args:
            smiles: SMILES strings; invalid ones are left out.
            rewards: One per string.
            calls: Number of the oracle call that scored it first, from 1, as in a ledger.

        Raises:
            ValueError: If the three differ in length.
        """
        calls_N = torch.as_tensor(calls, dtype=torch.int64).cpu().flatten()
        if len(calls_N) != len(smiles):
            raise ValueError(
                f"OracleBurden got {len(calls_N)} call numbers for {len(smiles)} SMILES: give one "
                "of each"
            )
        self.append_rows("calls", calls_N[self._hits(smiles, rewards)])

    def compute(self) -> Tensor:
        """Return the calls, float64; infinite for fewer than N hits."""
        ids, calls = self.rows("ids").view(-1, 2), self.rows("calls")
        infinite = torch.tensor(math.inf, dtype=torch.float64, device=ids.device)
        if len(ids) < self.num_hits:
            return infinite
        unique, places = torch.unique(ids, dim=0, return_inverse=True)
        latest = torch.iinfo(torch.int64).max
        first = torch.full((len(unique),), latest, device=ids.device, dtype=torch.int64)
        first = first.scatter_reduce(0, places, calls, "amin").sort().values
        return first[self.num_hits - 1].double() if len(first) >= self.num_hits else infinite
