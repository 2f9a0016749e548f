"""What every reward has to do, whoever wrote it: all in `objectives/rewards` are found here."""

import pickle

import pytest
import torch

from tests.discovery import classes_in
from triptych.objectives import rewards
from triptych.objectives.rewards.base import Reward
from triptych.objectives.rewards.math_answer import MathAnswer
from triptych.objectives.rewards.reward_model import RewardModel

TEXTS = ["", " ", "apple", "<answer>1</answer>", "CCO", "\ufffd\x00" * 40, "a pear, a plum " * 50]


def found_rewards() -> list[type[Reward]]:
    return classes_in(rewards, Reward)


@pytest.fixture
def make(reward_model_folder):
    def example(kind: type[Reward]) -> Reward:
        if kind is RewardModel:
            return RewardModel(reward_model_folder)
        if kind is MathAnswer:
            pytest.importorskip("math_verify")
        try:
            return kind.example()
        except TypeError as error:
            pytest.fail(
                f"{kind.__name__} needs settings: give it a classmethod `example` ({error})"
            )

    return example


@pytest.mark.parametrize("kind", found_rewards(), ids=lambda kind: kind.__name__)
def test_reward_keeps_the_contract(kind, make, rollout_of):
    reward = make(kind)
    assert reward.name
    assert reward.name == reward.name.lower()
    low, high = reward.range
    assert low < high
    rollout = rollout_of(TEXTS, groups=[0, 0, 0, 0, 1, 1, 1], record={"answers": ["1", "apple"]})
    scores = reward(rollout)
    # One number for each, in range, or nan with a reason.
    assert scores.reward_B.shape == (len(TEXTS),)
    assert scores.reward_B.dtype == torch.float32
    for row, value in enumerate(scores.reward_B.tolist()):
        assert (value != value) == (row in scores.errors)
        assert value != value or low <= value <= high
    assert all(column.shape == (len(TEXTS),) for column in scores.components.values())
    # The same again, and after a journey to another process.
    again = pickle.loads(pickle.dumps(reward))
    torch.testing.assert_close(again(rollout).reward_B, scores.reward_B, equal_nan=True)
    # An empty rollout is scored too.
    assert reward(rollout_of([])).reward_B.shape == (0,)
