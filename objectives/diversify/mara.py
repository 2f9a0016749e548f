"""Mode-anchored reward augmentation (MARA): rewards that make all good answers equally likely.

Source: "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2510.20817, equation
11 and algorithms 1 and 2. Optimising E[R] - beta KL(pi || pi_ref) leads to pi_ref exp(R / beta),
which among equally good answers keeps the reference's odds, however small beta is. MARA picks an
anchor z, the likeliest answer under the reference among those at or above a threshold. Every such
answer i gets the reward R_z + beta (log pi_ref(z) - log pi_ref(i)). The optimum is then constant
above the threshold, at the anchor's level, and unchanged below it.
"""

# Shapes: B completions, G groups among which anchors are looked for

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.diversify.groups import first_of_group

Scope = Literal["group", "batch", "batch_and_replay"]


@dataclass(frozen=True)
class Augmentation:
    """A batch after augmentation.

    Attributes:
        reward_B: Rewards to optimise; unchanged for rows below the threshold.
        reference_log_prob_B: Log-probabilities under the reference for the KL (or DAP's target), in
            nats: as given, but under algorithm 2 the anchor's for rows above the threshold.
        anchor_B: int64; the row of the anchor of this row's group, -1 where the group has none.
        anchor_reward_B: Reward of that anchor, nan where there is none.
        above_B: bool; True marks a row at or above the threshold in a group with an anchor.
        shift_B: Nats by which the anchor is likelier under the reference, 0 where not above; after
            clipping and division by length, where these are on.
        threshold: The threshold that was used.
        first_row: Number of the first of these rows among all augmented rows, by which `anchor_B`
            counts.
    """

    reward_B: Tensor
    reference_log_prob_B: Tensor
    anchor_B: Tensor
    anchor_reward_B: Tensor
    above_B: Tensor
    shift_B: Tensor
    threshold: float
    first_row: int = 0

    @property
    def is_anchor(self) -> Tensor:
        """True where a row is the anchor of its group: bool (B,)."""
        own_B = torch.arange(len(self.anchor_B), device=self.anchor_B.device) + self.first_row
        return self.above_B & (self.anchor_B == own_B)

    def rows(self, first: int, count: int) -> "Augmentation":
        """Return `count` rows from `first` on; `anchor_B` still counts over all rows."""
        own = slice(first, first + count)
        return Augmentation(
            reward_B=self.reward_B[own],
            reference_log_prob_B=self.reference_log_prob_B[own],
            anchor_B=self.anchor_B[own],
            anchor_reward_B=self.anchor_reward_B[own],
            above_B=self.above_B[own],
            shift_B=self.shift_B[own],
            threshold=self.threshold,
            first_row=self.first_row + first,
        )


@dataclass(frozen=True)
class Mara:
    """Settings of the augmentation, and its computation.

    Args:
        threshold: tau, on the reward's scale; rows at or above it count as good. Give exactly one
            of `threshold` and `percentile`.
        percentile: tau is this percentile (0 to 100, linear between rewards as in numpy) of the
            rewards of the batch's fresh rows.
        end_value: Last value of a linear schedule of the threshold or percentile; null: constant.
        schedule_steps: Length of that schedule in optimizer steps.
        scope: The rows among which the anchor is chosen. `group`: those of the same prompt, since
            log pi_ref(y | x) is comparable for one x only. `batch`: all fresh rows, for
            unconditional policies. `batch_and_replay`: replayed rows may be anchors too.
        algorithm: 1 augments the reward. 2 replaces reward and reference log-probability of the
            rows above the threshold by the anchor's. For the reverse KL they are the same; with the
            forward KL only 2 leads to equal probabilities (see `target_distribution`).
        clip: Largest absolute shift log pi_ref(z) - log pi_ref(i) in nats. NOT exact: answers
            beyond it stay rarer at the optimum. For long texts, where a shift of hundreds of nats
            would dominate the reward.
        length_normalised: Choose the anchor and shift by log-probability per token. NOT exact.

    Raises:
        ValueError: on settings that cannot work, with the change to make.

    Deviations: the paper treats a batch of answers to one prompt. The other scopes, the schedule,
    `clip` and `length_normalised` are ours, and so is the rule that ties go to the lowest row.
    """

    threshold: float | None = None
    percentile: float | None = None
    end_value: float | None = None
    schedule_steps: int = 0
    scope: Scope = "group"
    algorithm: Literal[1, 2] = 1
    clip: float | None = None
    length_normalised: bool = False

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.percentile is None):
            raise ValueError(
                f"threshold is {self.threshold} and percentile {self.percentile}: give one of them "
                "and set the other to null"
            )
        for name, value in (("percentile", self.percentile), ("end_value", self.end_value)):
            if self.percentile is not None and value is not None and not 0 <= value <= 100:
                raise ValueError(f"{name} is {value}: set it to a percentile from 0 to 100")
        if (self.end_value is None) != (self.schedule_steps == 0) or self.schedule_steps < 0:
            raise ValueError(
                f"end_value is {self.end_value} and schedule_steps {self.schedule_steps}: a "
                "schedule needs an end_value and at least 1 step, no schedule needs null and 0"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}: set it above 0 nats, or to null for none")
        if self.length_normalised and self.algorithm == 2:
            raise ValueError(
                "length_normalised needs algorithm 1: algorithm 2 replaces log-probabilities of "
                "whole answers, not means per token"
            )

    @property
    def exact(self) -> bool:
        """Whether the paper's theorem holds: neither clipped nor divided by length."""
        return self.clip is None and not self.length_normalised

    def augment(
        self,
        reward_B: Tensor,
        reference_log_prob_B: Tensor,
        group_B: Tensor,
        beta: float,
        *,
        step: int = 0,
        num_tokens_B: Tensor | None = None,
        replayed_B: Tensor | None = None,
    ) -> Augmentation:
        """Augment the rewards of a batch: equation 11.

        Where several processes share a batch (`scope` not `group`, or a percentile), pass the rows
        of all processes and keep the own ones by `Augmentation.rows`.

        Args:
            reward_B: Rewards as they were scored, without a KL term. Rows whose reward or reference
                log-probability is not finite (nan: scoring failed) are never above nor an anchor.
            reference_log_prob_B: Log-probability of each whole completion under the reference: the
                sum over its tokens, end token included, in nats.
            group_B: int64; completions of one prompt share a number.
            beta: Strength of the KL, at least 0. At 0, rows above the threshold just get the
                anchor's reward.
            step: Optimizer steps taken, for the schedule.
            num_tokens_B: Tokens of each completion; `length_normalised` needs it.
            replayed_B: bool; True marks rows of a replay memory. They are augmented like others
                but do not count for the percentile. None: all are fresh.

        Raises:
            ValueError: if beta is negative or `num_tokens_B` is missing.
        """
        if not beta >= 0:
            raise ValueError(
                f"beta is {beta}: a KL's strength cannot be negative, set it to at least 0"
            )
        height_B = reference_log_prob_B
        if self.length_normalised:
            if num_tokens_B is None:
                raise ValueError("length_normalised needs num_tokens_B, the completions' lengths")
            height_B = reference_log_prob_B / num_tokens_B.clamp_min(1)
        fresh_B = torch.ones_like(reward_B, dtype=torch.bool)
        if replayed_B is not None:
            fresh_B = ~replayed_B
        usable_B = reward_B.isfinite() & height_B.isfinite()
        threshold = self._threshold(reward_B, fresh_B & usable_B, step)
        above_B = usable_B & (reward_B >= threshold)
        candidate_B = above_B if self.scope == "batch_and_replay" else above_B & fresh_B
        anchor_B = _likeliest(
            height_B, candidate_B, group_B if self.scope == "group" else torch.zeros_like(group_B)
        )
        above_B = above_B & (anchor_B >= 0)
        z_B = anchor_B.clamp_min(0)  # rows without an anchor gather a value that is not used
        shift_B = torch.where(above_B, height_B[z_B] - height_B, 0.0)
        if self.clip is not None:
            shift_B = shift_B.clamp(-self.clip, self.clip)
        augmented_B, reference_B = reward_B[z_B], reference_log_prob_B
        if self.algorithm == 1:
            augmented_B = (augmented_B + beta * shift_B).to(reward_B.dtype)
        else:
            exact = self.clip is None
            replaced_B = reference_B[z_B] if exact else reference_B + shift_B
            reference_B = torch.where(above_B, replaced_B, reference_B)
        return Augmentation(
            reward_B=torch.where(above_B, augmented_B, reward_B),
            reference_log_prob_B=reference_B,
            anchor_B=anchor_B,
            anchor_reward_B=reward_B[z_B].masked_fill(anchor_B < 0, torch.nan),
            above_B=above_B,
            shift_B=shift_B,
            threshold=threshold,
        )

    def _threshold(self, reward_B: Tensor, counted_B: Tensor, step: int) -> float:
        start = self.threshold if self.percentile is None else self.percentile
        assert start is not None
        value = start
        if self.end_value is not None:
            value += (self.end_value - start) * min(1.0, step / self.schedule_steps)
        if self.percentile is None:
            return value
        reward_N = reward_B[counted_B]
        if not len(reward_N):
            return float("inf")
        return float(torch.quantile(reward_N.double(), value / 100))


def _likeliest(height_B: Tensor, candidate_B: Tensor, group_B: Tensor) -> Tensor:
    """Find the highest candidate of each row's group (of equals the lowest row); -1 without one."""
    first_B = first_of_group(group_B)
    height_B = height_B.masked_fill(~candidate_B, -torch.inf)
    top_B = torch.full_like(height_B, -torch.inf)
    top_B = top_B.scatter_reduce(0, first_B, height_B, "amax")
    row_B = torch.arange(len(height_B), device=height_B.device)
    row_B = row_B.masked_fill(~(candidate_B & (height_B == top_B[first_B])), len(height_B))
    anchor_B = torch.full_like(row_B, len(height_B)).scatter_reduce(0, first_B, row_B, "amin")
    return torch.where(anchor_B < len(height_B), anchor_B, -1)[first_B]
