"""Unlikeliness reward: right completions get the less, the likelier they are in their group.

    r_i = R_i (1 - beta_rank rank_i / G),    rank_i in 0 ... G - 1, 0 for the least likely of G

The ranks are those of the log-probabilities per token under the policy that sampled. GRPO's
advantages then follow from r instead of R.

Source: "Rewarding the Unlikely: Lifting GRPO Beyond Distribution Sharpening", 2506.02355, section
4.1, with beta_rank = 0.25. Read in three public implementations that agree and one account of the
paper; the authors' text was not at hand. Deviation: completions that are equally likely (most
often the same) share the mean of their ranks, where those implementations rank them by chance.
"""

# Shapes: B completions

from dataclasses import dataclass, replace

from torch import Tensor

from triptych.objectives.diversify.policy_loss import Grpo, PolicySamples
from triptych.objectives.diversify.rivals.right_answers import sampled_log_prob, scored_reward


@dataclass
class Unlikeliness(Grpo):
    """GRPO on rewards that are smaller for likely completions.

    It is meant for rewards of 0 for wrong completions: only what is above 0 is made smaller.

    Args:
        beta_rank: Share of the reward that the likeliest completion loses, in [0, 1].
        length_normalised: Rank by log-probability per token, as the implementations do; false:
            by that of the whole completion.
    """

    beta_rank: float = 0.25
    length_normalised: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta_rank <= 1:
            raise ValueError(f"beta_rank is {self.beta_rank}: set it to a share from 0 to 1")

    def advantage(self, samples: PolicySamples) -> Tensor:
        """Compute the advantage of each completion, (B,), nan where scoring failed."""
        scored_B = scored_reward(samples, "Unlikeliness")
        height_B = sampled_log_prob(samples)
        if self.length_normalised:
            height_B = height_B / samples.token_mask_BT.sum(-1).clamp_min(1)
        loss_B = self.beta_rank * relative_rank(height_B, samples.group_B, samples.scored)
        lowered_B = samples.reward_B - scored_B.clamp_min(0.0) * loss_B
        return super().advantage(replace(samples, reward_B=lowered_B))


def relative_rank(height_B: Tensor, group_B: Tensor, counted_B: Tensor) -> Tensor:
    """Compute each row's rank among the counted rows of its group, over their number, (B,).

    The lowest has rank 0; equal rows share the mean of their ranks.

    >>> import torch
    >>> height, one_group = torch.tensor([-1.0, -3.0, -1.0, -2.0]), torch.zeros(4)
    >>> relative_rank(height, one_group, torch.ones(4, dtype=torch.bool))  # ranks 2.5, 0, 2.5, 1
    tensor([0.6250, 0.0000, 0.6250, 0.2500])
    """
    peer_BB = (group_B[:, None] == group_B) & counted_B
    lower_B = (peer_BB & (height_B < height_B[:, None])).sum(-1)
    equal_B = (peer_BB & (height_B == height_B[:, None])).sum(-1)
    rank_B = lower_B.to(height_B.dtype) + (equal_B - 1).clamp_min(0) * 0.5
    return rank_B / peer_BB.sum(-1).clamp_min(1)
