import pytest
import torch

from triptych.objectives.commune.private_thoughts import OutsideAdversary, SharedAdversary, contest


def moved(parameter, amount=0.05):
    with torch.no_grad():
        parameter -= amount * parameter.grad


def test_a_contest_gives_each_side_its_own_gradient():
    # guess = 2 seen; target - guess = 0.5 - 0.8
    predictor = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        predictor.weight.fill_(2.0)
    seen = torch.tensor([[0.4]], requires_grad=True)
    target = torch.tensor([[0.5]], requires_grad=True)
    game = contest(predictor, seen, target, seen)
    assert game.found.item() == pytest.approx(0.09)
    assert game.hiding.item() == pytest.approx(-0.09)
    (game.found + 10 * game.hiding).backward()
    assert predictor.weight.grad.item() == pytest.approx(2 * 0.3 * 0.4)  # not 10 times as much
    assert seen.grad.item() == pytest.approx(-10 * 2 * 0.3 * 2)
    assert target.grad is None
    seen.grad = None
    contest(predictor, seen, target, target).hiding.backward()
    assert seen.grad is None
    assert target.grad.item() == pytest.approx(2 * 0.3)  # away from the guess


def test_nothing_is_gained_beyond_knowing_nothing():
    predictor = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        predictor.weight.fill_(1.0)
    seen = torch.tensor([[3.0]], requires_grad=True)
    game = contest(predictor, seen, torch.zeros(1, 1), seen)
    assert (game.found.item(), game.hiding.item()) == (9.0, -1.0)
    game.hiding.backward()
    assert seen.grad.item() == 0


def test_shared_latents_hide_from_an_adversary_that_learns():
    torch.manual_seed(0)
    adversary = SharedAdversary([0, 1, -1, -1], -1, hidden=8)
    assert (adversary.private, adversary.shared) == ([0, 1], [2, 3])
    shared = torch.randn(64, 2) * 0.3
    latents = torch.cat([shared, shared], 1).requires_grad_()
    game = adversary(latents)
    (game.found + game.hiding).backward()
    assert (latents.grad[:, [0, 1]] == 0).all()
    assert latents.grad[:, [2, 3]].abs().sum() > 0
    with torch.no_grad():
        assert adversary(latents - 0.5 * latents.grad).found > game.found
    for parameter in adversary.parameters():
        moved(parameter)
    assert adversary(latents).found < game.found


def test_private_latents_hide_what_other_states_tell():
    torch.manual_seed(0)
    # agents of 2 and 3 dimensions; latent 0 is agent 1's, latents 1 and 3 are agent 0's
    adversary = OutsideAdversary([1, 0, -1, 0], -1, [2, 3], hidden=8)
    assert adversary.private == [[1, 3], [0]]
    scores = torch.randn(64, 5)
    latents = (0.3 * torch.randn(64, 4)).requires_grad_()
    game = adversary(latents, scores)
    (game.found + game.hiding).backward()
    assert (latents.grad[:, 2] == 0).all()
    assert (latents.grad[:, [0, 1, 3]] != 0).all()
    # agent 0's latents are looked for in agent 1's state alone, and the other way round
    changed = scores.clone()
    changed[:, 2:] += 1
    first, other = adversary.predictors
    assert first(scores[:, 2:]).shape == (64, 2)
    assert other(scores[:, :2]).shape == (64, 1)
    assert not torch.equal(adversary(latents, changed).found, game.found)


def test_both_kinds_of_latents_are_needed():
    for owners in ([-1, -1], [0, 1]):
        with pytest.raises(ValueError, match="private_per_agent"):
            SharedAdversary(owners, -1)
