import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.objectives.commune.structure.interventions import (
    changed_share,
    check_effects,
    intervention_effects,
)

# Agent 0 reads latents 0 and 1, agent 1 reads 1 and 2: 3 z_0, 4 z_1 | z_1, z_2 ** 2.
STRUCTURE = torch.tensor([[True, True, False], [False, True, True]])


def respond(latents):
    one, two, three = latents.T
    return [torch.stack([3 * one, 4 * two], 1), torch.stack([two, three**2], 1)]


def test_effects_are_those_of_setting_one_latent_for_all_samples():
    latents = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, -2.0]])
    effects = intervention_effects(respond, latents, [2.0])
    # agent 0, latent 0: moves of 6 and 3 in one of two numbers; latent 1: 8 and 8
    expected = [[math.sqrt((36 + 9) / 4), math.sqrt(32), 0], [0, math.sqrt(2), 0]]
    assert torch.allclose(effects, torch.tensor(expected))
    both = intervention_effects(respond, latents, [2.0, 0.0])
    # latent 2 set to 0 instead moves its square from 4 to 0 in the two samples, of four in all
    assert both[1, 2] == pytest.approx(math.sqrt(2 * 16 / 8))
    assert latents[0].tolist() == [0.0, 0.0, 2.0]


def test_what_the_structure_rules_out_does_not_move():
    torch.manual_seed(0)
    effects = intervention_effects(respond, torch.randn(50, 3), [-1.5, 1.5])
    check = check_effects(effects, STRUCTURE)
    assert check.largest_unexpected == 0
    assert check.smallest_expected > 0.5
    assert check.ranking == 1
    turned = check_effects(effects, ~STRUCTURE)
    assert turned.ranking == 0
    assert turned.mean_expected == 0


def test_a_structure_that_says_nothing_ranks_nothing():
    effects = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert check_effects(effects, torch.tensor([[True, False], [False, True]])).ranking == 0.5
    everything = check_effects(effects, torch.ones(2, 2, dtype=torch.bool))
    assert math.isnan(everything.ranking)
    assert everything.largest_unexpected == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=12))
def test_ranking_is_the_share_of_couples(pairs):
    effects = torch.tensor([[float(effect) for effect, _ in pairs]])
    mask = torch.tensor([[kept for _, kept in pairs]])
    couples = [
        1.0 if one > other else 0.5 if one == other else 0.0
        for one, kept in pairs
        if kept
        for other, also in pairs
        if not also
    ]
    ranking = check_effects(effects, mask).ranking
    if couples:
        assert ranking == pytest.approx(sum(couples) / len(couples))
    else:
        assert math.isnan(ranking)


def test_replies_count_as_changed_when_any_token_is():
    before = torch.tensor([[5, 1], [5, 1], [6, 1]])
    assert changed_share(before, torch.tensor([[5, 1], [5, 2], [7, 2]])) == pytest.approx(2 / 3)


def test_there_has_to_be_something_to_set():
    with pytest.raises(ValueError, match="a value and a sample"):
        intervention_effects(respond, torch.zeros(2, 3), [])
