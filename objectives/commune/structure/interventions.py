"""Interventions on latents, do(z_j = v): their effects, compared with the structure.

The structure is derived from derivatives at the data. An intervention is a longer step, possibly
away from the data: a private latent of another agent must not change this agent's decoded state
there either.

Ours; the paper has no interventions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: B samples, V values, Z latents, K agents, S = V * B

Respond = Callable[[Tensor], Sequence[Tensor]]
Distance = Callable[[Tensor, Tensor], Tensor]


def rms_distance(before: Tensor, after: Tensor) -> Tensor:
    """Compute the root mean square of the change."""
    return (after - before).square().mean().sqrt()


def changed_share(before: Tensor, after: Tensor) -> Tensor:
    """Compute the share of samples with any change.

    >>> changed_share(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]]))
    tensor(0.5000)
    """
    return (before != after).flatten(1).any(1).float().mean()


@torch.no_grad()
def intervention_effects(
    respond: Respond,
    latents_BZ: Tensor,
    values: Sequence[float],
    distance: Distance = rms_distance,
) -> Tensor:
    """Measure the effect on each agent of setting each latent to some values.

    Args:
        respond: Maps latents (S, Z), a copy of `latents_BZ` for every value in turn, to one tensor
            per agent with S rows.
        latents_BZ: The latents without intervention.
        values: v, the same for all samples. Latents have mean 0 and variance 1.
        distance: Compares an agent's output without and with the intervention.

    Returns:
        (K, Z).

    Raises:
        ValueError: without values or samples.
    """
    if not len(values) or not len(latents_BZ):
        raise ValueError("an intervention needs a value and a sample: give at least one of each")
    alone_SZ = latents_BZ.repeat(len(values), 1)
    value_S = (
        torch.tensor(list(values), dtype=torch.float32)
        .to(latents_BZ)
        .repeat_interleave(len(latents_BZ))
    )
    before = [part.clone() for part in respond(alone_SZ)]
    columns = []
    for latent in range(latents_BZ.shape[1]):
        set_SZ = alone_SZ.clone()
        set_SZ[:, latent] = value_S
        after = respond(set_SZ)
        moved = [distance(one, other) for one, other in zip(before, after, strict=True)]
        columns.append(torch.stack(moved))
    return torch.stack(columns, 1)


@dataclass(frozen=True)
class EffectCheck:
    """Effects of pairs that the structure connects, and of pairs that it does not.

    Attributes:
        mean_expected: Mean effect of pairs (agent, latent) that should have one; nan: no such pair.
        mean_unexpected: Mean of those that should have none; nan: no such pair.
        smallest_expected: inf where no pair should have one.
        largest_unexpected: 0 where every pair should have one.
        ranking: Share of (expected, unexpected) couples where the expected effect is larger; ties
            count half. 1: the structure separates them, .5: it has no information. nan if one side
            is empty.
    """

    mean_expected: float
    mean_unexpected: float
    smallest_expected: float
    largest_unexpected: float
    ranking: float


def check_effects(effect_KZ: Tensor, expected_KZ: Tensor) -> EffectCheck:
    """Compare effects with a structure.

    Args:
        effect_KZ: From `intervention_effects`.
        expected_KZ: bool; True where latent j should move agent k.

    >>> check = check_effects(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[True, False, False]]))
    >>> check.mean_unexpected, check.largest_unexpected, check.ranking
    (1.5, 2.0, 1.0)
    """
    with_P, without_Q = effect_KZ[expected_KZ].double(), effect_KZ[~expected_KZ].double()
    if not len(with_P) or not len(without_Q):
        ranking = math.nan
    else:
        difference_PQ = with_P[:, None] - without_Q
        ranking = float(((difference_PQ > 0) + 0.5 * (difference_PQ == 0)).mean())
    return EffectCheck(
        float(with_P.mean()),
        float(without_Q.mean()),
        float(with_P.min()) if len(with_P) else math.inf,
        float(without_Q.max()) if len(without_Q) else 0.0,
        ranking,
    )
