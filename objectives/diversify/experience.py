"""What a policy went through in a step: what it said, what it earned, what MARA made of that."""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.diversify.mara import Augmentation
from triptych.objectives.rewards.base import Scores

# Shapes: B completions, T completion positions


@dataclass
class Experience:
    """B completions of one process with all that a loss, a table or a trace asks about them.

    Attributes:
        rollout: The completions.
        scores: Their rewards, nan where scoring failed.
        reference_log_prob_BT: Log-probability of every sampled token under the reference, in nats.
        augmentation: What is to be optimised in place of the rewards. `anchor_B` counts rows over
            all processes; `first_row` is the number of this one's first.
        anchor_reward_B: Reward of each row's anchor, nan where it has none.
        first_row: Where this process's rows begin in the batch of all.
        old_log_prob_BT: Log-probability of every token under the policy that sampled; None until
            it was scored.
    """

    rollout: Rollout
    scores: Scores
    reference_log_prob_BT: Tensor
    augmentation: Augmentation
    anchor_reward_B: Tensor
    first_row: int = 0
    old_log_prob_BT: Tensor | None = None

    @property
    def reward(self) -> Tensor:
        """Rewards as they were scored."""
        return self.scores.reward_B

    @property
    def reference_log_prob(self) -> Tensor:
        """Log-probability of every completion under the reference, in nats."""
        return self.reference_log_prob_BT.masked_fill(~self.rollout.token_mask_BT, 0.0).sum(-1)

    @property
    def is_anchor(self) -> Tensor:
        """True where a completion is the anchor of its group: bool (B,)."""
        anchor_B = self.augmentation.anchor_B
        own_B = torch.arange(len(anchor_B), device=anchor_B.device) + self.first_row
        return self.augmentation.above_B & (anchor_B == own_B)


def unaugmented(reward_B: Tensor, reference_log_prob_B: Tensor) -> Augmentation:
    """The augmentation of a training without MARA: nothing is above, rewards are what they are."""
    return Augmentation(
        reward_B=reward_B,
        reference_log_prob_B=reference_log_prob_B,
        anchor_B=torch.full_like(reward_B, -1, dtype=torch.int64),
        above_B=torch.zeros_like(reward_B, dtype=torch.bool),
        shift_B=torch.zeros_like(reference_log_prob_B),
        threshold=float("inf"),
    )


def rows_of(augmentation: Augmentation, first: int, count: int) -> Augmentation:
    """One process's rows of an augmentation of all; `anchor_B` goes on counting over all."""
    own = slice(first, first + count)
    return Augmentation(
        reward_B=augmentation.reward_B[own],
        reference_log_prob_B=augmentation.reference_log_prob_B[own],
        anchor_B=augmentation.anchor_B[own],
        above_B=augmentation.above_B[own],
        shift_B=augmentation.shift_B[own],
        threshold=augmentation.threshold,
    )
