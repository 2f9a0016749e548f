"""Optima of KL-regularised training: closed forms for few answers.

    reverse   max_pi E_pi[R] - beta KL(pi || pi_ref)   ->  pi_ref exp(R / beta) / Z
    forward   max_pi E_pi[R] - beta KL(pi_ref || pi)   ->  beta pi_ref / (Lambda - R)

with Lambda > max R such that the second sums to 1. Under MARA the answers above the threshold get
the reward (algorithm 1), or the reward and reference log-probability (algorithm 2), of the anchor:

- reverse, either algorithm: all answers above the threshold become equally probable (the theorem).
- forward, algorithm 1: they do not. Rare answers overtake: with nearly all reference mass on two
  right answers of 15 to 1 and a small beta, .335 to .665.
- forward, algorithm 2: they do, exactly: beta pi_ref(z) / (Lambda - R(z)) is the same for all.
- forward, `forward_mara_reward`: an augmented reward that, unlike algorithm 1's, leads to the same
  optimum as algorithm 2. It needs to know all answers.

Sources: 2510.20817, remarks 3.1 and 3.3, propositions 4.1 to 4.4, remark B.3. The two statements on
equal probabilities under the forward KL are our derivation.
"""

# Shapes: K answers, all there are to a prompt

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.objectives.diversify.kl import Divergence
from triptych.objectives.diversify.mara import Mara

_STEPS = 200  # halvings of the bracket; float64 is exhausted after about 60


def target(
    divergence: Divergence,
    reward_K: Tensor,
    reference_log_prob_K: Tensor,
    beta: float,
    mara: Mara | None = None,
) -> Tensor:
    """Compute log-probabilities at the optimum: (K,), float64.

    Args:
        divergence: `reverse` is KL(pi || pi_ref), `forward` KL(pi_ref || pi).
        reward_K: Reward of each answer, finite.
        reference_log_prob_K: Normalised log-probabilities under the reference; -inf off its
            support.
        beta: Strength of the KL, above 0.
        mara: Augments the rewards first, with all K answers as one batch. None: no augmentation.

    Raises:
        ValueError: if beta is not above 0 (there is no unique optimum), or as `forward_kl_target`.
    """
    reward_K, reference_K = reward_K.double(), reference_log_prob_K.double()
    if mara is not None:
        one_group_K = torch.zeros(len(reward_K), dtype=torch.int64)
        augmented = mara.augment(reward_K, reference_K, one_group_K, beta)
        reward_K, reference_K = augmented.reward_B, augmented.reference_log_prob_B
    if divergence == "reverse":
        return reverse_kl_target(reward_K, reference_K, beta)
    return forward_kl_target(reward_K, reference_K, beta).log_prob_K


def reverse_kl_target(reward_K: Tensor, reference_log_prob_K: Tensor, beta: float) -> Tensor:
    """Normalise log pi_ref + R / beta: (K,), float64. Remark 3.1.

    `reference_log_prob_K` need not be normalised (algorithm 2 leaves it so).

    >>> two = torch.tensor([0.75, 0.25]).log()
    >>> reverse_kl_target(torch.tensor([0.0, 1.0]), two, beta=1.0).exp()  # odds 3 to e
    tensor([0.5246, 0.4754], dtype=torch.float64)
    """
    _check_beta(beta)
    return (reference_log_prob_K.double() + reward_K.double() / beta).log_softmax(-1)


@dataclass(frozen=True)
class ForwardTarget:
    """Optimum under the forward KL.

    Attributes:
        log_prob_K: Its log-probabilities.
        multiplier: Lambda, the constant that makes them sum to 1; above every reward.
    """

    log_prob_K: Tensor
    multiplier: float


def forward_kl_target(reward_K: Tensor, reference_log_prob_K: Tensor, beta: float) -> ForwardTarget:
    """Find beta pi_ref / (Lambda - R) by bisection for Lambda. Remark 3.3.

    `reference_log_prob_K` need not be normalised (algorithm 2 leaves it so).

    Raises:
        ValueError: if beta is not above 0; or if an answer outside of the reference's support
            (-inf) has a reward of at least Lambda. The forward KL ignores that answer, so mass
            leaks to it and no Lambda makes the closed form sum to 1 (the paper's appendix B.3).
    """
    _check_beta(beta)
    reward_K, reference_K = reward_K.double(), reference_log_prob_K.double()
    supported_K = reference_K > -torch.inf
    if not supported_K.any():
        raise ValueError("the reference gives no answer any probability: it has no support")
    weight_K = beta * reference_K.exp()
    # u = Lambda - max R over the support. It is at least the weight of the likeliest best answer,
    # which then has all mass, and at most the sum of all weights, if all rewards are the best.
    best = reward_K[supported_K].max()
    gap_K = torch.where(supported_K, best - reward_K, torch.inf)
    low = weight_K[supported_K & (gap_K == 0)].sum()
    high = weight_K.sum()
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if float((weight_K / (gap_K + middle)).sum()) > 1:
            low = middle
        else:
            high = middle
    u = (low + high) / 2
    multiplier = float(best + u)
    if (~supported_K).any() and float(reward_K[~supported_K].max()) > multiplier:
        answer = int(reward_K.masked_fill(supported_K, -torch.inf).argmax())
        raise ValueError(
            f"answer {answer} has reward {float(reward_K[answer]):g} and probability 0 under the "
            f"reference: above Lambda = {multiplier:g} the forward KL lets mass leak to it, and "
            "there is no closed form. Use the reverse KL, or a reference that gives it at times"
        )
    log_K = weight_K.log() - (gap_K + u).log()
    return ForwardTarget(log_K.log_softmax(-1), multiplier)


def forward_mara_reward(
    reward_K: Tensor, reference_log_prob_K: Tensor, beta: float, threshold: float
) -> Tensor:
    """Compute rewards with an equal optimum above the threshold under the *forward* KL: (K,).

    For an answer above the threshold with anchor z

        R'(y) = R(z) + c (1 - pi_ref(y) / pi_ref(z)),    c = Lambda - R(z)

    so that beta pi_ref(y) / (Lambda - R'(y)) = beta pi_ref(z) / c for each of them. c makes the
    probabilities sum to 1, which needs all answers, so this only works for tables. Float64. Ours:
    the paper's algorithm 1 favours the rare answer under the forward KL. With samples use algorithm
    2, which has the same optimum.
    """
    reward_K, reference_K = reward_K.double(), reference_log_prob_K.double()
    one_group_K = torch.zeros(len(reward_K), dtype=torch.int64)
    augmented = Mara(threshold=threshold, algorithm=2).augment(
        reward_K, reference_K, one_group_K, beta
    )
    if not augmented.above_B.any():
        return reward_K
    z_K = augmented.anchor_B
    multiplier = forward_kl_target(
        augmented.reward_B, augmented.reference_log_prob_B, beta
    ).multiplier
    missing_K = 1 - (reference_K - reference_K[z_K]).exp()
    level_K = reward_K[z_K]
    return torch.where(augmented.above_B, level_K + (multiplier - level_K) * missing_K, reward_K)


def entropy_bits(log_prob_K: Tensor) -> Tensor:
    """Compute the entropy of (..., K) log-probabilities in bits: (...,); probability 0 adds 0."""
    plogp_K = torch.where(log_prob_K > -torch.inf, log_prob_K.exp() * log_prob_K, 0.0)
    return -plogp_K.sum(-1) / torch.log(torch.tensor(2.0, dtype=log_prob_K.dtype))


def switch_beta(
    reward: tuple[float, float], reference_log_prob: tuple[float, float]
) -> float | None:
    """Compute the beta at which two answers are equally probable at the reverse KL's optimum.

    beta* = (R2 - R1) / (log pi_ref(1) - log pi_ref(2)). Proposition 4.4. Below it the better answer
    is more likely, above it the reference's favourite.

    Returns:
        None without such a beta above 0: one answer is at least as good and at least as likely as
        the other, or both are equal.

    >>> switch_beta((0.75, 1.0), (-4.05, -5.95))  # .25 / 1.9
    0.1315...
    """
    gained, given = reward[1] - reward[0], reference_log_prob[0] - reference_log_prob[1]
    return gained / given if gained * given > 0 else None


def log_odds(
    reward: tuple[float, float], reference_log_prob: tuple[float, float], beta: float
) -> float:
    """Compute log G(1) / G(2) at the reverse KL's optimum, in nats. Proposition 4.1."""
    _check_beta(beta)
    return reference_log_prob[0] - reference_log_prob[1] + (reward[0] - reward[1]) / beta


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(
            f"beta is {beta}: without a KL every policy on the best answers is an optimum, and "
            "below 0 there is none. Set beta above 0"
        )
