"""#Circles: the number of molecules of a set that are farther than a threshold from each other.

The measure of Xie et al. (2023): the largest subset with all pairwise Tanimoto distances above t.
Finding the largest is NP-hard. Reported is the size of the subset that an algorithm finds, which
depends on the algorithm, the order, the bits and t. All are arguments here:

- `leader`: each molecule, in order, is taken unless it is within t of one taken before (sphere
  exclusion, as RDKit's LeaderPicker).
- `maxmin`: the molecule farthest from those taken is next, from the first one on, until it is
  within t (RDKit's MaxMinPicker). Finds about a tenth more than `leader`, in more time.
- `chunked`: the authors' program: `leader` within each of 64 chunks, then of 32, then of 16, with
  the molecules taken shuffled between the rounds, then once over all that remain. Theirs shuffles
  without a seed; ours with one.

#Circles has t = 0.75 and 1024 bits. "Diverse hits" (Renz et al. 2024) is the same with t = 0.65 and
2048 bits, of hits only. In all of these programs a distance equal to t is within t.
"""

# Shapes: N molecules, L of them left, K bits, W words of a packed fingerprint, C common bits,
# S sums of two molecules' bits

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.fingerprints import (
    FingerprintMetric,
    count_bits,
    morgan_fingerprints,
)
from triptych.metrics.diversify.molecules.tanimoto import TILE, Bits, distances, unpacked

Algorithm = Literal["leader", "maxmin", "chunked"]
NUM_CHUNKS = (64, 32, 16)
_CENTRES_BETWEEN_LOOKS = 16
_SMALL = 256


def leader(packed_NW: Tensor, threshold: float, include_equal: bool = False) -> list[int]:
    """Take each molecule, in order, that is farther than the threshold from all taken before.

    Args:
        packed_NW: Fingerprints, in the order of selection.
        threshold: t, a Tanimoto distance.
        include_equal: Whether to take a molecule at a distance of exactly t.

    Returns:
        Indices of those taken, ascending.
    """
    by_bits = packed_NW.device.type == "cpu" and len(packed_NW) > _SMALL
    return (leader_by_bits if by_bits else leader_by_tiles)(packed_NW, threshold, include_equal)


def leader_by_bits(packed_NW: Tensor, threshold: float, include_equal: bool = False) -> list[int]:
    """Run `leader` on CPUs: drop the neighbours of each centre at once, like RDKit's LeaderPicker.

    A drug-like molecule sets about 45 of 1024 bits. With one bit per row, the bits in common with a
    centre are the sum of 45 rows of octets, which reads less memory than packed words. They are
    compared with a minimum for neighbours (`fewest_common`), without a division. LeaderPicker is
    not used, as it is several times slower and does not end on empty fingerprints.
    """
    octets = packed_NW.contiguous().numpy().view(np.uint8)
    counts_L = count_bits(packed_NW).numpy()
    most = -(-int(counts_L.max(initial=0)) // 64) * 64  # so that few tables serve many calls
    kind = np.uint8 if most < np.iinfo(np.uint8).max else np.uint16
    fewest = fewest_common(most, threshold, include_equal).astype(kind)
    columns = np.ascontiguousarray(octets.T)[:, None]
    bits_KL = np.unpackbits(columns, axis=1).reshape(8 * octets.shape[1], len(octets))
    left_L = np.arange(len(octets))
    alive_L = np.ones(len(octets), dtype=bool)
    taken: list[int] = []
    place = 0
    while place < len(left_L):
        place += int(alive_L[place:].argmax())
        if not alive_L[place]:
            break
        taken.append(int(left_L[place]))
        own = counts_L[place]
        place += 1
        own_bits = np.flatnonzero(np.unpackbits(octets[taken[-1]]))
        common = np.add.reduce(bits_KL[own_bits, place:], axis=0, dtype=kind)
        alive_L[place:] &= common < fewest[own:].take(counts_L[place:])
        if len(taken) % _CENTRES_BETWEEN_LOOKS == 0:
            kept = place + np.flatnonzero(alive_L[place:])
            if len(kept) < len(left_L) / 2:
                bits_KL, counts_L, left_L = bits_KL.take(kept, 1), counts_L[kept], left_L[kept]
                alive_L, place = np.ones(len(kept), dtype=bool), 0
    return taken


@cache
def fewest_common(most: int, threshold: float, include_equal: bool) -> np.ndarray:
    """Find the least number of common bits of two neighbours, by the sum of their bits.

    Distances are computed as RDKit computes them, in float64, two empty fingerprints at 1.

    Args:
        most: Largest number of set bits of a fingerprint.
        threshold: t, a Tanimoto distance.
        include_equal: Whether to take a molecule at a distance of exactly t.

    Returns:
        (2 most + 1,) int64; `most` + 1 if no number of bits suffices.

    >>> fewest_common(4, 0.75, False)[[0, 5, 8]]  # 1/4 and 2/6 reach a similarity of 0.25
    array([5, 1, 2])
    """
    sums_S1, common_C = np.arange(2 * most + 1)[:, None], np.arange(most + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance_SC = 1 - np.nan_to_num(common_C / (sums_S1 - common_C), nan=0.0)
    near_SC = distance_SC < threshold if include_equal else distance_SC <= threshold
    near_SC &= 2 * common_C <= sums_S1  # each has at least the common bits
    return np.where(near_SC.any(1), near_SC.argmax(1), most + 1)


def leader_by_tiles(packed_NW: Tensor, threshold: float, include_equal: bool = False) -> list[int]:
    """Run `leader` on accelerators and for small sets.

    Each tile is compared with the earlier centres, then with itself.
    """
    taken: list[int] = []
    centres: list[Bits] = []
    for start in range(0, len(packed_NW), TILE):
        tile = unpacked(packed_NW[start : start + TILE])
        alive = torch.ones(len(tile.bits_NK), dtype=torch.bool, device=packed_NW.device)
        for group in centres:
            rows = alive.nonzero().flatten()
            near = _within(distances(_select(tile, rows), group), threshold, include_equal)
            alive[rows] = ~near.any(1)
        rows = alive.nonzero().flatten()
        candidates = _select(tile, rows)
        within = _within(distances(candidates, candidates), threshold, include_equal)
        chosen = _first_come(within.cpu().numpy())
        if chosen:
            centres = _joined(
                centres,
                _select(candidates, torch.tensor(chosen, device=rows.device, dtype=torch.int64)),
            )
            taken += (rows[chosen] + start).tolist()
    return taken


def maxmin(packed_NW: Tensor, threshold: float) -> list[int]:
    """Take the molecule farthest from those taken, starting with the first, while it exceeds t.

    Args:
        packed_NW: Fingerprints; the first is taken first.
        threshold: t, a Tanimoto distance.

    Returns:
        Indices in the order of RDKit's MaxMinPicker.
    """
    from rdkit.SimDivFilters import rdSimDivPickers

    if not len(packed_NW):
        return []
    vectors = bit_vectors(packed_NW)
    picker = rdSimDivPickers.MaxMinPicker()
    picks, _ = picker.LazyBitVectorPickWithThreshold(
        vectors, len(vectors), len(vectors), threshold, [0]
    )
    return list(picks)


def chunked(
    packed_NW: Tensor, threshold: float, seed: int = 0, include_equal: bool = False
) -> list[int]:
    """Run the authors' program: `leader` in chunks, three times with shuffles, then over the rest.

    Args:
        packed_NW: Fingerprints, in the order of selection.
        threshold: t, a Tanimoto distance.
        seed: Seed of the three shuffles.
        include_equal: Whether to take a molecule at a distance of exactly t.

    Returns:
        Indices of those taken, in the order of the last pass.
    """
    rng = np.random.default_rng(seed)
    left = np.arange(len(packed_NW))
    for num_chunks in NUM_CHUNKS:
        chunks = np.array_split(left, num_chunks)
        left = np.concatenate(
            [chunk[leader(packed_NW[chunk], threshold, include_equal)] for chunk in chunks]
        )
        rng.shuffle(left)
    taken: list[int] = left[leader(packed_NW[left], threshold, include_equal)].tolist()
    return taken


def bit_vectors(packed_NW: Tensor) -> list[Any]:
    """Convert packed fingerprints to RDKit's bit vectors."""
    from rdkit import DataStructs

    octets = packed_NW.contiguous().cpu().numpy().view(np.uint8)
    # RDKit stores the first bit of an octet lowest, packbits highest.
    reversed_octets = np.packbits(np.unpackbits(octets, axis=1), axis=1, bitorder="little")
    return [DataStructs.CreateFromBinaryText(row.tobytes()) for row in reversed_octets]


class Circles(FingerprintMetric):
    """#Circles of the valid molecules seen.

    Molecules are ordered by the argument `order` of `update` (numbers of oracle calls give the
    order of discovery), otherwise by a hash of the fingerprint and `seed`. Either way the value is
    the same on any number of ranks. Repeats count once.

    Args:
        threshold: t, a Tanimoto distance; 0.75 for #Circles, 0.65 for diverse hits.
        algorithm: The algorithm that finds a subset; see the docstring of this module.
        radius: Radius of the Morgan fingerprint, in bonds.
        num_bits: Length of the fingerprint; 1024 for #Circles, 2048 for diverse hits.
        include_equal: Whether to take a molecule at a distance of exactly t; not for `maxmin`.
        seed: Seed of the order, if none is given, and of the shuffles of `chunked`.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the threshold is not between 0 and 1, or the algorithm is unknown.

    >>> metric = Circles()
    >>> metric.update(["CCO", "CCO", "c1ccccc1", "Cc1ccccc1"])
    >>> metric.compute()
    tensor(2)
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(
        self,
        threshold: float = 0.75,
        algorithm: Algorithm = "leader",
        radius: int = 2,
        num_bits: int = 1024,
        include_equal: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(radius, num_bits, **kwargs)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}: Tanimoto distances lie in [0, 1]")
        if algorithm not in get_args(Algorithm):
            names = ", ".join(get_args(Algorithm))
            raise ValueError(f"algorithm is {algorithm!r}: set it to one of {names}")
        if include_equal and algorithm == "maxmin":
            raise ValueError("maxmin ends at distances equal to t: set include_equal to false")
        self.threshold, self.algorithm = threshold, algorithm
        self.include_equal, self.seed = include_equal, seed
        self.add_row_state("keys", torch.int64)

    @classmethod
    def diverse_hits(cls, algorithm: Algorithm = "leader", **kwargs: Any) -> Self:
        """Return the definition of Renz et al. (2024): t = 0.65, 2048 bits. Give it hits alone."""
        return cls(0.65, algorithm, num_bits=2048, **kwargs)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat and an invalid string."""
        return cls(), [
            (["CCO", "c1ccccc1", "C1CC"],),
            (["CCO", "Cc1ccccc1", "CC(=O)NC"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str], order: Sequence[int] | Tensor | None = None) -> None:
        """Add SMILES strings; invalid ones are left out.

        Args:
            smiles: SMILES strings.
            order: A sort key for each; pass it in every update or in none.

        Raises:
            ValueError: If the two differ in length.
        """
        is_valid_N, packed_NW = morgan_fingerprints(smiles, self.radius, self.num_bits)
        if order is None:
            words = packed_NW.numpy()
            salt = self.seed.to_bytes(8, "little")
            digests = [blake2b(row.tobytes(), digest_size=8, salt=salt).digest() for row in words]
            keys_N = torch.from_numpy(np.frombuffer(bytearray(b"".join(digests)), np.int64))
        else:
            order_N = torch.as_tensor(order, dtype=torch.int64).cpu().flatten()
            if len(order_N) != len(smiles):
                raise ValueError(
                    f"Circles got {len(order_N)} places in the order for {len(smiles)} SMILES: "
                    "give one of each"
                )
            keys_N = order_N[is_valid_N]
        self.append_rows("keys", keys_N)
        self.append_rows("packed", packed_NW)

    def compute(self) -> Tensor:
        """Return the number of circles found, an int64 scalar."""
        return torch.tensor(len(self.taken()), device=self.device)

    def taken(self) -> Tensor:
        """Return the fingerprints taken, packed."""
        keys, fingerprints = self.rows("keys"), self.fingerprints
        if not len(keys):
            return fingerprints
        rows = torch.unique(torch.cat([keys[:, None], fingerprints], dim=1), dim=0)
        packed: Tensor = rows[:, 1:]
        return packed[self._chosen(packed)]

    def _chosen(self, packed_NW: Tensor) -> list[int]:
        """Return the places of the fingerprints that the algorithm takes, in this order."""
        if self.algorithm == "leader":
            return leader(packed_NW, self.threshold, self.include_equal)
        if self.algorithm == "maxmin":
            return maxmin(packed_NW, self.threshold)
        return chunked(packed_NW, self.threshold, self.seed, self.include_equal)


def _within(distance_RC: Tensor, threshold: float, include_equal: bool) -> Tensor:
    return distance_RC < threshold if include_equal else distance_RC <= threshold


def _select(bits: Bits, rows: Tensor) -> Bits:
    return Bits(bits.bits_NK[rows], bits.counts_N[rows])


def _joined(groups: list[Bits], new: Bits) -> list[Bits]:
    """Add centres to groups of at most one tile."""
    if groups and len(groups[-1].counts_N) + len(new.counts_N) <= TILE:
        last = groups[-1]
        new = Bits(torch.cat([last.bits_NK, new.bits_NK]), torch.cat([last.counts_N, new.counts_N]))
        groups = groups[:-1]
    return [*groups, new]


def _first_come(near_NN: np.ndarray) -> list[int]:
    """Take each row, in order, that is not near an earlier one taken."""
    chosen: list[int] = []
    covered = np.zeros(len(near_NN), dtype=bool)
    for row in range(len(near_NN)):
        if not covered[row]:
            chosen.append(row)
            covered |= near_NN[row]
    return chosen
