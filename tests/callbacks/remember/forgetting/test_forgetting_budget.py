"""The budget's limits by hand."""

import math

import pytest

from triptych.callbacks.remember.forgetting.forgetting_budget import ForgettingBudget


@pytest.mark.parametrize(
    ("start", "value", "is_over"),
    [
        (0.98, 0.945, False),  # 3.5 points, to the limit
        (0.98, 0.9449, True),
        (0.98, 0.99, False),
        (0.5, 0.4, True),
        (0.5, math.nan, True),
        (math.nan, 0.1, False),
    ],
)
def test_points(start, value, is_over):
    found = ForgettingBudget(max_drop=3.5).overspent(start, value, higher_is_better=True)
    assert (found is not None) is is_over


@pytest.mark.parametrize(
    ("start", "value", "is_over"),
    [
        (4.0, 4.04, False),  # one percent, to the limit
        (4.0, 4.0401, True),
        (4.0, 3.0, False),
        (4.0, math.inf, True),
        (0.0, 0.0, False),
        (0.0, 0.1, True),
    ],
)
def test_shares(start, value, is_over):
    found = ForgettingBudget(max_rise_share=0.01).overspent(start, value, higher_is_better=False)
    assert (found is not None) is is_over


def test_each_limit_is_for_its_own_kind():
    assert ForgettingBudget(max_drop=1).overspent(4.0, 9.0, higher_is_better=False) is None
    assert ForgettingBudget(max_rise_share=0.1).overspent(0.9, 0.1, higher_is_better=True) is None


def test_what_is_told():
    drop = ForgettingBudget(max_drop=3.5).overspent(0.98, 0.93, higher_is_better=True)
    assert drop == "fell by 5.00 points (0.98 to 0.93; the budget is 3.5)"
    rise = ForgettingBudget(max_rise_share=0.01).overspent(4.0, 4.1, higher_is_better=False)
    assert rise == "rose by 2.50% (4 to 4.1; the budget is 1%)"
    broken = ForgettingBudget(max_rise_share=0.01).overspent(4.0, math.nan, higher_is_better=False)
    assert broken == "is nan"


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="limits nothing"):
        ForgettingBudget()
