"""AUC top-k against hand-computed areas and against a literal reading of mol_opt's rule."""

import math

import numpy as np
import pytest
import torch

from triptych.metrics.diversify.molecules.search_curve import AucTopK, auc_top_k


def by_steps(scores, k, budget, every):
    """Sum trapezoids in a loop over the calls, then the rest of the budget."""
    area, before, reached = 0.0, 0.0, 0
    scores = list(scores)[:budget]
    for called in range(1, len(scores) + 1):
        if called % every == 0 or called == len(scores):
            now = sum(sorted(scores[:called], reverse=True)[:k]) / min(k, called)
            area += (called - reached) * (before + now) / 2
            before, reached = now, called
    return (area + (budget - len(scores)) * before) / budget


@pytest.mark.parametrize(
    ("scores", "k", "budget", "expected"),
    [
        ([1.0] * 200, 10, 200, 0.75),  # a triangle of 100 calls, then 1
        ([1.0] * 100, 10, 200, 0.75),  # the last value holds for the rest of the budget
        ([1.0] * 50, 10, 100, 0.75),  # half a triangle, then 1
        ([0.0] * 100 + [1.0] * 100, 10, 200, 0.25),
        ([0.0] * 99 + [1.0], 1, 100, 0.5),
        ([0.0] * 99 + [1.0], 10, 100, 0.05),
        ([0.5, 1.0], 10, 100, (2 * 0.75 / 2 + 98 * 0.75) / 100),  # fewer calls than k
        ([1.0] * 100 + [9.0] * 900, 10, 100, 0.5),  # beyond the budget nothing counts
    ],
)
def test_hand_computed_areas(scores, k, budget, expected):
    assert auc_top_k(scores, k, budget) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_calls", [1, 99, 100, 101, 350, 400, 777])
def test_equals_a_loop_over_calls(num_calls):
    scores = np.random.default_rng(num_calls).random(num_calls)
    for k, every in ((1, 100), (10, 100), (100, 30)):
        assert auc_top_k(scores, k, 400, every) == pytest.approx(
            by_steps(scores, k, 400, every), rel=1e-12
        )


def test_calls_count_once_in_their_order():
    scores = np.random.default_rng(0).random(250)
    calls = np.random.default_rng(1).permutation(250)
    metric = AucTopK(k=5, budget=300)
    for places in (calls[:100], calls[60:], calls[:30]):  # overlaps: repeated molecules
        metric.update(scores[places].tolist(), torch.from_numpy(places + 1))
    metric.update([math.nan], [1])  # a failed call is no call
    assert metric.compute().item() == pytest.approx(auc_top_k(scores, 5, 300), rel=1e-12)
    assert AucTopK().compute().isnan()
    with pytest.raises(ValueError, match="1 rewards and 2 call numbers"):
        metric.update([0.5], [1, 2])
    with pytest.raises(ValueError, match="at least 1"):
        AucTopK(budget=0)
