"""AUC top-k: how early a search finds good molecules, and how good they are.

The measure of PMO (Gao et al. 2022, 2206.12411) by the rule of its code, mol_opt: the mean score of
the best k molecules is taken after every 100 oracle calls and at the end, joined by straight lines
from zero, and the area below is divided by the budget. A search that ends before its budget keeps
its last value for the rest.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from triptych.metrics.gathered_metric import GatheredMetric


def auc_top_k(
    scores: Sequence[float], k: int = 10, budget: int | None = None, every: int = 100
) -> float:
    """Compute the area under the curve of the mean of the best k scores, over the budget.

    Args:
        scores: The score of each oracle call, in the order of calls.
        k: Number of best molecules; with fewer calls than k the mean runs over these.
        budget: Number of calls that the search had; scores beyond it do not count. None: as many
            as there are scores.
        every: Calls between two points of the curve.

    Returns:
        A number up to the best score; nan without a score.

    >>> auc_top_k([0.0, 1.0, 0.5, 1.0], k=1, every=2)  # triangle up to call 2, then 1
    0.75
    >>> auc_top_k([1.0, 1.0], k=1, budget=4, every=2)  # the last value holds to the budget
    0.75
    """
    budget = len(scores) if budget is None else budget
    kept = np.asarray(scores, dtype=np.float64)[:budget]
    if not len(kept):
        return math.nan
    places = [0, *range(every, len(kept), every), len(kept)]
    heights = [0.0, *(float(np.sort(kept[:place])[-k:].mean()) for place in places[1:])]
    area = float(np.trapezoid(heights, places)) + (budget - len(kept)) * heights[-1]
    return area / budget


class AucTopK(GatheredMetric):
    """AUC top-k of a search: the mean of the k best scores so far, averaged over the budget.

    Args:
        k: Number of best molecules; PMO ranks by 10 and reports 1 and 100 too.
        budget: Number of oracle calls; later ones do not count. 10,000 in PMO.
        every: Calls between two points of the curve.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is below 1.

    >>> metric = AucTopK(k=1, budget=4, every=2)
    >>> metric.update([0.5, 0.0, 1.0, 1.0], [3, 1, 2, 2])  # call 2 twice: a repeated molecule
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(self, k: int = 10, budget: int = 10_000, every: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if min(k, budget, every) < 1:
            raise ValueError(f"k={k}, budget={budget}, every={every}: set each to at least 1.")
        self.k, self.budget, self.every = k, budget, every
        self.add_row_state("scores", torch.float64)
        self.add_row_state("calls", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeated call and one that failed."""
        return cls(k=2, budget=8, every=2), [
            ([0.25, 0.5, 0.25], [1, 2, 1]),
            (torch.tensor([0.75, torch.nan], dtype=torch.float32), torch.tensor([4, 3])),
            ([], []),
        ]

    def update(self, rewards: Sequence[float] | Tensor, calls: Sequence[int] | Tensor) -> None:
        """Add scored molecules.

        Args:
            rewards: One per molecule; nan where the oracle failed, which counts as no call.
            calls: Number of the oracle call that scored it first, from 1, as in a ledger. A number
                counts once.

        Raises:
            ValueError: If the two differ in length.
        """
        rewards_N = torch.as_tensor(rewards, dtype=torch.float64).cpu().flatten()
        calls_N = torch.as_tensor(calls, dtype=torch.int64).cpu().flatten()
        if len(rewards_N) != len(calls_N):
            raise ValueError(
                f"AucTopK got {len(rewards_N)} rewards and {len(calls_N)} call numbers: give one "
                "of each."
            )
        known_N = rewards_N.isfinite()
        self.append_rows("scores", rewards_N[known_N])
        self.append_rows("calls", calls_N[known_N])

    def compute(self) -> Tensor:
        """Return the area, a float64 scalar; nan without a scored call."""
        calls, scores = self.rows("calls").cpu().numpy(), self.rows("scores").cpu().numpy()
        order = np.lexsort((scores, calls))  # of two scores of one call the same on every rank
        _, first = np.unique(calls[order], return_index=True)
        area = auc_top_k(scores[order][first].tolist(), self.k, self.budget, self.every)
        return torch.tensor(area, dtype=torch.float64, device=self.device)
