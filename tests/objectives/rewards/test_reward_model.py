"""The reward model against transformers' own forward pass, one conversation at a time."""

import pickle

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from triptych.objectives.rewards.reward_model import RewardModel

TEXTS = ["good one", "bad", "", "good good good", "<eos> <user>"]
# <user> name a fruit <reply> ... <eos>; the marks spelt in the last reply are words, not marks.
CONVERSATIONS = [
    [9, 4, 5, 3, 10, 1, 6, 8],
    [9, 4, 5, 3, 10, 2, 8],
    [9, 4, 5, 3, 10, 8],
    [9, 4, 5, 3, 10, 1, 1, 1, 8],
]


@pytest.fixture(scope="module")
def expected(reward_model_folder):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model_folder)
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits.item() for ids in CONVERSATIONS]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_the_models_own(batch_size, reward_model_folder, rollout_of, expected):
    reward = RewardModel(reward_model_folder, batch_size=batch_size)
    scores = reward(rollout_of(TEXTS[:4], prompt="name a fruit"))
    assert scores.reward_B.tolist() == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 4
    assert not scores.errors
    assert not any(p.requires_grad for p in reward._model.parameters())
    assert not reward._model.training


def test_a_reply_cannot_spell_the_templates_marks(reward_model_folder):
    reward = RewardModel(reward_model_folder)
    reward.prepare(torch.device("cpu"))
    ids = reward._encode("name a fruit", TEXTS[4])
    assert ids == [9, 4, 5, 3, 10, 0, 0, 8]


def test_sigmoid_and_limit(reward_model_folder, rollout_of, expected):
    reward = RewardModel(reward_model_folder, sigmoid=True)
    assert reward.range == (0.0, 1.0)
    got = reward(rollout_of(TEXTS[:1], prompt="name a fruit")).reward_B
    assert got.tolist() == pytest.approx([1 / (1 + 2.718281828 ** -expected[0])], abs=1e-6)
    short = RewardModel(reward_model_folder, max_tokens=5)
    rewards = short(rollout_of(TEXTS[:2], prompt="name a fruit")).reward_B
    # The replies are cut away; equal but for the place in the batch.
    assert rewards[0].item() == pytest.approx(rewards[1].item(), abs=1e-7)


def test_weights_stay_out_of_pickles(reward_model_folder, rollout_of):
    reward = RewardModel(reward_model_folder)
    before = len(pickle.dumps(reward))
    reward(rollout_of(["good"]))
    assert len(pickle.dumps(reward)) == before


def test_what_cannot_be_loaded_ends_the_run(tmp_path, reward_model_folder, rollout_of):
    with pytest.raises(ValueError, match="cannot load the reward model"):
        RewardModel(str(tmp_path))(rollout_of(["good"]))
    with pytest.raises(ValueError, match="has 1 labels, so label 1"):
        RewardModel(reward_model_folder, label=1)(rollout_of(["good"]))
