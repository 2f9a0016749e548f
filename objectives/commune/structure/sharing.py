"""The relevance of latents to agents: shared, private, dead.

Paper: ThoughtComm, 2510.20733: a latent is relevant to agent k if some row of the agent's state
depends on it; alpha_j counts the agents to which latent j is relevant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: H state dimensions of all agents, Z latents, K agents


@dataclass(frozen=True)
class Sharing:
    """Relevance of latents to agents.

    Args:
        relevant_KZ: bool; True where agent k's state depends on latent j.

    >>> sharing = Sharing(torch.tensor([[True, True, False, False], [False, True, True, False]]))
    >>> sharing.agreement.tolist(), sharing.shared, sharing.private, sharing.dead
    ([1, 2, 1, 0], [1], [[0], [2]], [3])
    """

    relevant_KZ: Tensor

    @classmethod
    def of_support(cls, support_HZ: Tensor, state_sizes: Sequence[int]) -> "Sharing":
        """Derive relevance from the rows' support: any row of an agent that depends on a latent."""
        parts = support_HZ.split(list(state_sizes))
        return cls(torch.stack([part.any(0) for part in parts]))

    @property
    def agreement(self) -> Tensor:
        """alpha_j: the number of agents to which latent j is relevant, int64 (Z,)."""
        return self.relevant_KZ.sum(0)

    @property
    def relevant(self) -> list[list[int]]:
        """The relevant latents of each agent."""
        return [_where(row_Z) for row_Z in self.relevant_KZ]

    @property
    def shared(self) -> list[int]:
        """Latents of two or more agents."""
        return _where(self.agreement >= 2)

    @property
    def private(self) -> list[list[int]]:
        """For each agent the latents relevant to no other agent."""
        alone_Z = self.agreement == 1
        return [_where(row_Z & alone_Z) for row_Z in self.relevant_KZ]

    @property
    def dead(self) -> list[int]:
        """Latents of no agent."""
        return _where(self.agreement == 0)

    def owners(self) -> list[int]:
        """For each latent its only agent, or -1: `latent_owners` of a codec."""
        owner_Z = self.relevant_KZ.int().argmax(0)
        return torch.where(self.agreement == 1, owner_Z, -1).tolist()


def routing_accuracy(found_KY: Tensor, true_KZ: Tensor, order: Sequence[int]) -> float:
    """Compute the share of (agent, latent) pairs with correctly recovered relevance.

    Args:
        found_KY: bool; relevance of the recovered latents.
        true_KZ: bool; relevance of the true latents.
        order: For each true latent its matched recovered latent.

    >>> routing_accuracy(torch.tensor([[True, False]]), torch.tensor([[True, True]]), [0, 1])
    0.5
    """
    return float((found_KY[:, list(order)] == true_KZ).double().mean())


def _where(mask_Z: Tensor) -> list[int]:
    return mask_Z.nonzero().flatten().tolist()
