"""Evidence about sharing that the states give themselves, before any codec is trained.

A structure that is read off a decoder can contradict the states: latents that are "shared by all"
between agents whose states tell nothing of each other, or more latents than the states have
directions. Both are computed here from the states alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: N samples, n part of them, H state dimensions of all agents, h those of some agents

RELATIVE_TOLERANCE = 1e-3
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class StateEvidence:
    """What the states tell of the structure.

    Attributes:
        num_samples: Number of samples that were looked at.
        rank: Directions in which the joint states vary, with a standard deviation above a share of
            the largest.
        entropy_rank: exp of the entropy of the variance over directions (Roy & Vetterli, 2007): how
            many directions matter. At most `rank`.
        agent_ranks: `rank` of each agent's own states.
        predicted_shares: For each agent the share of its states' variance that a linear map
            predicts from the other agents' states, on held-out samples; at most 0: nothing.
    """

    num_samples: int
    rank: int
    entropy_rank: float
    agent_ranks: list[int]
    predicted_shares: list[float]


@torch.no_grad()
def state_evidence(scores_NH: Tensor, state_sizes: Sequence[int]) -> StateEvidence:
    """Compute ranks and mutual predictability of standardized states.

    Args:
        scores_NH: Standardized states, at least 4 samples; some hundreds suffice.
        state_sizes: Width of each agent's state.

    Raises:
        ValueError: with fewer samples.
    """
    if len(scores_NH) < 4:
        raise ValueError(f"there are {len(scores_NH)} samples of the states: give at least 4")
    scores_NH = scores_NH.double()
    parts = list(scores_NH.split(list(state_sizes), 1))
    spread = _spread(scores_NH)
    shares = spread.square() / spread.square().sum().clamp_min(1e-300)
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    predicted = [0.0] * len(parts)
    if len(parts) > 1:
        predicted = [
            predicted_share(torch.cat([other for j, other in enumerate(parts) if j != k], 1), part)
            for k, part in enumerate(parts)
        ]
    return StateEvidence(
        len(scores_NH),
        _rank(spread),
        float(entropy.exp()),
        [_rank(_spread(part)) for part in parts],
        predicted,
    )


def predicted_share(seen_Nh: Tensor, target_Nh: Tensor) -> float:
    """Return the share of a target's variance that a ridge regression predicts out of sample.

    Each half of the samples is predicted by a map from the other half; the best of a few ridges
    counts. Samples alternate between the halves.

    Args:
        seen_Nh: What is seen, float64.
        target_Nh: What is predicted, float64.
    """
    halves = (slice(0, None, 2), slice(1, None, 2))
    errors = torch.zeros(len(RIDGES), dtype=torch.float64)
    total = 0.0
    for fit, held_out in (halves, halves[::-1]):
        seen_mean, target_mean = seen_Nh[fit].mean(0), target_Nh[fit].mean(0)
        seen_nh, target_nh = seen_Nh[fit] - seen_mean, target_Nh[fit] - target_mean
        wanted = target_Nh[held_out] - target_mean
        gram_nn = seen_nh @ seen_nh.mT
        values, vectors = torch.linalg.eigh(gram_nn)
        scale = values.mean().clamp_min(1e-300)
        across = (seen_Nh[held_out] - seen_mean) @ seen_nh.mT @ vectors
        turned = vectors.mT @ target_nh
        for place, ridge in enumerate(RIDGES):
            guess = across @ (turned / (values + ridge * scale)[:, None])
            errors[place] += float((wanted - guess).square().sum())
        total += float(wanted.square().sum())
    return 1 - float(errors.min()) / total if total else 0.0


def _spread(scores_NH: Tensor) -> Tensor:
    """Return the singular values of centred states, descending."""
    centred_NH = scores_NH - scores_NH.mean(0)
    small, large = sorted(centred_NH.shape)
    if large > 4 * small:  # the eigenvalues of the smaller Gram matrix are cheaper
        gram = (
            centred_NH @ centred_NH.mT if len(centred_NH) == small else centred_NH.mT @ centred_NH
        )
        spread: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
    else:
        spread = torch.linalg.svdvals(centred_NH)
    return spread


def _rank(spread: Tensor) -> int:
    return int((spread > RELATIVE_TOLERANCE * spread.max()).sum()) if len(spread) else 0
