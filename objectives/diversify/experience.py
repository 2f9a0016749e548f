"""The record of a training step: completions, their rewards, and MARA's augmentation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.diversify.kl import sequence_log_prob
from triptych.objectives.diversify.mara import Augmentation
from triptych.objectives.rewards.base import Scores

# Shapes: B completions, T completion positions


@dataclass
class Experience:
    """B completions of one process with all data that losses, tables and traces need.

    Attributes:
        rollout: The completions.
        scores: Their rewards, nan where scoring failed.
        reference_log_prob_BT: Log-probability of every sampled token under the reference, in nats.
        augmentation: The rewards to optimise in place of the scored ones; None without MARA. Its
            `anchor_B` counts over the rows of all processes.
        old_log_prob_BT: Log-probability of every token under the policy that sampled; None until
            it was computed.
        num_updates: Training steps taken on these completions so far.
        left_out_B: bool; True marks a completion without weight in the loss, though it has a
            reward; None: none.
    """

    rollout: Rollout
    scores: Scores
    reference_log_prob_BT: Tensor
    augmentation: Augmentation | None = None
    old_log_prob_BT: Tensor | None = None
    num_updates: int = 0
    left_out_B: Tensor | None = None

    def leave_out(self, left_out_B: Tensor) -> None:
        """Take the weight in the loss from further completions."""
        before_B = self.left_out_B
        self.left_out_B = left_out_B if before_B is None else before_B | left_out_B

    def with_weight(self, reward_B: Tensor) -> Tensor:
        """Return rewards that are nan for completions without weight in the loss."""
        if self.left_out_B is None:
            return reward_B
        return reward_B.masked_fill(self.left_out_B, torch.nan)

    @property
    def sampling_gap(self) -> Tensor | None:
        """Scored minus sampled log-probability of every token, in nats; None if either is unknown.

        It is 0 in exact arithmetic. In half precision a token read alone, with a cache, and in a
        pass over the whole completion are rounded differently.
        """
        sampled_BT = self.rollout.token_log_prob_BT
        if sampled_BT is None or self.old_log_prob_BT is None:
            return None
        return self.old_log_prob_BT - sampled_BT

    @property
    def reward(self) -> Tensor:
        """Rewards as scored, (B,)."""
        return self.scores.reward_B

    @property
    def augmented_reward(self) -> Tensor:
        """Rewards to optimise, (B,); without MARA as scored."""
        return self.reward if self.augmentation is None else self.augmentation.reward_B

    @property
    def reference_log_prob(self) -> Tensor:
        """Log-probability of every completion under the reference, in nats, (B,)."""
        return sequence_log_prob(self.reference_log_prob_BT, self.rollout.token_mask_BT)

    @property
    def target_log_prob(self) -> Tensor:
        """The reference log-probability that the loss uses, (B,); MARA's algorithm 2 changes it."""
        if self.augmentation is None:
            return self.reference_log_prob
        return self.augmentation.reference_log_prob_B

    @property
    def above_threshold(self) -> Tensor:
        """True where MARA augmented the reward: bool (B,)."""
        if self.augmentation is None:
            return torch.zeros_like(self.reward, dtype=torch.bool)
        return self.augmentation.above_B

    @property
    def is_anchor(self) -> Tensor:
        """True where a completion is the anchor of its group: bool (B,)."""
        if self.augmentation is None:
            return torch.zeros_like(self.reward, dtype=torch.bool)
        return self.augmentation.is_anchor
