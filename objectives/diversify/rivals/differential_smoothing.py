"""Differential smoothing (DS-GRPO): an entropy bonus for right completions, a malus for wrong ones.

    A_i = (R_i - mean) / std  - gamma_right log pi_old(y_i)   if y_i is right
                              + gamma_wrong log pi_old(y_i)   otherwise

In expectation, the first term follows the gradient of gamma_right (H_right + P_right), where
H_right is the part of the entropy that comes from right completions, -sum pi log pi, and P_right
their probability. The second term follows that of -gamma_wrong (H_wrong + P_wrong).

Source: "Differential Smoothing Mitigates Sharpening and Improves LLM Reasoning", 2511.19942,
equations 4 and 6. Equation 4 states it for the reward, with the base model's log-probability; the
algorithm (equation 6) takes the policy that sampled. Read from two third-party accounts of the
paper that agree, not from the paper. Its values of gamma are unknown to us.
"""

# Shapes: B completions

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.objectives.diversify.policy_loss import Grpo, PolicySamples
from triptych.objectives.diversify.rivals.right_answers import sampled_log_prob, scored_reward


@dataclass
class DifferentialSmoothing(Grpo):
    """GRPO whose advantages are smoothed among right completions and sharpened among wrong ones.

    The terms are of the size of a completion's log-probability: 0.01 times 100 nats is as much as
    one standard deviation of rewards. For long replies take smaller values.

    Args:
        gamma_right: gamma_p of the paper, at least 0.
        gamma_wrong: gamma_n of the paper, at least 0.
        right_reward: Completions whose scored reward is at least this are right.
    """

    gamma_right: float = 0.01
    gamma_wrong: float = 0.01
    right_reward: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("gamma_right", self.gamma_right), ("gamma_wrong", self.gamma_wrong)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}: set it to 0 or above")

    def advantage(self, samples: PolicySamples) -> Tensor:
        """Compute the advantage of each completion, (B,), nan where scoring failed."""
        right_B = scored_reward(samples, "DifferentialSmoothing") >= self.right_reward
        factor_B = torch.where(right_B, -self.gamma_right, self.gamma_wrong)
        return super().advantage(samples) + factor_B * sampled_log_prob(samples)
