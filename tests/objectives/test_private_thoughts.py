import pytest
import torch

from objectives.private_thoughts import Adversary


def test_the_adversary_learns_and_the_encoder_is_pushed_the_other_way():
    torch.manual_seed(0)
    adversary = Adversary([0, 1, -1, -1], -1, hidden=8)
    assert (adversary.private, adversary.shared) == ([0, 1], [2, 3])
    latents = torch.randn(64, 4, requires_grad=True)
    error = adversary(latents)
    error.backward()
    with torch.no_grad():
        moved = latents - 0.5 * latents.grad
        assert adversary(moved) > error
        for parameter in adversary.parameters():
            parameter -= 0.05 * parameter.grad
        assert adversary(latents) < error
    assert (latents.grad[:, [0, 1]] == 0).all()


def test_both_kinds_of_latents_are_needed():
    for owners in ([-1, -1], [0, 1]):
        with pytest.raises(ValueError, match="private_per_agent"):
            Adversary(owners, -1)
