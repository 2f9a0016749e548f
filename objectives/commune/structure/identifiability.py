"""Identifiability: which latents the theory separates, and whether its assumptions hold.

Let two decoders fit the data, both with the fewest nonzero elements of the Jacobian, and let T be
the Jacobian of the true latents by the recovered ones. From J_recovered = J_true T follows: T_jk
may differ from 0 only if every row that depends on j depends on k too,

    allowed(j) = intersection of supp(B_i) over the rows i with B_ij = 1.

So latent j is recovered up to a function of itself if allowed(j) = {j}, and otherwise mixed with
the rest of allowed(j). Latents with equal columns are recovered only as a block. The relation is
transitive, so the inverse map has the same pattern.

Paper: ThoughtComm, 2510.20733, theorems 1 to 3 (theorem 3 gives B up to a permutation). Deviation:
the paper states shared and private sets; `allowed` follows from its argument for each latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: N samples, H state dimensions of all agents, Z latents


@dataclass(frozen=True)
class LatentBlock:
    """Latents that no data can separate.

    Attributes:
        members: Latents with the same rows.
        may_contain: Other latents that may leak into the recovered members; never the reverse.
    """

    members: list[int]
    may_contain: list[int]

    @property
    def is_identified(self) -> bool:
        """Whether this is a single latent, recovered up to a function of itself."""
        return len(self.members) == 1 and not self.may_contain


@dataclass(frozen=True)
class IdentifiableGroups:
    """The partition of latents by a support.

    Attributes:
        blocks: Blocks of live latents, by their smallest member.
        dead: Latents without rows, about which the theory makes no statement.
    """

    blocks: list[LatentBlock]
    dead: list[int]

    @property
    def identified(self) -> list[int]:
        """Latents that are recovered individually."""
        return [block.members[0] for block in self.blocks if block.is_identified]


def allowed_latents(support_HZ: Tensor) -> Tensor:
    """Compute allowed(j) as row j of a bool (Z, Z); all True for a latent without rows.

    >>> allowed_latents(torch.tensor([[True, True], [False, True]])).int().tolist()
    [[1, 1], [0, 1]]
    """
    depends_HZ = support_HZ.double()
    # k is allowed for j if no row depends on j but not on k.
    against_ZZ = depends_HZ.mT @ (1 - depends_HZ)
    return against_ZZ == 0


def identifiable_groups(support_HZ: Tensor) -> IdentifiableGroups:
    """Split latents into blocks that the support separates.

    >>> groups = identifiable_groups(torch.tensor([[True, True, False], [False, True, True]]))
    >>> groups.identified  # the shared one; private ones may contain it
    [1]
    >>> groups.blocks[0]
    LatentBlock(members=[0], may_contain=[1])
    """
    allowed_ZZ = allowed_latents(support_HZ)
    is_live_Z = support_HZ.any(0)
    blocks, seen = [], set(_where(~is_live_Z))
    dead = sorted(seen)
    for latent in range(support_HZ.shape[1]):
        if latent in seen:
            continue
        both_Z = allowed_ZZ[latent] & allowed_ZZ[:, latent] & is_live_Z
        members = _where(both_Z)
        blocks.append(LatentBlock(members, _where(allowed_ZZ[latent] & ~both_Z)))
        seen.update(members)
    return IdentifiableGroups(blocks, dead)


@dataclass(frozen=True)
class RankCheck:
    """Quantities that show whether Jacobian samples meet the theorems' assumptions.

    Attributes:
        smallest_singular_N: Smallest singular value of each sample's Jacobian; 0: the decoder is
            not one to one there.
        largest_singular_N: Largest singular value, for scale.
        row_ranks_H: int64; rank of the samples of each row.
        row_sizes_H: int64; |supp(B_i)|, which by the theorems must equal the rank.
    """

    smallest_singular_N: Tensor
    largest_singular_N: Tensor
    row_ranks_H: Tensor
    row_sizes_H: Tensor

    @property
    def conditioning(self) -> float:
        """Smallest over largest singular value, of the worst sample."""
        return float((self.smallest_singular_N / self.largest_singular_N).min())

    @property
    def spanning_share(self) -> float:
        """Share of rows with samples that span their support."""
        return float((self.row_ranks_H >= self.row_sizes_H).double().mean())


def check_ranks(
    jacobian_NHZ: Tensor,
    support_HZ: Tensor,
    relative_tolerance: float = 1e-3,
    values_of: Tensor | None = None,
) -> RankCheck:
    """Compute singular values of samples, and ranks of rows over samples within their support.

    A linear decoder has the same Jacobian everywhere, hence rank 1 in every row. The theorems'
    assumption therefore fails for it wherever a row has more than one latent.

    Args:
        jacobian_NHZ: Samples.
        support_HZ: From `binarize`.
        relative_tolerance: Singular values below this share of a row's largest count as 0.
        values_of: Whole Jacobians for the singular values, where `jacobian_NHZ` holds only some
            rows; None: `jacobian_NHZ` itself.

    Raises:
        ValueError: if shapes differ.
    """
    if jacobian_NHZ.shape[1:] != support_HZ.shape:
        raise ValueError(
            f"Jacobians are {tuple(jacobian_NHZ.shape[1:])} and the support is "
            f"{tuple(support_HZ.shape)}: give those of the same decoder"
        )
    whole_NHZ = jacobian_NHZ if values_of is None else values_of
    values = _singular_values(whole_NHZ)
    # With fewer outputs than latents the smallest singular value is 0.
    too_few = whole_NHZ.shape[1] < whole_NHZ.shape[2]
    rows_HNZ = (jacobian_NHZ * support_HZ).transpose(0, 1)
    row_values = torch.linalg.svdvals(rows_HNZ)
    cut = relative_tolerance * row_values[:, :1].clamp_min(torch.finfo(row_values.dtype).tiny)
    return RankCheck(
        values[:, -1] * (0.0 if too_few else 1.0),
        values[:, 0],
        (row_values > cut).sum(1),
        support_HZ.sum(1),
    )


@torch.no_grad()
def block_ranks(
    jacobian_NHZ: Tensor, state_sizes: Sequence[int], relative_tolerance: float = 1e-3
) -> tuple[list[int], int]:
    """Compute the ranks of each agent's block of the Jacobian, and of the whole; medians.

    The sum of the blocks' ranks minus the rank of the whole counts the directions that agents
    share, in any basis of the latents. It is 0 where every direction is private.

    Args:
        jacobian_NHZ: Samples.
        state_sizes: Rows of each agent.
        relative_tolerance: Singular values below this share of the largest of all count as 0.
    """
    parts = [*jacobian_NHZ.split(list(state_sizes), 1), jacobian_NHZ]
    values = [_singular_values(part) for part in parts]
    cut_N1 = relative_tolerance * values[-1].amax(1, keepdim=True)
    ranks = [int((value > cut_N1).sum(1).median()) for value in values]
    return ranks[:-1], ranks[-1]


def _singular_values(jacobian_NHZ: Tensor) -> Tensor:
    """Return singular values, descending, from the smaller Gram matrix in float64."""
    values = []
    for jacobian_HZ in jacobian_NHZ.double():
        is_tall = jacobian_HZ.shape[0] >= jacobian_HZ.shape[1]
        gram = jacobian_HZ.mT @ jacobian_HZ if is_tall else jacobian_HZ @ jacobian_HZ.mT
        values.append(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0))
    return torch.stack(values)


def _where(mask_Z: Tensor) -> list[int]:
    return mask_Z.nonzero().flatten().tolist()
