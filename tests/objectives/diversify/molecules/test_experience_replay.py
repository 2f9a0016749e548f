"""The memory of the best molecules: each once, drawn in proportion to its reward."""

from collections import Counter

import pytest
import torch

from tests.models.diversify.molecules.tiny_molecules import tiny_smiles_policy
from triptych.objectives.diversify.molecules.experience_replay import ExperienceReplay


def sampled(texts: list[str], seed: int = 0):
    """Samples that are said to spell these molecules."""
    rollout = tiny_smiles_policy().sample([{}], len(texts), torch.Generator().manual_seed(seed))
    rollout.texts = texts
    return rollout


def test_best_molecules_are_kept_each_once():
    memory = ExperienceReplay(size=2, num_draws=5)
    rollout = sampled(["CCO", "OCC", "CCN", "C1CC", "CCC", "CCF"])
    memory.add(rollout, torch.tensor([0.5, 0.9, 0.7, 0.8, 0.0, torch.nan]))
    # OCC is CCO again; C1CC is no molecule; 0 and nan are nothing to remember.
    kept = [(key, pytest.approx(each.reward)) for key, each in memory.memory.items()]
    assert kept == [("CCN", 0.7), ("CCO", 0.5)]
    memory.add(sampled(["CCCl"]), torch.tensor([0.6]))
    assert list(memory.memory) == ["CCN", "CCCl"]


def test_what_is_drawn_is_what_was_sampled():
    policy = tiny_smiles_policy()
    rollout = policy.sample([{}], 3, torch.Generator().manual_seed(0))
    rollout.texts = ["CCO", "CCN", "CCC"]
    memory = ExperienceReplay(size=3, num_draws=3)
    memory.add(rollout, torch.tensor([0.5, 0.9, 0.7]))
    drawn, reward = memory.draw(torch.Generator().manual_seed(1))
    where = {text: row for row, text in enumerate(rollout.texts)}
    rows = torch.tensor([where[text] for text in drawn.texts])
    assert sorted(rows.tolist()) == [0, 1, 2]  # without replacement
    torch.testing.assert_close(reward, torch.tensor([0.5, 0.9, 0.7])[rows])
    torch.testing.assert_close(policy.log_prob(drawn), rollout.log_prob_B[rows])
    torch.testing.assert_close(drawn.log_prob_B, rollout.log_prob_B[rows])
    assert torch.equal(drawn.finished_B, rollout.finished_B[rows])
    again = ExperienceReplay(size=3, num_draws=3)
    again.load_state_dict(memory.state_dict())
    same, _ = again.draw(torch.Generator().manual_seed(1))
    assert same.texts == drawn.texts


def test_draws_are_in_proportion_to_rewards():
    memory = ExperienceReplay(size=10, num_draws=1)
    memory.add(sampled(["CCO", "CCN"]), torch.tensor([0.25, 0.75]))
    generator = torch.Generator().manual_seed(0)
    counts = Counter(memory.draw(generator)[0].texts[0] for _ in range(800))
    assert counts["CCN"] / 800 == pytest.approx(0.75, abs=0.06)  # four standard deviations


def test_an_empty_memory_and_settings_out_of_range():
    assert ExperienceReplay().draw(torch.Generator()) is None
    with pytest.raises(ValueError, match="size 0"):
        ExperienceReplay(size=0)
