"""Stability of a structure over seeds and over samples.

Latents are matched before their relevance is compared. Ours; the paper reports single structures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.objectives.commune.structure.matching import correlations, match_latents
from triptych.objectives.commune.structure.support import binarize

# Shapes: N samples, Z latents, K agents


@dataclass(frozen=True)
class Stability:
    """The agreement of several structures.

    Attributes:
        share_KZ: Share of structures where latent j is relevant to agent k. Near 0 or 1: settled.
        jaccard: Mean over pairs of structures of |both| / |either|; 1: all are equal.
        matched_correlation: Mean absolute correlation of matched latents; 1 for bootstraps, which
            share their latents.
    """

    share_KZ: Tensor
    jaccard: float
    matched_correlation: float

    @property
    def settled_share(self) -> float:
        """Share of (agent, latent) pairs where nine of ten structures agree."""
        return float(((self.share_KZ >= 0.9) | (self.share_KZ <= 0.1)).double().mean())


def stability_over_seeds(latents: Sequence[Tensor], relevant_KZ: Sequence[Tensor]) -> Stability:
    """Compare recoveries on the same samples, with latents matched to those of the first.

    Args:
        latents: Each recovery's latents (N, Z) of the same samples.
        relevant_KZ: Each recovery's relevance, bool (K, Z).

    Raises:
        ValueError: with fewer than two recoveries.
    """
    if len(latents) < 2 or len(latents) != len(relevant_KZ):
        raise ValueError(
            f"there are {len(latents)} sets of latents and {len(relevant_KZ)} of relevance: give "
            "both of two recoveries or more"
        )
    masks, correlation = [relevant_KZ[0]], []
    for other_NZ, mask_KZ in zip(latents[1:], relevant_KZ[1:], strict=True):
        similarity_ZZ = correlations(latents[0], other_NZ)
        order = match_latents(similarity_ZZ)
        masks.append(mask_KZ[:, order])
        correlation.append(similarity_ZZ[range(len(order)), order].abs().mean())
    return _stability(masks, float(torch.stack(correlation).mean()))


def stability_over_bootstraps(
    squares_NKZ: Tensor,
    threshold: float,
    *,
    relative: bool,
    num_bootstraps: int = 100,
    generator: torch.Generator | None = None,
) -> Stability:
    """Resample the samples of the Jacobian.

    Args:
        squares_NKZ: From `sample_agent_squares`.
        threshold: Threshold of `binarize`, for the root of the mean.
        relative: Option of `binarize`.
        num_bootstraps: Number of resamplings, at least 2.
        generator: Source of randomness.

    Raises:
        ValueError: with fewer than two bootstraps.
    """
    if num_bootstraps < 2:
        raise ValueError(f"num_bootstraps is {num_bootstraps}: set it to at least 2")
    num_samples = len(squares_NKZ)
    masks = []
    for _ in range(num_bootstraps):
        drawn_N = torch.randint(
            num_samples, (num_samples,), generator=generator, device=squares_NKZ.device
        )
        magnitude_KZ = squares_NKZ[drawn_N].mean(0).sqrt()
        masks.append(binarize(magnitude_KZ, threshold, relative=relative).mask)
    return _stability(masks, 1.0)


def _stability(masks: Sequence[Tensor], matched_correlation: float) -> Stability:
    stacked = torch.stack([mask.double() for mask in masks])
    flat = stacked.flatten(1)
    both, sizes = flat @ flat.mT, flat.sum(1)
    either = sizes[:, None] + sizes - both
    jaccard = torch.where(either > 0, both / either.clamp_min(1), 1.0)
    one, other = torch.triu_indices(len(masks), len(masks), 1)
    return Stability(stacked.mean(0), float(jaccard[one, other].mean()), matched_correlation)
