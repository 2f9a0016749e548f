"""Advantages of pass@k: the reward is that at least one of k completions is right.

Of a group of N completions, W are wrong. All subsets of k are groups with the reward 1 if one of
them is right; a completion's advantage is the mean reward of the subsets that hold it, minus the
mean reward of all subsets, over the standard deviation of their rewards:

    mean    = 1 - C(W, k) / C(N, k)
    std     = sqrt(mean (1 - mean))
    A_right = (1 - mean) / std
    A_wrong = (1 - mean - C(W - 1, k - 1) / C(N - 1, k - 1)) / std

Without the division, the mean over N of A_i grad log pi(y_i) has the expectation
(1/k - 1/N) grad pass@k, so the direction is unbiased for k < N; with k = N all advantages are 0.

Source: "Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning
Models", 2508.10751, section 2.4, read in the authors' code (`passk_adv.py`) and two accounts of
the paper that agree with it. The factor (1/k - 1/N) is ours.
Deviation: the paper has no KL and rewards of 0 or 1. Here what `reward_B` holds beyond the scored
reward (a KL in the reward, MARA's shift) is centred within the group, divided by the same std and
added, so that it is not lost.
"""

# Shapes: B completions

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.objectives.diversify.policy_loss import (
    Grpo,
    PolicySamples,
    group_advantage,
    group_moments,
)
from triptych.objectives.diversify.rivals.right_answers import scored_reward

_LEAST_STD = 1e-6  # as in the authors' code


@dataclass
class PassAtK(Grpo):
    """GRPO with the analytic advantages of pass@k.

    Args:
        k: Completions of which one has to be right; at least 1, and at most `num_samples`. With
            k = 1 it is GRPO on rewards of 0 or 1, with another estimate of the deviation.
        right_reward: Completions whose scored reward is at least this are right.
        divide_by_group_std: Divide by the deviation of the subsets' rewards.
    """

    k: int = 4
    right_reward: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k is {self.k}: set it to at least 1")

    def advantage(self, samples: PolicySamples) -> Tensor:
        """Compute the advantage of each completion, (B,), nan where scoring failed.

        In a group with fewer than k scored completions there is no subset, and all advantages
        are 0.
        """
        reward_B, group_B = scored_reward(samples, "PassAtK"), samples.group_B
        right_B = (reward_B >= self.right_reward).to(reward_B.dtype)
        right_B = right_B.masked_fill(reward_B.isnan(), torch.nan)
        num_right_B, count_B, _ = group_moments(right_B, group_B)
        wrong_B = count_B - num_right_B
        none_right_B = subsets_share(wrong_B, count_B, self.k)
        fails_too_B = subsets_share(wrong_B - 1, count_B - 1, self.k - 1)
        advantage_B = none_right_B - torch.where(right_B == 1, 0.0, fails_too_B)
        rest_B = group_advantage(samples.reward_B - reward_B, group_B, divide_by_std=False)
        if self.divide_by_group_std:
            std_B = (none_right_B * (1 - none_right_B)).sqrt()
            advantage_B = advantage_B / (std_B + _LEAST_STD)
            # Where all subsets have the same reward, the rest keeps its own scale.
            rest_B = rest_B / torch.where(std_B > 0, std_B, 1.0)
        advantage_B = torch.where(count_B >= self.k, advantage_B, 0.0)
        return advantage_B + rest_B  # nan where scoring failed


def subsets_share(number: Tensor, total: Tensor, size: int) -> Tensor:
    """Compute C(number, size) / C(total, size), the share of subsets within `number` elements.

    0 where `number` is below `size` (also if it is negative, or `total` is).

    >>> subsets_share(torch.tensor([3.0, 1.0]), torch.tensor([4.0, 4.0]), 2)  # 3 / 6, 0 / 6
    tensor([0.5000, 0.0000])
    """
    share = torch.ones_like(number)
    for taken in range(size):
        share = share * ((number - taken) / (total - taken).clamp_min(1)).clamp_min(0)
    return share
