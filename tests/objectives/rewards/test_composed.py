"""Sums, geometric means and products against values worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.objectives.rewards.base import TextReward
from triptych.objectives.rewards.composed import Product, WeightedGeometricMean, WeightedSum


class Number(TextReward):
    """The number at a place of the text."""

    def __init__(self, place=0, low=0.0, high=4.0):
        self.place = place
        self.range = (low, high)

    def score_one(self, text, prompt, record):
        return float(text.split()[self.place])


TEXTS = ["1 4", "2 2", "0 3", "4 4", "x 1"]


def test_weighted_sum(rollout_of):
    reward = WeightedSum([Number(0), Number(1)], [2.0, -0.5])
    assert reward.range == (-2.0, 8.0)
    scores = reward(rollout_of(TEXTS))
    assert scores.reward_B[:4].tolist() == [0.0, 3.0, -1.5, 6.0]
    assert list(scores.components) == ["number", "number_2"]
    assert scores.components["number_2"].tolist() == [4.0, 2.0, 3.0, 4.0, 1.0]
    assert list(scores.errors) == [4]
    assert scores.errors[4].startswith("number: ValueError: could not convert string")


def test_weighted_geometric_mean(rollout_of):
    reward = WeightedGeometricMean([Number(0), Number(1)], [1.0, 3.0])
    assert reward.range == (0.0, 4.0)
    # (1 * 4^3)^(1/4) = 64^(1/4) = 2 sqrt 2
    expected = [2.8284271, 2.0, 0.0, 4.0]
    assert reward(rollout_of(TEXTS)).reward_B[:4].tolist() == pytest.approx(expected)
    alone = WeightedGeometricMean([Number(0), Number(1)], [0.0, 1.0])
    assert alone(rollout_of(["0 3"])).reward_B.tolist() == pytest.approx([3.0])


def test_product(rollout_of):
    reward = Product([Number(0), Number(1)])
    assert reward.range == (0.0, 16.0)
    assert reward(rollout_of(TEXTS)).reward_B[:4].tolist() == [4.0, 4.0, 0.0, 16.0]
    assert Product([Number(0, 0.0, math.inf), Number(1, 0.5, 2.0)]).range == (0.0, math.inf)


@given(
    values=st.lists(st.floats(0, 4, allow_subnormal=False), min_size=2, max_size=2),
    weights=st.lists(st.floats(0.1, 3), min_size=2, max_size=2),
)
def test_the_geometric_mean_lies_between_its_parts(values, weights, rollout_of):
    reward = WeightedGeometricMean([Number(0), Number(1)], weights)
    got = reward(rollout_of([" ".join(map(str, values))])).reward_B
    least, most = torch.tensor(values).min(), torch.tensor(values).max()
    assert least * (1 - 1e-5) <= got <= most * (1 + 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum([]), "has no rewards"),
        (lambda: WeightedSum([Number()], [1.0, 1.0]), "one finite weight for each"),
        (lambda: WeightedSum([Number()], [math.nan]), "one finite weight for each"),
        (lambda: Product([Number(low=-1.0)]), "number goes down to -1"),
        (lambda: WeightedGeometricMean([Number()], [0.0]), "one above it"),
        (lambda: WeightedGeometricMean([Number(), Number()], [2.0, -1.0]), "at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
