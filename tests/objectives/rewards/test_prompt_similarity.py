"""Similarity of prompt and reply by hand, and by the packaged embedding model."""

import pytest
import torch

from triptych.objectives.rewards.prompt_similarity import PromptSimilarity


def on_axes(texts):
    """Vectors of two dimensions: how often `a` and `b` occur."""
    return torch.tensor([[float(text.count("a")), float(text.count("b"))] for text in texts])


def test_cosine_over_what_is_enough(rollout_of):
    rollout = rollout_of(["a", "ab", "b", " ", "aab"], prompt="aa")
    reward = PromptSimilarity(enough=0.8, embedder=on_axes)
    half = 0.5**0.5
    assert reward(rollout).reward_B.tolist() == pytest.approx([1, half / 0.8, 0, 0, 1])


def test_what_was_cut_off_is_worth_nothing(rollout_of):
    rollout = rollout_of(["a", "a"], prompt="a")
    rollout.finished_B[1] = False
    assert PromptSimilarity(embedder=on_axes)(rollout).reward_B.tolist() == [1, 0]
    lenient = PromptSimilarity(embedder=on_axes, finished_only=False)
    assert lenient(rollout).reward_B.tolist() == [1, 1]


def test_opposite_vectors_are_worth_nothing(rollout_of):
    rollout = rollout_of(["a", "b"], prompt="x")
    reward = PromptSimilarity(embedder=lambda texts: torch.tensor([[1.0], [1.0], [-1.0]]))
    assert reward(rollout).reward_B.tolist() == [1, 0]


def test_topic_of_a_reply_by_the_packaged_model(rollout_of):
    texts = ["A ripe red apple.", "My car needs new tyres."]
    on_topic, off_topic = PromptSimilarity()(rollout_of(texts)).reward_B.tolist()
    assert on_topic > 0.8 > 2 * off_topic


@pytest.mark.parametrize("enough", [0.0, -0.5, 1.5])
def test_what_is_enough_has_to_be_a_cosine(enough):
    with pytest.raises(ValueError, match="set it to a cosine above 0"):
        PromptSimilarity(enough=enough)
