"""Which agents a latent matters to: shared, private, dead.

Paper: ThoughtComm, 2510.20733: the latents relevant to agent k are those of which some row of its
state depends; alpha_j counts the agents that latent j is relevant to.
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
        """From the rows' support: relevant to an agent is what any of its rows depends on."""
        parts = support_HZ.split(list(state_sizes))
        return cls(torch.stack([part.any(0) for part in parts]))

    @property
    def agreement(self) -> Tensor:
        """alpha_j: to how many agents latent j is relevant, int64 (Z,)."""
        return self.relevant_KZ.sum(0)

    @property
    def relevant(self) -> list[list[int]]:
        """Each agent's latents."""
        return [_where(row_Z) for row_Z in self.relevant_KZ]

    @property
    def shared(self) -> list[int]:
        """Latents of two or more agents."""
        return _where(self.agreement >= 2)

    @property
    def private(self) -> list[list[int]]:
        """Each agent's latents that are no other's."""
        alone_Z = self.agreement == 1
        return [_where(row_Z & alone_Z) for row_Z in self.relevant_KZ]

    @property
    def dead(self) -> list[int]:
        """Latents of no agent."""
        return _where(self.agreement == 0)

    def owners(self) -> list[int]:
        """For each latent the one agent it is private to, or -1: `latent_owners` of a codec."""
        owner_Z = self.relevant_KZ.int().argmax(0)
        return torch.where(self.agreement == 1, owner_Z, -1).tolist()


def routing_accuracy(found_KY: Tensor, true_KZ: Tensor, order: Sequence[int]) -> float:
    """Share of (agent, latent) pairs whose relevance was recovered.

    Args:
        found_KY: bool, of the recovered latents.
        true_KZ: bool, of the true latents.
        order: For each true latent the recovered one matched to it.

    >>> routing_accuracy(torch.tensor([[True, False]]), torch.tensor([[True, True]]), [0, 1])
    0.5
    """
    return float((found_KY[:, list(order)] == true_KZ).double().mean())


def _where(mask_Z: Tensor) -> list[int]:
    return mask_Z.nonzero().flatten().tolist()
