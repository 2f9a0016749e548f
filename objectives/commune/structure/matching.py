"""Matching of latents between recoveries, since latents have no order and no sign."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Shapes: N samples, Z latents, Y latents of the other recovery


def correlations(latents_NZ: Tensor, others_NY: Tensor) -> Tensor:
    """Compute Pearson correlations of two sets of latents on the same samples: (Z, Y), float64.

    A constant latent has correlation 0 with all others.

    Raises:
        ValueError: if the numbers of samples differ or are below 2.
    """
    if len(latents_NZ) != len(others_NY) or len(latents_NZ) < 2:
        raise ValueError(
            f"there are {len(latents_NZ)} and {len(others_NY)} samples: give the same two or more"
        )
    sides = []
    for values in (latents_NZ.double(), others_NY.double()):
        centred = values - values.mean(0)
        norm = centred.norm(dim=0)
        moves = norm > 1e-12 * (1 + values.abs().amax(0)) * len(values) ** 0.5
        sides.append(torch.where(moves, centred / norm.clamp_min(1e-300), 0.0))
    return sides[0].mT @ sides[1]


def match_latents(similarity_ZY: Tensor) -> list[int]:
    """Pair latents one to one so that the sum of absolute similarities is largest.

    Args:
        similarity_ZY: Such as `correlations`; as many rows as columns, or fewer.

    Returns:
        For each row its column (Hungarian algorithm).

    Raises:
        ValueError: if there are more rows than columns, or an entry is not finite.

    >>> match_latents(torch.tensor([[0.1, -0.9], [0.8, 0.85]]))
    [1, 0]
    """
    num_rows, num_columns = similarity_ZY.shape
    if num_rows > num_columns:
        raise ValueError(
            f"{num_rows} latents cannot be matched one to one with {num_columns}: swap the two"
        )
    if not similarity_ZY.isfinite().all():
        raise ValueError("similarities hold nan or infinity: there is nothing to match by")
    costs = -similarity_ZY.abs().detach().cpu().double().numpy()
    matched: list[int] = linear_sum_assignment(costs)[1].tolist()
    return matched
