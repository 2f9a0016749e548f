"""Policy-gradient losses of sampled completions and their rewards.

They do not depend on MARA or on the source of the rewards: the KL in the reward is subtracted
before, the KL in the loss is passed as `penalty`. A step reads

    augmented = mara.augment(reward_B, reference_B, group_B, beta)
    reward_B = augmented.reward_B - beta * kl.in_reward(...)
    loss = policy_loss(PolicySamples(..., reward_B=reward_B, penalty=beta * kl.in_loss(...))).mean()
"""

# Shapes: B completions, T completion positions, G groups

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.diversify.groups import first_of_group
from triptych.objectives.diversify.kl import sequence_log_prob

RatioLevel = Literal["token", "sequence", "sequence_mean"]
TokenWeighting = Literal["sequence_mean", "token_mean", "constant_length", "sum"]


@dataclass
class PolicySamples:
    """The input of a policy loss: B completions.

    Attributes:
        log_prob_BT: Log-probability of every sampled token under the current policy, in nats,
            differentiable.
        token_mask_BT: bool; True marks a sampled token.
        reward_B: The reward to maximise, including the KL in the reward; nan where scoring failed.
            Such rows have no weight in the loss, in a baseline or in the count of a mean.
        group_B: int64; completions of one prompt share a number.
        old_log_prob_BT: Under the policy that sampled; None if this is the current one, so that
            every ratio is 1 (with the score function as its gradient).
        reference_log_prob_B: Of whole completions under the reference; `Dap` needs it.
        beta: Strength of the KL; `Dap` needs it, the others get their KL in reward or penalty.
        importance_B: Factor of each completion in loss and penalty (`importance_weight`), without
            gradient; None: 1. `Dap` does not need it.
        penalty: KL in the loss, times beta, differentiable: (B, T) is weighted over tokens as the
            loss is, (B,) counts once per completion.
        scored_reward_B: The reward as it was scored, without KL and MARA; the losses of
            `triptych.objectives.diversify.rivals` read from it which completions are right.
    """

    log_prob_BT: Tensor
    token_mask_BT: Tensor
    reward_B: Tensor
    group_B: Tensor
    old_log_prob_BT: Tensor | None = None
    reference_log_prob_B: Tensor | None = None
    beta: float | None = None
    penalty: Tensor | None = None
    scored_reward_B: Tensor | None = None
    importance_B: Tensor | None = None

    @property
    def scored(self) -> Tensor:
        """True where there is a reward: bool (B,)."""
        return ~self.reward_B.isnan()


@dataclass
class LossSum:
    """A loss as a sum and its divisor.

    Attributes:
        total: Sum over rows (or tokens), differentiable.
        count: Rows (or tokens) in it.
        numbers: To log, detached, 0-dimensional.
    """

    total: Tensor
    count: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def mean(self, count: Tensor | None = None, num_ranks: int = 1) -> Tensor:
        """Return the loss to call backward on.

        Args:
            count: `count` summed over all ranks (and accumulated micro-batches); None: the own
                count.
            num_ranks: Number of processes over which DDP averages gradients. With the summed
                `count` the averaged gradient is that of the whole batch, even if ranks have
                different numbers of scored rows.
        """
        return self.total * num_ranks / (self.count if count is None else count).clamp_min(1)


class PolicyLoss(ABC):
    """Base of losses; a subclass is named by `class_path` in a YAML.

    Attributes:
        contains_kl: Whether the loss itself regularises towards the reference, so that no
            `KlPenalty` may be added.
        divides_by_std: Whether advantages are divided by a standard deviation of rewards. They are
            then independent of the scale of rewards, and of beta in them.
        baseline_of_group: Whether a completion is compared with the others of its prompt. With one
            completion of each, all advantages are 0.
    """

    contains_kl: bool = False
    divides_by_std: bool = False
    baseline_of_group: bool = False

    @abstractmethod
    def __call__(self, samples: PolicySamples) -> LossSum:
        """Compute the loss of these samples."""


@dataclass
class Reinforce(PolicyLoss):
    """-(R - b) log pi, with the clipped ratio where the samples are older than the policy.

    Args:
        baseline: `none`, or `batch_mean`: the mean reward of the scored rows, including the own
            row, which shrinks the gradient by (B - 1) / B.
        clip_low: Below 1 - `clip_low` the ratio pi / pi_old does not lower a row's loss further.
        clip_high: The same above 1 + `clip_high`. Null: no clip.
        ratio: `sequence`, the product over the completion's tokens; or `token`.

    Source: Williams 1992; the clipped surrogate of PPO, 1707.06347, equation 7.
    """

    baseline: Literal["none", "batch_mean"] = "none"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    ratio: Literal["token", "sequence"] = "sequence"

    def __post_init__(self) -> None:
        _check_clip(self.clip_low, self.clip_high)

    def __call__(self, samples: PolicySamples) -> LossSum:
        """Return the mean over scored rows of the surrogate, summed over tokens."""
        advantage_B = samples.reward_B
        if self.baseline == "batch_mean":
            advantage_B = advantage_B - advantage_B.nanmean()
        return _surrogate(
            samples, advantage_B, self.clip_low, self.clip_high, self.ratio, "sum", None
        )


@dataclass
class Rloo(PolicyLoss):
    """REINFORCE with the mean reward of the *other* completions of the prompt as baseline.

    A row without another scored row in its group has no baseline; its advantage is 0.

    Args:
        normalize_advantages: Divide by the standard deviation over the whole batch, after
            subtracting the mean (TRL's option of the same name). Each rank uses its own batch.
        clip_low: See `Reinforce`.
        clip_high: See `Reinforce`.
        ratio: See `Reinforce`; `sequence` is TRL's.

    Source: 2402.14740 (RLOO). Equal to TRL's RLOOTrainer on the same samples.
    """

    normalize_advantages: bool = False
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    ratio: Literal["token", "sequence"] = "sequence"
    baseline_of_group = True

    def __post_init__(self) -> None:
        _check_clip(self.clip_low, self.clip_high)
        self.divides_by_std = self.normalize_advantages

    def __call__(self, samples: PolicySamples) -> LossSum:
        """Return the mean over scored rows of the surrogate, summed over tokens."""
        advantage_B = leave_one_out_advantage(samples.reward_B, samples.group_B)
        if self.normalize_advantages:
            centred_B = advantage_B - advantage_B.nanmean()
            advantage_B = centred_B / (_nanstd(advantage_B) + 1e-4)
        return _surrogate(
            samples, advantage_B, self.clip_low, self.clip_high, self.ratio, "sum", None
        )


@dataclass
class Grpo(PolicyLoss):
    """Advantages relative to the group's mean, ratios clipped per token.

    Args:
        divide_by_group_std: Divide advantages by the group's standard deviation (plus 1e-4), as in
            the GRPO paper. Not with MARA's algorithm 1 and a KL in the loss: see
            `triptych.objectives.diversify.collapse_diagnosis`.
        clip_low: See `Reinforce`.
        clip_high: See `Reinforce`.
        ratio: `token`; `sequence_mean`, the geometric mean over tokens (GSPO, TRL's `sequence`); or
            `sequence`, their product.
        token_weighting: `sequence_mean`: mean over a completion's tokens, then over completions
            (GRPO). `token_mean`: over all tokens of all ranks (DAPO).
            `constant_length`: sum over tokens / `max_tokens`, mean over completions (Dr. GRPO).
            `sum`: sum over tokens, mean over completions: the unbiased policy gradient.
        max_tokens: For `constant_length`: the length limit of sampling.

    Source: 2402.03300 (GRPO); 2507.18071 (GSPO); 2503.14476 (DAPO); 2503.20783 (Dr. GRPO). Equal to
    TRL's GRPOTrainer (`grpo`, `bnpo`, `dr_grpo`) on the same samples.
    """

    divide_by_group_std: bool = True
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    ratio: RatioLevel = "token"
    token_weighting: TokenWeighting = "sequence_mean"
    max_tokens: int | None = None
    baseline_of_group = True

    def __post_init__(self) -> None:
        _check_clip(self.clip_low, self.clip_high)
        if (self.token_weighting == "constant_length") != (self.max_tokens is not None):
            raise ValueError(
                f"token_weighting is {self.token_weighting!r} and max_tokens {self.max_tokens}: "
                "constant_length needs the length limit of sampling, the others null"
            )
        self.divides_by_std = self.divide_by_group_std

    def __call__(self, samples: PolicySamples) -> LossSum:
        """Return the mean over scored rows, or over their tokens, of the surrogate."""
        return _surrogate(
            samples,
            self.advantage(samples),
            self.clip_low,
            self.clip_high,
            self.ratio,
            self.token_weighting,
            self.max_tokens,
        )

    def advantage(self, samples: PolicySamples) -> Tensor:
        """Compute the advantage of each completion, (B,), nan where scoring failed."""
        return group_advantage(
            samples.reward_B, samples.group_B, divide_by_std=self.divide_by_group_std
        )


@dataclass
class Dap(PolicyLoss):
    """(log pi_ref + sigma R - log pi)^2, REINVENT's loss, with sigma = 1 / beta.

    On-policy its gradient is 2 / beta times that of -(E[R] - beta KL(pi || pi_ref)), so it contains
    the reverse KL. It also holds off-policy (replayed rows need no ratio). Its minimum is
    pi_ref exp(R / beta) without normalisation, so rewards should not be far above 0 on average.

    Args:
        sigma: Null takes 1 / beta. With MARA leave it null: both must use the same beta.
        entropy_bonus: w >= 0: alpha H(pi) is added to the reward, with alpha = w beta. The optimum
            is (pi_ref exp(sigma R))^(1 / (1 + w)): equal rewards keep the reference's odds to that
            power (ours in this form; the paper names entropy bonuses as a rival).

    Source: REINVENT 2.0 (Blaschke et al. 2020), "difference between augmented and posterior".
    """

    sigma: float | None = None
    entropy_bonus: float = 0.0
    contains_kl = True

    def __post_init__(self) -> None:
        if self.sigma is not None and not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}: set it above 0, or to null for 1 / beta")
        if not 0 <= self.entropy_bonus < float("inf"):
            raise ValueError(f"entropy_bonus is {self.entropy_bonus}: set it to 0 or above")

    def __call__(self, samples: PolicySamples) -> LossSum:
        """Return the mean over scored rows of the squared difference."""
        if samples.reference_log_prob_B is None:
            raise ValueError("Dap needs reference_log_prob_B, which it pulls the policy towards")
        if samples.penalty is not None:
            raise ValueError("Dap contains the KL already: set the KL penalty to null")
        sigma = self.sigma
        if sigma is None:
            if samples.beta is None or not samples.beta > 0:
                raise ValueError(f"beta is {samples.beta}: Dap needs one above 0, or sigma itself")
            sigma = 1 / samples.beta
        log_prob_B = sequence_log_prob(samples.log_prob_BT, samples.token_mask_BT)
        target_B = samples.reference_log_prob_B + sigma * samples.reward_B
        target_B = target_B / (1 + self.entropy_bonus)
        scored_B = samples.scored
        # `where` before the square, since a nan would return in its gradient.
        difference_B = torch.where(scored_B, target_B, 0.0) - torch.where(scored_B, log_prob_B, 0.0)
        count = scored_B.sum()
        return LossSum(
            difference_B.square().sum(),
            count,
            {
                "scored_share": scored_B.double().mean(),
                "target_nats_mean": torch.where(scored_B, target_B, 0.0).detach().sum()
                / count.clamp_min(1),
            },
        )


def leave_one_out_advantage(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Compute R_i minus the mean of the other scored rewards of its group; nan stays nan.

    >>> leave_one_out_advantage(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 1]))
    tensor([-2.,  2.,  0.])
    """
    sum_B, count_B, _ = group_moments(reward_B, group_B)
    others_B = (sum_B - reward_B) / (count_B - 1).clamp_min(1)
    return torch.where(count_B > 1, reward_B - others_B, reward_B - reward_B)


def group_advantage(reward_B: Tensor, group_B: Tensor, divide_by_std: bool = True) -> Tensor:
    """Compute (R_i - mean of its group's scored rewards) / (their standard deviation + 1e-4).

    The standard deviation is the unbiased one, and 0 for a single row; nan stays nan.
    """
    sum_B, count_B, std_B = group_moments(reward_B, group_B)
    centred_B = reward_B - sum_B / count_B.clamp_min(1)
    return centred_B / (std_B + 1e-4) if divide_by_std else centred_B


def group_moments(reward_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute sum, number and standard deviation of the scored rewards of each row's group."""
    first_B = first_of_group(group_B)
    scored_B = ~reward_B.isnan()

    def total(value_B: Tensor) -> Tensor:
        zeros_B = torch.zeros_like(value_B)
        return zeros_B.index_add(0, first_B, value_B.masked_fill(~scored_B, 0.0))[first_B]

    sum_B = total(reward_B)
    count_B = total(torch.ones_like(reward_B))
    squares_B = total((reward_B - sum_B / count_B.clamp_min(1)).square())
    return sum_B, count_B, (squares_B / (count_B - 1).clamp_min(1)).sqrt()


def _nanstd(value_B: Tensor) -> Tensor:
    """Compute the standard deviation of the numbers, 0 of fewer than two, without a wait."""
    count = (~value_B.isnan()).sum()
    squares = (value_B - value_B.nanmean()).square().nansum()
    return torch.where(count > 1, (squares / (count - 1).clamp_min(1)).sqrt(), 0.0)


def _surrogate(
    samples: PolicySamples,
    advantage_B: Tensor,
    clip_low: float | None,
    clip_high: float | None,
    ratio: RatioLevel,
    token_weighting: TokenWeighting,
    max_tokens: int | None,
) -> LossSum:
    """Compute the clipped surrogate with its penalty, weighted over tokens."""
    mask_BT, scored_B = samples.token_mask_BT, samples.scored
    new_BT = samples.log_prob_BT.masked_fill(~mask_BT, 0.0)
    old_BT = samples.old_log_prob_BT
    old_BT = new_BT.detach() if old_BT is None else old_BT.masked_fill(~mask_BT, 0.0)
    length_B = mask_BT.sum(-1)
    log_ratio_BT = new_BT - old_BT
    if ratio != "token":
        log_ratio_BT = log_ratio_BT.sum(-1, keepdim=True)
        if ratio == "sequence_mean":
            log_ratio_BT = log_ratio_BT / length_B.clamp_min(1)[:, None]
    ratio_BT = log_ratio_BT.exp()  # one column where a completion has one ratio
    advantage_B1 = torch.where(scored_B, advantage_B, 0.0)[:, None].detach()
    floor = None if clip_low is None else 1 - clip_low
    ceiling = None if clip_high is None else 1 + clip_high
    gain_BT = ratio_BT * advantage_B1
    if floor is not None or ceiling is not None:
        gain_BT = torch.minimum(gain_BT, ratio_BT.clamp(floor, ceiling) * advantage_B1)
    # With one ratio per completion, the gain counts once in a sum over tokens (`once_B`). In a mean
    # over tokens every token carries it, so that the mean equals it.
    once_B, loss_BT = new_BT.new_zeros(len(new_BT)), torch.zeros_like(new_BT)
    if ratio == "token":
        loss_BT = -gain_BT
    elif token_weighting in ("sum", "constant_length") and ratio == "sequence":
        once_B = -gain_BT[:, 0]
    else:
        loss_BT = -gain_BT.expand_as(new_BT)
    if samples.penalty is not None:
        if samples.penalty.dim() == 2:
            loss_BT = loss_BT + samples.penalty
        elif token_weighting == "token_mean":
            raise ValueError(
                "token_weighting: token_mean has no place for a KL of whole completions: use the "
                "KL's level: token, or another token_weighting"
            )
        else:
            once_B = once_B + samples.penalty
    if samples.importance_B is not None:
        loss_BT, once_B = loss_BT * samples.importance_B[:, None], once_B * samples.importance_B
    kept_BT = mask_BT & scored_B[:, None]
    loss_BT = loss_BT.masked_fill(~kept_BT, 0.0)
    once_B = once_B.masked_fill(~scored_B, 0.0)
    count = scored_B.sum()
    if token_weighting == "sequence_mean":
        total = (loss_BT.sum(-1) / length_B.clamp_min(1) + once_B).sum()
    elif token_weighting == "constant_length":
        assert max_tokens is not None
        total = (loss_BT.sum(-1) / max_tokens + once_B).sum()
    else:
        total = loss_BT.sum() + once_B.sum()
        count = kept_BT.sum() if token_weighting == "token_mean" else count
    with torch.no_grad():
        beyond_BT = torch.zeros_like(ratio_BT, dtype=torch.bool)
        if floor is not None:
            beyond_BT |= (ratio_BT < floor) & (advantage_B1 < 0)
        if ceiling is not None:
            beyond_BT |= (ratio_BT > ceiling) & (advantage_B1 > 0)
        counted_BT = kept_BT if ratio == "token" else scored_B[:, None]
        numbers = {
            "scored_share": scored_B.double().mean(),
            "advantage_std": _nanstd(advantage_B.masked_fill(~scored_B, torch.nan)),
            "clipped_share": (beyond_BT & counted_BT).sum() / counted_BT.sum().clamp_min(1),
        }
    return LossSum(total, count, numbers)


def _check_clip(clip_low: float | None, clip_high: float | None) -> None:
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}: set it above 0, or to null for no limit")
