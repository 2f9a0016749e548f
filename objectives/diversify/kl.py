"""Estimators of the KL between policy and reference, and the gradient of each.

With r = pi_ref / pi at a sample of pi (one token given its prefix, or a whole completion):
    k1 = -log r        k2 = (log r)^2 / 2        k3 = r - 1 - log r

k1 and k3 are unbiased estimates of KL(pi || pi_ref), the reverse KL; k2 is not. Training follows
the gradient, which depends on the place of the estimate. On-policy, in expectation:

| estimator           | place       | sampled gradient        | its expectation               |
|---------------------|-------------|-------------------------|-------------------------------|
| k1                  | reward      | k1 grad log pi          | grad KL(pi, ref): reverse     |
| k1                  | loss        | grad log pi             | 0: no regularisation at all   |
| k1                  | loss, ratio | (k1 + 1) grad log pi    | grad KL(pi, ref): reverse     |
| k2                  | reward      | k2 grad log pi          | of neither                    |
| k2                  | loss        | k1 grad log pi          | grad KL(pi, ref): reverse     |
| k3                  | reward      | k3 grad log pi          | grad [KL(pi, ref)-KL(ref, pi)]|
| k3                  | loss        | (1 - r) grad log pi     | grad KL(ref, pi): forward     |
| k3                  | loss, ratio | k1 grad log pi          | grad KL(pi, ref): reverse     |
| k3_straight_through | loss        | as k2; shown is k3      | grad KL(pi, ref): reverse     |
| forward             | reward      | (1 - r) grad log pi     | grad KL(ref, pi): forward     |

The rows of the forward KL need pi > 0 wherever pi_ref > 0. "Reward" means that beta times the
estimate, without gradient, is subtracted from the reward of the whole completion. "Loss" means that
it is differentiated. "Ratio" means that it is first multiplied by pi / pi_old
(`importance_weighted`), which is 1 on-policy and has the gradient of the score function. Per token
and in the loss, the expectation is the gradient of the sum over positions of the next-token KLs on
fixed prefixes that the *policy* sampled: it ignores the policy's influence on later prefixes. For a
sequence's true KL use `k1` in the reward (its sum over tokens is the k1 of the sequence), or
`level: sequence`.

Sources: 2510.20817, remarks 3.1 to 3.4; J. Schulman, "Approximating KL divergence" (k1, k2, k3);
straight-through as the option `k3+` of verl; the ratio as `use_bias_correction_kl` of TRL, whose
default makes its GRPO's KL the reverse one. Off-policy (several updates per rollout) only the rows
with the ratio still hold in the loss, and per token only up to the prefixes.
"""

# Shapes: B completions, T completion positions, K answers (all there are), ... any

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.token_kl import token_kl

Divergence = Literal["reverse", "forward"]
Estimator = Literal["k1", "k2", "k3", "k3_straight_through", "forward"]
Place = Literal["reward", "loss"]
Level = Literal["token", "sequence"]

_GRADIENT: dict[tuple[str, str], Literal["reverse", "forward", "neither", "none"]] = {
    ("k1", "reward"): "reverse",
    ("k1", "loss"): "none",
    ("k2", "reward"): "neither",
    ("k2", "loss"): "reverse",
    ("k3", "reward"): "neither",
    ("k3", "loss"): "forward",
    ("k3_straight_through", "loss"): "reverse",
    ("forward", "reward"): "forward",
}


def sequence_log_prob(token_log_prob_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
    """Sum the log-probabilities of the sampled tokens of each completion: (B,), in nats.

    The sum, end token included, is the log-probability of the whole completion. A mean over tokens
    is not, and MARA's theorem does not hold for it.

    >>> sequence_log_prob(torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[True, True, False]]))
    tensor([-3.])
    """
    return token_log_prob_BT.masked_fill(~token_mask_BT, 0.0).sum(-1)


def k1(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """Compute log pi - log pi_ref, in nats; any shape.

    Unbiased for the reverse KL; may be negative.
    """
    return log_prob - reference_log_prob


def k2(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """Halve the squared difference; any shape. A biased value with the reverse KL's gradient."""
    return (log_prob - reference_log_prob).square() / 2


def k3(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """Compute r - 1 - log r with r = pi_ref / pi, in nats; any shape.

    Never negative, unbiased for the reverse KL; its gradient is the *forward* KL's.

    >>> k3(torch.tensor(0.5).log(), torch.tensor(0.25).log())  # 0.5 - 1 + ln 2
    tensor(0.1931)
    """
    log_ratio = reference_log_prob - log_prob
    return log_ratio.expm1() - log_ratio


def k3_straight_through(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """Combine the value of k3 with the gradient of k2, the reverse KL's; any shape."""
    gradient = k2(log_prob, reference_log_prob)
    return k3(log_prob, reference_log_prob).detach() + (gradient - gradient.detach())


def forward_coefficient(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """Compute 1 - pi_ref / pi; any shape. In the reward it has the gradient of the forward KL.

    Its mean is 0: it is a factor of the score function, not an estimate of a KL.
    """
    return -(reference_log_prob - log_prob).expm1()


def exact_kl(divergence: Divergence, logits_K: Tensor, reference_logits_K: Tensor) -> Tensor:
    """Compute the KL over all K answers, in nats, differentiable.

    Args:
        divergence: `reverse` is KL(pi || pi_ref), `forward` KL(pi_ref || pi).
        logits_K: Of the policy, unnormalised, (..., K).
        reference_logits_K: Of the reference.
    """
    if divergence == "reverse":
        return token_kl(logits_K, reference_logits_K)
    return token_kl(reference_logits_K, logits_K)


_FUNCTIONS = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_straight_through": k3_straight_through,
    "forward": forward_coefficient,
}


@dataclass(frozen=True)
class KlPenalty:
    """An estimator of the KL and its place; see the table of this module for the gradients.

    Args:
        estimator: `k1`, `k2`, `k3`, `k3_straight_through` or `forward`.
        place: `reward` subtracts it from the completion's reward, `loss` differentiates it.
        level: `sequence` estimates once per completion, from its whole log-probability; `token`
            estimates at every token (in the reward: their sum). For k1 both are the same.
        importance_weighted: In the loss, multiply by the ratio pi / pi_old and differentiate it
            too: correct off-policy, and another gradient on-policy (see the table). For k1 and k3.
        max_log_ratio: Limit of |log pi - log pi_ref| in an estimate, in nats, so that exp does not
            overflow on rare completions. Beyond it the gradient in the loss is 0. NOT exact. Null:
            no limit.

    Raises:
        ValueError: on combinations without a meaning, with the one to take instead.

    The default is the paper's: k1 in the reward, summed over tokens, for the reverse KL.
    """

    estimator: Estimator = "k1"
    place: Place = "reward"
    level: Level = "sequence"
    importance_weighted: bool = False
    max_log_ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.estimator, self.place) == ("k3_straight_through", "reward"):
            raise ValueError(
                "k3_straight_through differs from k3 by its gradient, and a reward has none: use "
                "k1 in the reward (the reverse KL), or place: loss"
            )
        if (self.estimator, self.place) == ("forward", "loss"):
            raise ValueError(
                "forward goes in the reward; in the loss use k3, whose gradient is the same"
            )
        if self.importance_weighted and (
            self.place != "loss" or self.estimator not in ("k1", "k3")
        ):
            raise ValueError(
                "importance_weighted is for k1 and k3 in the loss: in the reward the policy loss "
                "weighs by the ratio, and k2's gradient is the reverse KL's without it"
            )
        if self.max_log_ratio is not None and not self.max_log_ratio > 0:
            raise ValueError(f"max_log_ratio is {self.max_log_ratio}: set it above 0, or to null")

    @property
    def gradient(self) -> Literal["reverse", "forward", "neither", "none"]:
        """The KL with its on-policy gradient; `none` if it does not regularise at all."""
        return "reverse" if self.importance_weighted else _GRADIENT[self.estimator, self.place]

    @property
    def per_token(self) -> bool:
        """Whether it needs the reference's log-probability of every token."""
        return self.level == "token" and (self.estimator, self.place) != ("k1", "reward")

    def in_reward(
        self,
        log_prob_BT: Tensor,
        reference_log_prob_BT: Tensor,
        token_mask_BT: Tensor,
        reference_log_prob_B: Tensor | None = None,
    ) -> Tensor:
        """Compute the penalty to subtract, times beta, from each reward: (B,), without gradient.

        Zeros if `place` is `loss`.

        Args:
            log_prob_BT: Log-probability of each sampled token under the policy that sampled it.
            reference_log_prob_BT: Under the reference.
            token_mask_BT: bool; True marks a sampled token.
            reference_log_prob_B: Of whole completions, to replace the sum over tokens by
                `Augmentation.reference_log_prob_B` (algorithm 2 of MARA).
        """
        if self.place != "reward":
            return log_prob_BT.new_zeros(len(log_prob_BT))
        value = self._value(
            log_prob_BT.detach(), reference_log_prob_BT, token_mask_BT, reference_log_prob_B
        )
        return value if value.dim() == 1 else value.sum(-1)

    def in_loss(
        self,
        log_prob_BT: Tensor,
        reference_log_prob_BT: Tensor,
        token_mask_BT: Tensor,
        reference_log_prob_B: Tensor | None = None,
        old_log_prob_BT: Tensor | None = None,
    ) -> Tensor | None:
        """Compute the penalty to add, times beta, to the loss; None if `place` is `reward`.

        Arguments as `in_reward`; `log_prob_BT` is the current policy's, `old_log_prob_BT` that of
        the policy that sampled, for `importance_weighted` (None: the current one).

        Returns:
            Differentiable; (B, T), 0 outside the mask, for `level: token`; (B,) for `sequence`.
            Times beta it is `PolicySamples.penalty`.
        """
        if self.place != "loss":
            return None
        value = self._value(log_prob_BT, reference_log_prob_BT, token_mask_BT, reference_log_prob_B)
        if not self.importance_weighted:
            return value
        old_BT = log_prob_BT.detach() if old_log_prob_BT is None else old_log_prob_BT
        log_ratio_BT = (log_prob_BT - old_BT).masked_fill(~token_mask_BT, 0.0)
        return value * (log_ratio_BT if value.dim() == 2 else log_ratio_BT.sum(-1)).exp()

    def _value(
        self,
        log_prob_BT: Tensor,
        reference_BT: Tensor,
        mask_BT: Tensor,
        reference_B: Tensor | None,
    ) -> Tensor:
        function = _FUNCTIONS[self.estimator]
        if not self.per_token:
            log_prob_B = sequence_log_prob(log_prob_BT, mask_BT)
            if reference_B is None:
                reference_B = sequence_log_prob(reference_BT, mask_BT)
            return function(log_prob_B, self._near(log_prob_B, reference_B))
        if reference_B is not None and not torch.allclose(
            reference_B, sequence_log_prob(reference_BT, mask_BT), rtol=1e-4, atol=1e-3
        ):
            raise ValueError(
                "MARA's algorithm 2 replaces the log-probability of whole completions, and this KL "
                "is taken token by token: use level: sequence, or algorithm: 1"
            )
        value_BT = function(log_prob_BT, self._near(log_prob_BT, reference_BT))
        return value_BT.masked_fill(~mask_BT, 0.0)

    def _near(self, log_prob: Tensor, reference: Tensor) -> Tensor:
        """Clamp the reference so that the log-ratio stays within its limit."""
        bound = self.max_log_ratio
        if bound is None or bound == math.inf:
            return reference
        return log_prob + (reference - log_prob).clamp(-bound, bound)
