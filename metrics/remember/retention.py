"""Retention of earlier knowledge during learning: transfer, forgetting, and fair comparison.

The matrix R holds, in row i and column j, the score on group j after learning group i, where higher
is better. Without forgetting, a row of R is as good left of the diagonal as on it.

Shapes: T groups in the order of learning (tasks, or facts by visit); R runs.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric

Scores = Tensor | Sequence[Sequence[float]]


def backward_transfer(scores_TT: Scores) -> float:
    """Average the effect of later learning on each group: mean over j < T of R[T, j] - R[j, j].

    Args:
        scores_TT: The matrix R.

    Returns:
        Negative if later groups damaged earlier ones; nan for fewer than two groups, or if a
        required score is nan.

    Raises:
        ValueError: If R is not square, or empty.

    Source: Gradient Episodic Memory, 1706.08840, equation 3.

    >>> backward_transfer([[1.0, 0.0], [0.25, 1.0]])
    -0.75
    """
    scores = _square(scores_TT)
    return _mean(scores[-1, :-1] - scores.diagonal()[:-1])


def forward_transfer(scores_TT: Scores, start_T: Tensor | Sequence[float]) -> float:
    """Average the effect of earlier groups on later ones: mean over j > 1 of R[j-1, j] - b_j.

    Args:
        scores_TT: The matrix R.
        start_T: Scores b before any learning. (The source takes those of a model with random
            weights; for a pretrained model take its own initial scores.)

    Returns:
        Positive if earlier groups helped; nan for fewer than two groups, or if a required score is
        nan.

    Raises:
        ValueError: If R is not square, or empty, or b has another length.

    Source: 1706.08840, equation 4.

    >>> forward_transfer([[1.0, 0.25], [0.5, 1.0]], [0.0, 0.125])
    0.125
    """
    scores = _square(scores_TT)
    start = torch.as_tensor(start_T, dtype=torch.float64)
    if start.shape != scores.shape[:1]:
        raise ValueError(
            f"start_T has {start.numel()} scores for {len(scores)} groups: give the score of each "
            "group before anything was learned"
        )
    return _mean(scores.diagonal(1) - start[1:])


def forgetting(scores_TT: Scores) -> float:
    """Average the fall of each group from its best: mean over all j of max_i R[i, j] - R[T, j].

    Args:
        scores_TT: The matrix R; a score that was not measured is nan, and is ignored in the
            maximum.

    Returns:
        At least 0, since the maximum includes the last row. nan if a score of the last row is nan.

    Raises:
        ValueError: If R is not square, or empty.

    Source: after Riemannian Walk, 1801.10112, section 2.2. Deviation: there the mean runs over the
    first T - 1 groups and the maximum over the first T - 1 rows, so that it can be negative.

    >>> forgetting([[1.0, 0.0], [0.25, 1.0]])
    0.375
    """
    scores = _square(scores_TT)
    return _mean(scores.nan_to_num(nan=-math.inf).amax(0) - scores[-1])


class Interpolated(NamedTuple):
    """A value interpolated between runs, or the reason why there is none.

    Attributes:
        value: The value; None instead of an extrapolation.
        reason: The reason why there is no value; None if there is one.
    """

    value: float | None
    reason: str | None = None


def pareto_front(
    learned_R: Sequence[float], retained_R: Sequence[float], smaller_is_better: bool = False
) -> list[int]:
    """Find the runs for which no other run learned and retained at least as much.

    Args:
        learned_R: Amount that each run learned; more is better.
        retained_R: Amount that it retained.
        smaller_is_better: Whether a smaller `retained_R` is better, as for an NLL.

    Returns:
        Their indices, by `learned_R` ascending, so that `retained_R` gets worse along them. Of
        equal runs the first.

    Raises:
        ValueError: If there is no run, the lengths differ, or a number is not finite.

    >>> pareto_front([0.2, 0.9, 0.5, 0.4], [1.0, 0.6, 0.9, 0.8])
    [0, 2, 1]
    """
    if len(learned_R) != len(retained_R) or not len(learned_R):
        raise ValueError(
            f"got {len(learned_R)} learned and {len(retained_R)} retained scores: give one of each "
            "for every run, and at least one run"
        )
    for number, pair in enumerate(zip(learned_R, retained_R, strict=True)):
        if not all(math.isfinite(score) for score in pair):
            raise ValueError(f"run {number} has the scores {pair}: leave out a run that broke down")
    sign = -1.0 if smaller_is_better else 1.0
    # The run that learned most comes first; among equals the one that retained most.
    order = sorted(range(len(learned_R)), key=lambda r: (-learned_R[r], -sign * retained_R[r]))
    front, best = [], -math.inf
    for run in order:
        if sign * retained_R[run] > best:
            best = sign * retained_R[run]
            front.append(run)
    return front[::-1]


def retained_at(
    learned_R: Sequence[float],
    retained_R: Sequence[float],
    learned: float,
    smaller_is_better: bool = False,
) -> Interpolated:
    """Interpolate the amount that a method retains at a given amount learned.

    A sweep of runs (say, over learning rates) traces the method's Pareto front, joined by straight
    lines. Methods are compared fairly at an equal amount learned. The initial model may be one of
    the runs.

    Args:
        learned_R: Amount that each run learned; more is better.
        retained_R: Amount that it retained.
        learned: The amount learned.
        smaller_is_better: Whether a smaller `retained_R` is better, as for an NLL.

    Returns:
        The value, or the reason why the sweep does not reach it; it is never extrapolated.

    Raises:
        ValueError: As `pareto_front`.

    Source: ours; 2510.15103 compares methods in such a plane without interpolation.

    >>> retained_at([0.0, 0.5, 1.0], [1.0, 0.9, 0.5], learned=0.75)
    Interpolated(value=0.7, reason=None)
    >>> retained_at([0.0, 0.5], [1.0, 0.9], learned=0.75)
    Interpolated(value=None, reason='no run learned 0.75: the most is 0.5')
    """
    front = pareto_front(learned_R, retained_R, smaller_is_better)
    x, y = [learned_R[run] for run in front], [retained_R[run] for run in front]
    if learned > x[-1]:
        return Interpolated(None, f"no run learned {learned:g}: the most is {x[-1]:g}")
    if learned < x[0]:
        return Interpolated(
            None, f"every run on the front learned more than {learned:g}: the least is {x[0]:g}"
        )
    return Interpolated(_between(x, y, learned))


def learned_at(
    learned_R: Sequence[float],
    retained_R: Sequence[float],
    retained: float,
    smaller_is_better: bool = False,
) -> Interpolated:
    """Interpolate the amount that a method learns at a given amount retained.

    Arguments, front and errors are those of `retained_at`, along the other axis.

    >>> learned_at([0.0, 0.5, 1.0], [1.0, 0.75, 0.25], retained=0.875)
    Interpolated(value=0.25, reason=None)
    """
    front = pareto_front(learned_R, retained_R, smaller_is_better)[::-1]
    sign = -1.0 if smaller_is_better else 1.0
    x, y = [sign * retained_R[run] for run in front], [learned_R[run] for run in front]
    best, worst = sign * x[-1], sign * x[0]
    if sign * retained > x[-1]:
        return Interpolated(None, f"no run retained {retained:g}: the best is {best:g}")
    if sign * retained < x[0]:
        return Interpolated(
            None,
            f"every run on the front retained better than {retained:g}: the worst is {worst:g}",
        )
    return Interpolated(_between(x, y, sign * retained))


class GroupMeans(SummedMetric):
    """The mean score of each of several groups of rows: one row of the matrix R.

    A row of several groups is given once for each of them.

    Args:
        num_groups: T.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `num_groups` is not positive.

    >>> means = GroupMeans(num_groups=3)
    >>> means.update([0, 0, 2], [1.0, 0.0, 1.0])
    >>> means.compute()
    tensor([0.5000,    nan, 1.0000], dtype=torch.float64)
    """

    score_sums: Tensor
    num_scores: Tensor

    def __init__(self, num_groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}.")
        self.num_groups = num_groups
        self.add_sum("score_sums", torch.float64, (num_groups,))
        self.add_sum("num_scores", torch.int64, (num_groups,))

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of unequal size, one of them empty."""
        return cls(num_groups=3), [
            ([0, 2, 2], [1.0, 0.25, 0.5]),
            (torch.tensor([2]), torch.tensor([True])),
            ([], []),
        ]

    def update(self, groups: Tensor | Sequence[int], scores: Tensor | Sequence[float]) -> None:
        """Add a batch.

        Args:
            groups: Group of each score, integers in [0, T).
            scores: The scores.

        Raises:
            ValueError: If the two differ in length, or a group does not exist.
        """
        device = self.score_sums.device
        groups_N = torch.as_tensor(groups, dtype=torch.int64, device=device)
        scores_N = torch.as_tensor(scores, dtype=torch.float64, device=device)
        if groups_N.shape != scores_N.shape:
            raise ValueError(
                f"GroupMeans got {scores_N.numel()} scores for {groups_N.numel()} groups: give the "
                "group of each score."
            )
        if not len(groups_N):
            return
        if groups_N.min() < 0 or groups_N.max() >= self.num_groups:
            raise ValueError(
                f"groups must lie in [0, {self.num_groups}), got groups from {groups_N.min()} to "
                f"{groups_N.max()}: construct GroupMeans with the number of groups there are."
            )
        sums_T = torch.zeros_like(self.score_sums, dtype=torch.float64)
        self.score_sums = self.score_sums + sums_T.index_add(0, groups_N, scores_N)
        self.num_scores = self.num_scores + groups_N.bincount(minlength=self.num_groups)

    def compute(self) -> Tensor:
        """Return the means over all ranks, float64 (T,); nan for a group without scores.

        For T = 1 torchmetrics returns a scalar.
        """
        return self.score_sums / self.num_scores


def _square(scores_TT: Scores) -> Tensor:
    scores = torch.as_tensor(scores_TT, dtype=torch.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(
            f"the matrix R has shape {tuple(scores.shape)}: give a row and a column for each "
            "group, and at least one group"
        )
    return scores


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else math.nan


def _between(x: list[float], y: list[float], at: float) -> float:
    """Interpolate linearly; x ascends strictly, and `at` lies within it."""
    for left in range(len(x) - 1):
        if at <= x[left + 1]:
            share = (at - x[left]) / (x[left + 1] - x[left])
            return (1 - share) * y[left] + share * y[left + 1]  # exact at both ends
    return y[0]
