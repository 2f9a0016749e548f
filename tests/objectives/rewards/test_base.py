"""A reward that goes wrong costs the completions it went wrong on, and says why."""

import math

import pytest
import torch

from triptych.objectives.rewards.base import Reward, Scores, TextReward
from triptych.objectives.rewards.composed import WeightedSum
from triptych.objectives.rewards.python_function import PythonFunction


class Length(TextReward):
    range = (0.0, 5.0)

    def score_one(self, text, prompt, record):
        if text == "raise":
            raise RuntimeError("no such thing")
        return math.nan if text == "nan" else math.inf if text == "inf" else len(text)


class WholeBatch(Reward):
    """Raises for all as soon as one text is bad."""

    scope = "completion"

    def score(self, rollout):
        if "bad" in rollout.texts:
            raise ValueError(f"bad among {len(rollout)}")
        return Scores(torch.arange(len(rollout)) + 1.0, {"part": torch.ones(len(rollout))})


class TooFew(Reward):
    def score(self, rollout):
        return Scores(torch.zeros(len(rollout) - 1))


def test_single_completions_fail_alone(rollout_of):
    scores = Length()(rollout_of(["ab", "raise", "nan", "inf", "abcdefg", "abcde"]))
    assert scores.reward_B[[0, 5]].tolist() == [2.0, 5.0]
    assert scores.reward_B[1:5].isnan().all()
    assert scores.errors[1] == "RuntimeError: no such thing"
    assert scores.errors[2] == "the reward is nan"
    assert scores.errors[3] == "the reward is inf"
    assert scores.errors[4] == "the reward is 7, outside the range [0, 5] that Length names"
    assert list(scores.errors) == [1, 2, 3, 4]


def test_a_batch_that_fails_is_scored_piece_by_piece(rollout_of):
    reward = WholeBatch()
    texts = ["x", "bad", "y", "z"]
    scores = reward(rollout_of(texts, groups=[3, 3, 5, 5]))
    torch.testing.assert_close(
        scores.reward_B, torch.tensor([1.0, math.nan, 1.0, 1.0]), equal_nan=True
    )
    assert scores.errors == {1: "ValueError: bad among 1"}
    assert scores.components["part"][[0, 2, 3]].tolist() == [1.0, 1.0, 1.0]
    reward.scope = "group"
    scores = reward(rollout_of(texts, groups=[3, 3, 5, 5]))
    torch.testing.assert_close(
        scores.reward_B, torch.tensor([math.nan, math.nan, 1.0, 2.0]), equal_nan=True
    )
    assert scores.errors == dict.fromkeys([0, 1], "ValueError: bad among 2")
    scores = reward(rollout_of(texts, groups=[0, 0, 0, 0]))
    assert scores.errors == dict.fromkeys(range(4), "ValueError: bad among 4")
    assert scores.reward_B.isnan().all()


class Budgeted(Reward):
    """Scores two completions in all, then none; fails on several at once."""

    scope = "completion"

    def __init__(self):
        self.left = 2

    def score(self, rollout):
        if len(rollout) > 1:
            raise ValueError("one at a time")
        self.left -= 1
        if self.left >= 0:
            return Scores(torch.ones(1))
        return Scores(torch.full((1,), math.nan), over_budget={0})


def test_completions_over_a_budget_are_marked(rollout_of):
    rollout = rollout_of(["a", "b", "c", "d"])
    scores = Budgeted()(rollout)
    assert scores.over_budget == {2, 3}
    assert scores.errors == dict.fromkeys([2, 3], "the budget is spent")
    assert scores.reward_B.isnan().tolist() == [False, False, True, True]
    assert WeightedSum([Budgeted(), Budgeted()])(rollout).over_budget == {2, 3}
    part = scores.rows(1, 2).to("cpu")
    assert (part.over_budget, list(part.errors)) == ({1}, [1])
    assert part.reward_B.isnan().tolist() == [False, True]


def test_a_wrong_number_of_rewards_is_an_error(rollout_of):
    with pytest.raises(ValueError, match=r"TooFew gave rewards of shape \(2,\), expected \(3,\)"):
        TooFew()(rollout_of(["a", "b", "c"]))


def test_a_function_of_ones_own(rollout_of):
    reward = PythonFunction("tests.objectives.rewards.own_reward:vowels", least=0)
    assert reward.name == "vowels"
    assert reward(rollout_of(["pear", "fig", ""])).reward_B.tolist() == [2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"no such function"):
        PythonFunction("tests.objectives.rewards.own_reward:consonants")
    with pytest.raises(ValueError, match=r"set least below most"):
        PythonFunction("math:fsum", least=1, most=1)


class FromATensor(Reward):
    """A reward as a user writes it, without a dtype; the whole batch fails, each row does not."""

    scope = "completion"

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def score(self, rollout):
        if self.fails and len(rollout) > 1:
            raise ValueError("not together")
        return Scores(torch.tensor([0.8999, 0.9001, 0.123456][: len(rollout)]))


@pytest.mark.parametrize("fails", [False, True])
def test_rewards_are_float32_whatever_the_default(rollout_of, fails):
    rollout = rollout_of(["a", "b", "c"])
    torch.set_default_dtype(torch.bfloat16)  # as Lightning's bf16-true does within a step
    try:
        reward_B = FromATensor(fails)(rollout).reward_B
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert reward_B.dtype == torch.float32
    assert reward_B[0].item() == pytest.approx(0.8999, abs=1e-7)
    assert not fails or reward_B[2].item() == pytest.approx(0.8999, abs=1e-7)
