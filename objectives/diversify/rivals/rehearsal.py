"""Rehearsal of the reference's right answers (DPH-RL): an f-divergence on samples of the reference.

Prompts that the reference already solves are not trained by reinforcement. Their right
completions, sampled from the reference once, are rehearsed instead. With u = pi / pi_ref at each of
their tokens, the loss of a token is f(u), whose mean over samples of the reference is D_f:

    forward   f(u) = -log u                                  KL(pi_ref || pi)
    js        f(u) = u log u - (u + 1) log((u + 1) / 2)      2 JS(pi, pi_ref)

Both gradients pull towards everything that the reference does, and not only towards what the policy
still samples. The other prompts have no divergence, as in the paper: set beta to 0 for that.

Source: "The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in Reinforcement
Learning with Verifiable Reward", 2509.07430 (DPH-F and DPH-JS); f and the coefficients (0.01 to
0.05 forward, 0.05 to 0.2 JS) from the authors' code. The share from which a prompt counts as solved
is ours, since the paper's was not at hand. Deviations: a prompt is sampled from the reference when
it is first drawn, not before the training, which gives the same distribution; the mean over tokens
is over those of the step.
"""

# Shapes: B completions, T completion positions

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

from triptych.objectives.diversify.policy_loss import LossSum

_LOG_2 = 0.6931471805599453


@dataclass(frozen=True)
class Rehearsal:
    """Settings of the rehearsal, and its loss.

    Args:
        divergence: `forward` or `js`.
        coefficient: Of the divergence in the loss, above 0.
        num_samples: Completions of each prompt that are sampled from the reference.
        solved_share: A prompt is rehearsed, and not reinforced, if at least this share of them is
            right. Prompts with a smaller share are reinforced only.
        right_reward: Completions whose scored reward is at least this are right.

    Raises:
        ValueError: on settings that cannot work.
    """

    divergence: Literal["forward", "js"] = "js"
    coefficient: float = 0.1
    num_samples: int = 8
    solved_share: float = 0.75
    right_reward: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.coefficient < float("inf"):
            raise ValueError(
                f"coefficient is {self.coefficient}: set it above 0, or rehearsal to null"
            )
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}: set it to at least 1")
        if not 0 < self.solved_share <= 1:
            raise ValueError(
                f"solved_share is {self.solved_share}: set it to a share above 0, up to 1"
            )

    def term(
        self, log_prob_BT: Tensor, reference_log_prob_BT: Tensor, token_mask_BT: Tensor
    ) -> LossSum:
        """Compute the term to add to the loss, as a sum over tokens and their number.

        Args:
            log_prob_BT: Log-probability of each token of the reference's completions under the
                policy, differentiable.
            reference_log_prob_BT: The same under the reference.
            token_mask_BT: bool; True marks a token.
        """
        function = forward_generator if self.divergence == "forward" else js_generator
        log_ratio_BT = (log_prob_BT - reference_log_prob_BT).masked_fill(~token_mask_BT, 0.0)
        value_BT = function(log_ratio_BT).masked_fill(~token_mask_BT, 0.0)
        total, count = value_BT.sum(), token_mask_BT.sum()
        mean = total.detach() / count.clamp_min(1)
        return LossSum(self.coefficient * total, count, {"rehearsal_nats_per_token": mean})


def forward_generator(log_ratio: Tensor) -> Tensor:
    """Compute f(u) = -log u from log u; any shape. Its mean over pi_ref is KL(pi_ref || pi)."""
    return -log_ratio


def js_generator(log_ratio: Tensor) -> Tensor:
    """Compute f(u) = u log u - (u + 1) log((u + 1) / 2) from log u; any shape.

    Its mean over pi_ref is twice the Jensen-Shannon divergence: KL(pi || m) + KL(pi_ref || m) with
    the mean m of both. Never negative.

    >>> import torch
    >>> js_generator(torch.tensor([0.0, 3.0]))  # u = 1, u = e^3
    tensor([ 0.0000, 10.5909])
    """
    ratio = log_ratio.exp()
    return ratio * log_ratio - (ratio + 1) * (softplus(log_ratio) - _LOG_2)
