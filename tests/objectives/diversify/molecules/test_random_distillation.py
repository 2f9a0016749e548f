"""The novelty bonus: for good molecules alone, largest at first, gone once they are known."""

import pytest
import torch

from triptych.objectives.diversify.molecules.random_distillation import RandomDistillation

NAN = float("nan")
GOOD = ["CCO", "c1ccccc1O"]


def bonus(distillation: RandomDistillation, smiles=GOOD, reward: float = 1.0) -> torch.Tensor:
    rewards = torch.full((len(smiles),), reward)
    return distillation.penalised(smiles, rewards) - rewards


def test_only_good_valid_molecules_have_a_bonus():
    rewards = torch.tensor([1.0, 0.1, 0.9, NAN, 0.4])
    given = rewards.clone()
    found = RandomDistillation(weight=0.5).penalised(["CCO", "CCN", "C1CC", "CCC", "CCS"], rewards)
    torch.testing.assert_close(rewards, given, equal_nan=True)  # left as they were
    assert found[3].isnan()
    assert found[1] == rewards[1]
    assert found[2] == rewards[2]
    # Errors of the first batch are on average what a new molecule amounts to, and none is above.
    assert 0 < found[0] - rewards[0] <= 0.5
    assert 0 < found[4] - rewards[4] <= 0.5
    assert RandomDistillation().penalised(["C1CC"], torch.ones(1)) == torch.ones(1)


def test_the_bonus_goes_as_molecules_are_learned_and_others_keep_theirs():
    distillation = RandomDistillation(weight=0.5, learning_rate=0.01)
    first = bonus(distillation).sum()
    for _ in range(60):
        last = bonus(distillation).sum()
    assert last < 0.1 * first
    other = "FC(F)(F)S(=O)(=O)N1CCNCC1"
    assert distillation.factor(other, 1.0) - 1 > 3 * (distillation.factor("CCO", 1.0) - 1)
    assert distillation.factor("CCO", 0.1) == 1.0  # below min_score
    assert distillation.factor("C1CC", 1.0) == 1.0


def test_the_factor_of_a_single_first_molecule_by_hand():
    distillation = RandomDistillation(weight=0.5, learning_rate=1e-9)
    assert distillation.factor("CCO", 0.8) == 1.0  # nothing is known yet
    # Alone it is the mean of the first errors: the whole bonus.
    assert bonus(distillation, ["CCO"], 0.8).item() == pytest.approx(0.5)
    assert distillation.factor("CCO", 0.8) == pytest.approx(1 + 0.5 / 0.8, abs=1e-4)


def test_seeds_and_going_on():
    torch.testing.assert_close(bonus(RandomDistillation(seed=1)), bonus(RandomDistillation(seed=1)))
    one, other = RandomDistillation(seed=1), RandomDistillation(seed=2)
    bonus(one)
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        assert torch.equal(bonus(one), bonus(other))


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"learning_rate": 0.0}, {"width": 0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="set all above 0"):
        RandomDistillation(**wrong)
