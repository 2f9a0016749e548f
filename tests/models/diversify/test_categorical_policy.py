"""The tabular policy, against the contract of policies."""

import pytest
import torch

from triptych.models.diversify.categorical_policy import CategoricalPolicy

PROMPTS = [{"prompt": "b", "answer": 3}, {"prompt": "a"}, {"prompt": "b"}]


@pytest.fixture
def policy():
    return CategoricalPolicy(["x", "y", "z"], [[0.5, 0.3, 0.2], [2.0, 1.0, 1.0]], ["a", "b"])


def test_rollout(policy):
    rollout = policy.sample(PROMPTS, 4, torch.Generator().manual_seed(0))
    assert len(rollout) == 12
    assert rollout.group_B.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert list(rollout.prompts) == ["b"] * 4 + ["a"] * 4 + ["b"] * 4
    assert rollout.records[3] == {"prompt": "b", "answer": 3}
    assert rollout.texts == ["xyz"[k] for k in rollout.token_ids_BT[:, 0].tolist()]
    assert rollout.num_tokens.tolist() == [1] * 12
    assert rollout.finished_B.all()


def test_scores_are_those_it_sampled_with(policy):
    with torch.no_grad():
        policy.logits_NK += torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    rollout = policy.sample(PROMPTS, 8)
    torch.testing.assert_close(policy.log_prob(rollout), rollout.log_prob_B)
    assert policy.log_prob(rollout).requires_grad
    assert not policy.reference_log_prob(rollout).requires_grad
    rows = rollout.select(torch.tensor([9, 1]))
    torch.testing.assert_close(policy.log_prob(rows), rollout.log_prob_B[[9, 1]])


def test_reference_by_hand(policy):
    rollout = policy.sample([{"prompt": "b"}], 50)
    expected = torch.tensor([0.5, 0.25, 0.25]).log()[rollout.token_ids_BT[:, 0]]
    torch.testing.assert_close(policy.reference_log_prob(rollout), expected)
    assert [name for name, _ in policy.named_parameters()] == ["logits_NK"]


def test_samples_have_the_probabilities_it_states(policy):
    rollout = policy.sample([{"prompt": "a"}], 20000, torch.Generator().manual_seed(1))
    share = torch.bincount(rollout.token_ids_BT[:, 0], minlength=3) / 20000
    # 3 standard errors of a share of .5 among 20,000
    assert (share - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 3 * 0.5 / 20000**0.5


def test_same_generator_same_samples(policy):
    first, second = (policy.sample(PROMPTS, 5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.token_ids_BT, second.token_ids_BT)


def test_a_single_prompt_answers_everything():
    policy = CategoricalPolicy(["x", "y"], [[0.5, 0.5]])
    assert len(policy.sample([{}, {"prompt": "anything"}], 3)) == 6


def test_mistakes_are_named(policy):
    with pytest.raises(ValueError, match="none of this policy's 2"):
        policy.sample([{"prompt": "c"}], 1)
    with pytest.raises(ValueError, match="one row for each of the 2 prompts"):
        CategoricalPolicy(["x", "y"], [[0.5, 0.5]], ["a", "b"])
    with pytest.raises(ValueError, match="not above 0"):
        CategoricalPolicy(["x", "y"], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="same text"):
        CategoricalPolicy(["x"], [[1.0], [1.0]], ["a", "a"])
