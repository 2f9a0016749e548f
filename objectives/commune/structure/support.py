"""The dependence of state dimensions on latents, by the decoder's Jacobian.

Paper: ThoughtComm, 2510.20733: B_ij = 1 iff J(z)_ij is not 0 for some z. A trained decoder has no
exact zeros, so a statistic over samples is compared with a threshold; the paper names neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.commune.jacobian import jacobian

# Shapes: N samples, b samples of one turn, H state dimensions of all agents, Z latents, K agents

Statistic = Literal["max", "mean", "rms"]
Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Support:
    """A binarised matrix of magnitudes.

    Attributes:
        mask: bool; True where the row depends on the latent.
        threshold: Absolute; magnitudes above it were kept.
        smallest_kept: inf where nothing was kept.
        largest_dropped: 0 where nothing was dropped.
    """

    mask: Tensor
    threshold: float
    smallest_kept: float
    largest_dropped: float

    @property
    def separates(self) -> bool:
        """Whether something lies on either side of the threshold."""
        return bool(self.mask.any()) and not bool(self.mask.all())

    @property
    def gap(self) -> float:
        """Smallest kept over largest dropped; near 1 the support depends on the threshold.

        1 where nothing was dropped, or nothing kept: there is no gap. inf: what was dropped is 0.
        """
        if not self.separates:
            return 1.0
        return (
            float("inf") if self.largest_dropped == 0 else self.smallest_kept / self.largest_dropped
        )


@torch.no_grad()
def element_magnitude(
    decoder: Decoder,
    latents_NZ: Tensor,
    statistic: Statistic,
    batch_size: int = 64,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute a statistic over samples of |J_ij|: (H, Z).

    Args:
        decoder: Any decoder that treats samples independently.
        latents_NZ: Samples, at least one.
        statistic: `max` is closest to the definition, but follows outliers. `mean`, and `rms` (root
            of the mean square), take the frequency into account as well.
        batch_size: Samples at a time.
        chunk_size: Columns at a time; null: all.

    Raises:
        ValueError: without samples, or on an unknown statistic.
    """
    _check_samples(latents_NZ, statistic)
    total: Tensor | None = None
    for latents_bZ in latents_NZ.split(batch_size):
        part_bHZ = jacobian(decoder, latents_bZ, chunk_size).abs()
        if statistic == "max":
            part_HZ = part_bHZ.amax(0)
            total = part_HZ if total is None else torch.maximum(total, part_HZ)
        else:
            part_HZ = (part_bHZ.square() if statistic == "rms" else part_bHZ).sum(0)
            total = part_HZ if total is None else total + part_HZ
    assert total is not None
    if statistic == "max":
        return total
    mean_HZ = total / len(latents_NZ)
    return mean_HZ.sqrt() if statistic == "rms" else mean_HZ


def agent_magnitude(
    magnitude_HZ: Tensor, state_sizes: Sequence[int], statistic: Statistic
) -> Tensor:
    """Compute the same statistic over the rows of each agent: (K, Z)."""
    parts = magnitude_HZ.split(list(state_sizes))
    if statistic == "max":
        return torch.stack([part.amax(0) for part in parts])
    if statistic == "rms":
        return torch.stack([part.square().mean(0).sqrt() for part in parts])
    return torch.stack([part.mean(0) for part in parts])


@torch.no_grad()
def sample_agent_squares(
    decoder: Decoder,
    latents_NZ: Tensor,
    state_sizes: Sequence[int],
    batch_size: int = 64,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute the mean square of each agent's part of each column per sample: (N, K, Z).

    Bootstraps draw from it; the root of its mean over samples is `agent_magnitude` by `rms`.
    """
    _check_samples(latents_NZ, "rms")
    turns = []
    for latents_bZ in latents_NZ.split(batch_size):
        squares_bHZ = jacobian(decoder, latents_bZ, chunk_size).square()
        parts = squares_bHZ.split(list(state_sizes), 1)
        turns.append(torch.stack([part.mean(1) for part in parts], 1))
    return torch.cat(turns)


def binarize(magnitude: Tensor, threshold: float, *, relative: bool) -> Support:
    """Keep magnitudes above a threshold.

    Args:
        magnitude: From `element_magnitude` or `agent_magnitude`.
        threshold: Not negative.
        relative: True: a share of the largest magnitude of all. False: absolute.

    Raises:
        ValueError: on a negative threshold, or a relative one of 1 or more.

    >>> support = binarize(torch.tensor([[1.0, 0.02], [0.5, 0.1]]), 0.1, relative=False)
    >>> support.mask.tolist(), round(support.gap, 3)
    ([[True, False], [True, False]], 5.0)
    """
    if threshold < 0 or (relative and threshold >= 1):
        bounds = "at least 0 and below 1" if relative else "at least 0"
        raise ValueError(f"threshold is {threshold}: set it to {bounds}")
    absolute = threshold * float(magnitude.max()) if relative else threshold
    mask = magnitude > absolute
    kept, dropped = magnitude[mask], magnitude[~mask]
    return Support(
        mask,
        absolute,
        float(kept.min()) if len(kept) else float("inf"),
        float(dropped.max()) if len(dropped) else 0.0,
    )


def widest_gap(magnitude: Tensor, least: float = 0.02, most: float = 0.5) -> float:
    """Find the relative threshold in the middle (of logarithms) of the widest magnitude gap.

    Args:
        magnitude: As for `binarize`.
        least: Lower limit of the threshold, as a share of the largest magnitude.
        most: Upper limit of the threshold.

    Returns:
        A threshold for `binarize(..., relative=True)`.

    >>> round(widest_gap(torch.tensor([1.0, 0.9, 0.4, 0.04, 0.01])), 4)  # between .4 and .04
    0.1265
    """
    shares = magnitude.flatten().double() / float(magnitude.max())
    inside = shares[(shares > least) & (shares < most)]
    edges = (
        torch.cat([torch.tensor([least, most], dtype=torch.float64).to(inside), inside])
        .sort()
        .values.log()
    )
    widest = int(edges.diff().argmax())
    return float(((edges[widest] + edges[widest + 1]) / 2).exp())


def _check_samples(latents_NZ: Tensor, statistic: str) -> None:
    if not len(latents_NZ):
        raise ValueError("there are no latents to look at the Jacobian of: give at least one")
    if statistic not in ("max", "mean", "rms"):
        raise ValueError(f"statistic is {statistic!r}: choose max, mean or rms")
