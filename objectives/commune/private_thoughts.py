"""Adversaries that keep private information out of shared latents, and the reverse.

A masked encoder reads an agent's private latents from its state alone. Shared latents read all
states, and may carry private information too (a probe finds it). Two conditions must hold:

    shared latents do not predict private ones; otherwise they leak private evidence
    the other agents' states do not predict an agent's private latents; otherwise shared evidence
        hides in private latents, and the first condition removes it from the shared ones

For each condition there is an adversary, a regression that is trained on its inputs. The encoder is
trained to raise the adversary's error to that of a constant guess (1, at unit variance), but not
further, since that would only fit the current adversary.

Ours; the game is that of predictability minimisation (Schmidhuber, 1992).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from triptych.models.commune.perceptron import Perceptron

# Shapes: B batch, H dimensions of all agents' states, Z latents, of which S shared, P private


@dataclass(frozen=True)
class Contest:
    """Both sides of a game, to be minimised together.

    Attributes:
        found: Mean squared error of the adversary, with a gradient for the adversary only.
        hiding: Minus the same error, at least -1, with a gradient for the encoder only.
    """

    found: Tensor
    hiding: Tensor


def contest(predictor: nn.Module, seen: Tensor, target: Tensor, hides: Tensor) -> Contest:
    """Compute both losses of a game between a predictor and one of its two sides.

    Args:
        predictor: Predicts `target` from `seen`.
        seen: Its input, (B, ...).
        target: Its target, (B, ...), of unit variance.
        hides: `seen` or `target`: the side that gets the gradient of `hiding`; the other is fixed.
    """
    found = (predictor(seen.detach()) - target.detach()).square().mean()
    fixed = {name: value.detach() for name, value in predictor.named_parameters()}
    free_seen = seen if hides is seen else seen.detach()
    free_target = target if hides is target else target.detach()
    guess: Tensor = functional_call(predictor, fixed, (free_seen,))
    return Contest(found, -(guess - free_target).square().mean().clamp_max(1.0))


class SharedAdversary(nn.Module):
    """Predicts all private latents from all shared ones, which learn to hide them.

    Private latents are targets without a gradient, so that they do not become noise to be hard to
    predict.

    Args:
        owners: For each latent its agent's number, or `everyone`.
        everyone: Value that marks a shared latent.
        hidden: Width of the hidden layer.

    Raises:
        ValueError: if there are no private or no shared latents.
    """

    def __init__(self, owners: Sequence[int], everyone: int, hidden: int = 64) -> None:
        super().__init__()
        self.shared = [z for z, owner in enumerate(owners) if owner == everyone]
        self.private = [z for z, owner in enumerate(owners) if owner != everyone]
        if not self.shared or not self.private:
            raise ValueError(
                "an adversary needs latents that are shared and latents that are private: set "
                "codec.private_per_agent above 0 and below the number of latents by agent"
            )
        self.predictor = Perceptron(len(self.shared), len(self.private), [hidden], "gelu")

    def forward(self, latents_BZ: Tensor) -> Contest:
        """Compute the losses of a batch."""
        shared_BS = latents_BZ[:, self.shared]
        return contest(self.predictor, shared_BS, latents_BZ[:, self.private], shared_BS)


class OutsideAdversary(nn.Module):
    """Predicts every agent's private latents from the other agents' states; the latents adapt.

    Information that other agents have too then moves from private to shared latents. This includes
    samples where no other agent has it, since an encoder of one agent cannot know that.

    Args:
        owners: For each latent its agent's number, or `everyone`.
        everyone: Value that marks a shared latent.
        state_sizes: Width of each agent's state.
        hidden: Width of the hidden layers.
    """

    def __init__(
        self,
        owners: Sequence[int],
        everyone: int,
        state_sizes: Sequence[int],
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.state_sizes = list(state_sizes)
        self.agents = sorted({owner for owner in owners if owner != everyone})
        self.private = [[z for z, o in enumerate(owners) if o == agent] for agent in self.agents]
        self.predictors = nn.ModuleList(
            Perceptron(sum(state_sizes) - state_sizes[agent], len(own), [hidden], "gelu")
            for agent, own in zip(self.agents, self.private, strict=True)
        )

    def forward(self, latents_BZ: Tensor, scores_BH: Tensor) -> Contest:
        """Compute the losses of a batch; mean over agents.

        Args:
            latents_BZ: Latents of unit variance.
            scores_BH: The standardized states that they encode.
        """
        states = scores_BH.split(self.state_sizes, 1)
        games = []
        for agent, own, predictor in zip(self.agents, self.private, self.predictors, strict=True):
            others = torch.cat([part for k, part in enumerate(states) if k != agent], 1)
            private_BP = latents_BZ[:, own]
            games.append(contest(predictor, others, private_BP, private_BP))
        return Contest(
            torch.stack([game.found for game in games]).mean(),
            torch.stack([game.hiding for game in games]).mean(),
        )
