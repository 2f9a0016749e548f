"""Diagnosis, before training or after its first batch, of settings that lead to a collapse.

A collapse is not a failure to optimise: with these settings the collapsed policy *is* the optimum,
or training drives it there. Each rule states the reason and the remedy.

Source: 2510.20817, propositions 4.1 to 4.4; the rules on standard deviations and on estimators are
ours, shown by `triptych.studies.tabular_targets`.
"""

# Shapes: B completions

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.diversify.mara import Augmentation, Mara
from triptych.objectives.diversify.policy_loss import Dap, PolicyLoss

Severity = Literal["note", "warning", "collapse"]
# At a tenth of it, 3,000 steps keep 1/3 bit of 2 bits: `triptych.studies.tabular_targets`.
_SLOW_BETA = 0.01
# Replies with so many tokens, or with shifts of so many nats, are worded and not only chosen.
_LONG_TOKENS = 8
_LONG_NATS = 10.0


@dataclass(frozen=True)
class Finding:
    """A consequence of the settings.

    Attributes:
        severity: `collapse`: the optimum, or the policy that training reaches, is collapsed.
            `warning`: something will not work as named. `note`: for information.
        reason: One or two sentences, with numbers where available.
        remedy: The settings to change.
    """

    severity: Severity
    reason: str
    remedy: str

    #: Whether it says that a training ends before the optimum, rather than what the optimum is.
    is_about_speed: bool = False

    def __str__(self) -> str:
        return f"{self.severity}: {self.reason} {self.remedy}"


def diagnose_settings(
    beta: float,
    loss: PolicyLoss,
    kl: KlPenalty | None,
    mara: Mara | None = None,
    *,
    num_samples: int | None = None,
) -> list[Finding]:
    """List the findings that follow from the settings alone.

    Args:
        beta: Strength of the KL.
        loss: The policy loss.
        kl: The KL penalty; None if there is none, or only that of the loss.
        mara: The augmentation; None for none.
        num_samples: Completions of a prompt; None if unknown.

    Raises:
        ValueError: on contradictions: a negative beta, two KLs, or a KL per token with MARA's
            algorithm 2.
    """
    if not beta >= 0:
        raise ValueError(
            f"beta is {beta}: a negative KL rewards leaving the reference, and no optimum exists. "
            "Set it to 0 (no KL) or above"
        )
    name = type(loss).__name__
    if loss.contains_kl and kl is not None:
        raise ValueError(
            f"{name} contains the KL already, and a KL penalty is set too: set the penalty to null"
        )
    if loss.contains_kl and beta == 0:
        raise ValueError(f"beta is 0, and {name} divides by it: set it above 0")
    if mara is not None and mara.algorithm == 2 and kl is not None and kl.per_token:
        raise ValueError(
            "MARA's algorithm 2 replaces log-probabilities of whole completions, and the KL is "
            "taken per token: set the KL's level to sequence, or MARA's algorithm to 1"
        )
    findings = []
    if beta == 0 or not (loss.contains_kl or kl is not None):
        findings.append(_no_kl(mara))
    elif kl is not None:
        findings += _of_estimator(kl, mara)
        if loss.divides_by_std and kl.place == "loss":
            findings.append(_std_beside_kl(beta, mara))
    if num_samples == 1:
        findings += _of_single_samples(loss, mara)
    sigma = loss.sigma if isinstance(loss, Dap) else None
    if mara is not None and sigma is not None and not math.isclose(sigma * beta, 1, rel_tol=1e-6):
        findings.append(
            Finding(
                "warning",
                f"sigma is {sigma:g} and 1 / beta {1 / beta:g}: MARA shifts rewards by beta, the "
                "loss weighs them by sigma, so good answers do not become equal.",
                "Set sigma to null.",
            )
        )
    if 0 < beta < _SLOW_BETA:
        findings.append(
            Finding(
                "warning",
                f"beta is {beta:g}: for rewards that range over about 1, gradient steps first give "
                "likelier answers more than their share, and the KL takes it back at a rate of "
                "beta only, with MARA too. A training of usual length ends before.",
                f"Set beta to {_SLOW_BETA:g} or above, or take many more steps; more samples a "
                "step do not help.",
                is_about_speed=True,
            )
        )
    if mara is not None and not mara.exact:
        findings.append(
            Finding(
                "note",
                "MARA is clipped or divided by length, so its theorem holds in part only: answers "
                "far rarer than the anchor under the reference stay rarer.",
                "Set clip to null and length_normalised to false for the exact augmentation.",
            )
        )
    return findings


def diagnose_samples(
    reward_B: Tensor,
    reference_log_prob_B: Tensor,
    group_B: Tensor,
    beta: float,
    mara: Mara | None = None,
    *,
    num_tokens_B: Tensor | None = None,
    good_reward: float | None = None,
    least_share: float = 0.01,
) -> list[Finding]:
    """List the findings that follow from a batch: the fate of its answers at the optimum.

    The optimum is that of the reverse KL.

    Args:
        reward_B: Rewards without KL and without augmentation; nan where scoring failed.
        reference_log_prob_B: Of whole completions under the reference, in nats.
        group_B: int64; completions of one prompt share a number.
        beta: Strength of the KL; at 0 only equal rewards are told, see `diagnose_settings`.
        mara: The augmentation, applied here; None for none.
        num_tokens_B: Tokens of each completion, where MARA is divided by length.
        good_reward: Least reward of an answer that should be kept. None: MARA's threshold; where
            nothing reaches it, or without MARA, a tenth of the batch's range below its best.
        least_share: A good answer counts as lost if its probability at the optimum is below this
            share of that of the most likely answer.

    Returns:
        At most one finding each for rewards that are all equal, lost answers of lower reward, lost
        answers of equal reward, a bonus of MARA as large as the rewards' range on long replies, and
        an anchor across prompts.
    """
    usable_B = reward_B.isfinite() & reference_log_prob_B.isfinite()
    reward_B, group_B = reward_B[usable_B].double(), group_B[usable_B]
    reference_B = reference_log_prob_B[usable_B].double()
    num_tokens_B = None if num_tokens_B is None else num_tokens_B[usable_B]
    if beta < 0 or not len(reward_B):
        return []
    augmented = None
    if mara is not None:
        augmented = mara.augment(reward_B, reference_B, group_B, beta, num_tokens_B=num_tokens_B)
    above_B = torch.zeros_like(reward_B, dtype=torch.bool)
    if augmented is not None:
        above_B = augmented.above_B
    findings = []
    are_equal = bool(reward_B.max() == reward_B.min())
    if are_equal and not above_B.any() and len(group_B.unique()) < len(group_B):
        findings.append(_equal_rewards(float(reward_B[0]), len(reward_B), mara))
    if beta == 0:
        return findings
    good_B = above_B
    if good_reward is not None or not above_B.any():
        if good_reward is None:
            good_reward = float(reward_B.max() - (reward_B.max() - reward_B.min()) / 10)
        good_B = reward_B >= good_reward
        if are_equal and good_reward == float(reward_B[0]):
            good_B = torch.zeros_like(good_B)  # nothing says whether they are good
    level_B = reference_B + reward_B / beta  # log of the optimum, up to a constant per group
    if augmented is not None:
        level_B = augmented.reference_log_prob_B + augmented.reward_B / beta
    findings += _lost_answers(
        reward_B, reference_B, level_B, group_B, good_B, beta, mara, least_share
    )
    if augmented is not None:
        findings += _large_bonus(reward_B, augmented, num_tokens_B, beta)
    if mara is not None and mara.scope != "group" and len(group_B.unique()) > 1:
        findings.append(
            Finding(
                "warning",
                f"MARA's scope is {mara.scope}, and the batch has several prompts: how probable an "
                "answer is to one prompt says nothing about an answer to another.",
                "Set scope to group; batch is for policies without prompts.",
            )
        )
    return findings


def _lost_answers(
    reward_B: Tensor,
    reference_B: Tensor,
    level_B: Tensor,
    group_B: Tensor,
    good_B: Tensor,
    beta: float,
    mara: Mara | None,
    least_share: float,
) -> Iterator[Finding]:
    """Yield what is lost at the optimum among good answers, of lower and of about equal reward."""
    most_nats = -math.log(least_share)
    lower, equal = _Loss(), _Loss()
    for group in group_B.unique():
        own_B = (group_B == group) & good_B
        if not own_B.any():
            continue
        best = int(level_B.masked_fill(~own_B, -math.inf).argmax())
        for row in own_B.nonzero().flatten().tolist():
            nats = float(level_B[best] - level_B[row])
            gap = float(reward_B[best] - reward_B[row])
            if nats <= most_nats:
                continue
            if gap > 0 and gap / beta > most_nats:
                lower = max(lower, _Loss(nats, gap))
            elif float(reference_B[best] - reference_B[row]) > most_nats:
                equal = max(equal, _Loss(nats, gap))
    least = float(reward_B[good_B].min()) if good_B.any() else 0.0
    if lower.nats:
        yield Finding(
            "collapse",
            f"A good answer whose reward is {lower.gap:.3g} below the best has odds of "
            f"{_odds(lower.nats)} to the likeliest at the optimum of beta = {beta:g}: rewards "
            "count by exp(difference / beta).",
            f"Set beta to {lower.gap / most_nats:.3g} or above, or use MARA with a threshold "
            "that this answer reaches.",
        )
    if equal.nats:
        if mara is None:
            remedy = "Use MARA."
        elif mara.exact:
            remedy = f"Lower MARA's threshold to {least:.3g} or below, which these answers reach."
        else:
            remedy = "Use MARA without a clip and without length_normalised."
        yield Finding(
            "collapse",
            "Answers of about equal reward keep the reference's odds at the optimum, whatever "
            f"beta is: here {_odds(equal.nats)} for the rarest of them.",
            remedy,
        )


def _equal_rewards(reward: float, count: int, mara: Mara | None) -> Finding:
    threshold = "" if mara is None else ", and none reached MARA's threshold"
    return Finding(
        "warning",
        f"All {count} completions got the reward {reward:g}{threshold}: rewards tell none from "
        "another, so that there is nothing to learn from them yet.",
        "Look at samples/ and at the reward. If all answers are wrong, start from a model that "
        "succeeds at times (examples in the prompt, supervised replies), raise num_samples, or "
        "give partial credit; if all are right, use MARA with a threshold that they reach, or "
        "harder prompts.",
    )


def _large_bonus(
    reward_B: Tensor, augmented: Augmentation, num_tokens_B: Tensor | None, beta: float
) -> Iterator[Finding]:
    """Yield that MARA pays for odd wording, where its bonus is as large as rewards differ."""
    moved_B = augmented.above_B & ~augmented.is_anchor
    spread = float(reward_B.max() - reward_B.min())
    if not moved_B.any() or spread == 0:
        return
    nats = float(augmented.shift_B[moved_B].median())
    # A short answer that is rare is another answer; a long reply that is rare is worded otherwise.
    if num_tokens_B is None:
        is_long, length = nats > _LONG_NATS, ""
    else:
        tokens = float(num_tokens_B[augmented.above_B].double().mean())
        is_long, length = tokens >= _LONG_TOKENS, f" of {tokens:.0f} tokens"
    if is_long and beta * nats > spread / 2:
        yield Finding(
            "warning",
            f"MARA adds {beta * nats:.2g} (beta times {nats:.2g} nats) to the median good answer, "
            f"and the rewards of the batch range over {spread:.2g}: for replies{length}, odd "
            "wording earns as much as a better answer.",
            f"Set mara.clip to {spread / 5 / beta:.2g} nats or below, lower beta, or let the "
            "reward judge the wording too (a reward model with mara.percentile).",
        )


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the highest severity among findings; None without findings."""
    order = get_args(Severity)
    return max((f.severity for f in findings), key=order.index, default=None)


@dataclass(frozen=True, order=True)
class _Loss:
    nats: float = 0.0
    gap: float = 0.0


def _of_single_samples(loss: PolicyLoss, mara: Mara | None) -> Iterator[Finding]:
    if loss.baseline_of_group:
        yield Finding(
            "warning",
            f"num_samples is 1, and {type(loss).__name__} compares a completion with the others of "
            "its prompt: there are none, so that every advantage is 0 and no reward is learned.",
            "Set num_samples to 2 or above, or take the loss Reinforce.",
        )
    elif mara is not None and mara.scope == "group":
        yield Finding(
            "warning",
            "num_samples is 1: each completion is its own anchor, so that MARA changes nothing.",
            "Set num_samples to 2 or above.",
        )


def _no_kl(mara: Mara | None) -> Finding:
    augmented = (
        " MARA's shift is beta times a log-ratio and vanishes with beta: the good answers get the "
        "anchor's reward and nothing makes them equally probable."
        if mara is not None
        else ""
    )
    return Finding(
        "collapse",
        "Without a KL every policy on the best answers is an optimum, whether on all or on one of "
        "them; which one comes out is up to noise, and noise ends on one." + augmented,
        "Set beta above 0 and a KL penalty.",
    )


def _of_estimator(kl: KlPenalty, mara: Mara | None) -> Iterator[Finding]:
    if kl.gradient == "none":
        yield Finding(
            "collapse",
            "k1 in the loss has an expected gradient of 0: it adds noise and regularises nothing.",
            "Put k1 in the reward, or use k2 or k3_straight_through in the loss.",
        )
    if kl.gradient == "neither":
        yield Finding(
            "warning",
            f"{kl.estimator} in the reward has the gradient of neither KL, so the optimum is not "
            "the closed form of either, and MARA's theorem does not hold.",
            "Use k1 (reverse) or forward.",
        )
    if kl.gradient == "forward" and mara is not None and mara.algorithm == 1:
        yield Finding(
            "warning",
            "MARA's algorithm 1 makes good answers equal under the reverse KL only; this KL's "
            f"gradient ({kl.estimator} in the {kl.place}) is the forward KL's, and the rarest good "
            "answer overtakes the others.",
            "Set algorithm to 2, which is exact for both, or use k1 in the reward.",
        )


def _std_beside_kl(beta: float, mara: Mara | None) -> Finding:
    if mara is not None and mara.algorithm == 1:
        return Finding(
            "collapse",
            "MARA's algorithm 1 tells good answers apart by beta times a log-ratio, to be balanced "
            "by the KL. The group's standard deviation blows that up to order 1 while the KL in "
            f"the loss stays at beta ({beta:g}): the rarest good answer takes everything.",
            "Put the KL in the reward, where both are divided alike, or do not divide by the "
            "standard deviation; algorithm 2 gives good answers one reward and is spared.",
        )
    return Finding(
        "warning",
        "Advantages are divided by their standard deviation and the KL in the loss is not: the "
        f"KL's strength is beta ({beta:g}) times that deviation, and falls as rewards become "
        "alike.",
        "Put the KL in the reward, or do not divide by the standard deviation.",
    )


def _odds(nats: float) -> str:
    return f"1 to {math.exp(nats):.2g}" if nats < 700 else f"1 to e^{nats:.0f}"
