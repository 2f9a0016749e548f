"""Transfer and forgetting against hand-computed values; read-offs against numpy and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.metrics.remember.retention import (
    GroupMeans,
    backward_transfer,
    forgetting,
    forward_transfer,
    learned_at,
    pareto_front,
    retained_at,
)

# Three groups. After the second the first has fallen from .9 to .7, after the third to .4; the
# second rises from .8 to .85; the third was at .3 before its turn.
R = [
    [0.9, 0.2, 0.1],
    [0.7, 0.8, 0.3],
    [0.4, 0.85, 0.6],
]
START = [0.05, 0.1, 0.2]


def test_transfer_and_forgetting_by_hand():
    assert backward_transfer(R) == pytest.approx(((0.4 - 0.9) + (0.85 - 0.8)) / 2)  # -0.225
    assert forward_transfer(R, START) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)  # 0.1
    assert forgetting(R) == pytest.approx((0.5 + 0.0 + 0.0) / 3)


def test_the_best_may_come_before_a_group_is_learned():
    assert forgetting([[0.5, 0.9], [0.5, 0.3]]) == pytest.approx((0.0 + 0.6) / 2)


def test_one_group_transfers_nothing():
    assert math.isnan(backward_transfer([[1.0]]))
    assert math.isnan(forward_transfer([[1.0]], [0.0]))
    assert forgetting([[1.0]]) == 0.0


def test_scores_that_were_not_measured():
    nan = math.nan
    lower = [[0.9, nan, nan], [0.7, 0.8, nan], [0.4, 0.85, 0.6]]
    assert backward_transfer(lower) == pytest.approx(-0.225)
    assert forgetting(lower) == pytest.approx(0.5 / 3)
    assert math.isnan(forward_transfer(lower, START))


def test_matrices_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        forgetting([[1.0, 2.0]])
    with pytest.raises(ValueError, match="at least one group"):
        backward_transfer(torch.zeros(0, 0))
    with pytest.raises(ValueError, match="2 scores for 3 groups"):
        forward_transfer(R, [0.1, 0.2])


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n
        )
    )
)
def test_forgetting_is_a_fall_and_never_negative(scores):
    falls = [max(row[j] for row in scores) - scores[-1][j] for j in range(len(scores))]
    assert forgetting(scores) == pytest.approx(np.mean(falls))
    assert forgetting(scores) >= 0


# -- learning against forgetting ------------------------------------------------------------------

# A sweep of learning rates: the fourth run is beaten by the third (less learned, less retained).
LEARNED = [0.1, 0.4, 0.8, 0.6, 0.9]
RETAINED = [0.99, 0.97, 0.9, 0.8, 0.3]


def test_read_offs_by_hand():
    assert pareto_front(LEARNED, RETAINED) == [0, 1, 2, 4]
    assert retained_at(LEARNED, RETAINED, 0.6).value == pytest.approx(0.935)  # half-way .97 to .9
    assert retained_at(LEARNED, RETAINED, 0.85).value == pytest.approx(0.6)
    assert learned_at(LEARNED, RETAINED, 0.98).value == pytest.approx(0.25)  # half-way .1 to .4
    assert learned_at(LEARNED, RETAINED, 0.6).value == pytest.approx(0.85)


def test_runs_themselves_are_met_exactly():
    for run in (0, 1, 2, 4):
        assert retained_at(LEARNED, RETAINED, LEARNED[run]).value == RETAINED[run]
        assert learned_at(LEARNED, RETAINED, RETAINED[run]).value == LEARNED[run]


def test_nothing_is_extrapolated():
    for found, reason in [
        (retained_at(LEARNED, RETAINED, 0.95), "no run learned 0.95: the most is 0.9"),
        (retained_at(LEARNED, RETAINED, 0.05), "learned more than 0.05: the least is 0.1"),
        (learned_at(LEARNED, RETAINED, 0.995), "no run retained 0.995: the best is 0.99"),
        (learned_at(LEARNED, RETAINED, 0.2), "retained better than 0.2: the worst is 0.3"),
    ]:
        assert found.value is None
        assert found.reason.endswith(reason)


def test_smaller_may_be_better():
    nll = [4.0, 4.1, 4.6, 5.0]
    learned = [0.0, 0.5, 0.9, 0.7]
    assert pareto_front(learned, nll, smaller_is_better=True) == [0, 1, 2]
    assert retained_at(learned, nll, 0.7, smaller_is_better=True).value == pytest.approx(4.35)
    assert learned_at(learned, nll, 4.05, smaller_is_better=True).value == pytest.approx(0.25)
    refused = learned_at(learned, nll, 3.9, smaller_is_better=True)
    assert refused.reason == "no run retained 3.9: the best is 4"


def test_equal_runs_and_one_run():
    assert pareto_front([0.5, 0.5, 0.5], [0.8, 0.9, 0.9]) == [1]
    assert retained_at([0.5, 0.5], [0.8, 0.9], 0.5).value == 0.9
    assert pareto_front([0.5, 0.6], [0.9, 0.9]) == [1]  # more learned for the same


def test_runs_that_broke_down_are_refused():
    with pytest.raises(ValueError, match="run 1 has the scores"):
        retained_at([0.1, 0.2], [0.9, math.nan], 0.15)
    with pytest.raises(ValueError, match="at least one run"):
        learned_at([], [], 0.5)
    with pytest.raises(ValueError, match="2 learned and 1 retained"):
        pareto_front([0.1, 0.2], [0.9])


SHARES = st.integers(0, 20).map(lambda n: n / 20)


@settings(max_examples=200, deadline=None)
@given(runs=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=8), at=SHARES)
def test_front_and_read_off_equal_brute_force(runs, at):
    learned, retained = zip(*runs, strict=True)
    unbeaten = sorted(
        {
            (x, y)
            for x, y in runs
            if not any((u >= x and v > y) or (u > x and v >= y) for u, v in runs)
        }
    )
    assert [(learned[r], retained[r]) for r in pareto_front(learned, retained)] == unbeaten
    xs, ys = zip(*unbeaten, strict=True)
    value, _ = retained_at(learned, retained, at)
    if xs[0] <= at <= xs[-1]:
        assert value == pytest.approx(np.interp(at, xs, ys))
    else:
        assert value is None
    value, _ = learned_at(learned, retained, at)
    if ys[-1] <= at <= ys[0]:
        assert value == pytest.approx(np.interp(at, ys[::-1], xs[::-1]))
    else:
        assert value is None


# -- the means of groups --------------------------------------------------------------------------


def test_means_of_groups_by_hand():
    means = GroupMeans(num_groups=4)
    means.update([3, 0, 3], [1.0, 0.5, 0.0])
    means.update(torch.tensor([0]), torch.tensor([True]))
    assert means.compute().tolist() == pytest.approx([0.75, math.nan, math.nan, 0.5], nan_ok=True)


def test_wrong_groups_are_refused_and_nothing_is_counted():
    means = GroupMeans(num_groups=2)
    with pytest.raises(ValueError, match=r"\[0, 2\), got groups from 0 to 2"):
        means.update([0, 2], [1.0, 1.0])
    with pytest.raises(ValueError, match="1 scores for 2 groups"):
        means.update([0, 1], [1.0])
    assert means.num_scores.sum() == 0
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GroupMeans(num_groups=0)
