"""The distance of molecules to their nearest neighbour in a reference set."""

# Shapes: N molecules, M of the reference, W words of a packed fingerprint

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.fingerprints import check_fingerprint, morgan_fingerprints
from triptych.metrics.diversify.molecules.tanimoto import TILE, similarities, unpacked
from triptych.metrics.summed_metric import SummedMetric


def nearest_similarity(packed_NW: Tensor, reference_MW: Tensor) -> Tensor:
    """Find the Tanimoto similarity of each molecule to its nearest neighbour in a reference set.

    Args:
        packed_NW: Fingerprints, packed.
        reference_MW: Fingerprints of the reference, at least one.

    Returns:
        float32 (N,). Two empty fingerprints have similarity 1.
    """
    nearest_N = torch.zeros(len(packed_NW), device=packed_NW.device, dtype=torch.float32)
    for start in range(0, len(reference_MW), TILE):
        columns = unpacked(reference_MW[start : start + TILE])
        for first in range(0, len(packed_NW), TILE):
            tile = slice(first, first + TILE)
            best = similarities(unpacked(packed_NW[tile]), columns).amax(1)
            nearest_N[tile] = torch.maximum(nearest_N[tile], best)
    return nearest_N


class ReferenceDistance(SummedMetric):
    """The mean Tanimoto distance of valid molecules to their nearest neighbour in a reference set.

    MOSES reports its complement as SNN.

    Args:
        reference: SMILES of the reference set.
        radius: Radius of the Morgan fingerprint, in bonds.
        num_bits: Length of the fingerprint, a multiple of 64.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the reference is empty or has an invalid string.

    >>> metric = ReferenceDistance(["CCO", "c1ccccc1"])
    >>> metric.update(["OCC", "Cl"])  # one of the reference, one without a common bit
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    distance_sum: Tensor
    num_molecules: Tensor

    def __init__(
        self, reference: Sequence[str], radius: int = 2, num_bits: int = 1024, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_fingerprint(radius, num_bits)
        is_valid_M, packed_MW = morgan_fingerprints(reference, radius, num_bits)
        if not len(packed_MW):
            raise ValueError("the reference holds no molecule: give at least one SMILES string")
        if not is_valid_M.all():
            place = int((~is_valid_M).nonzero()[0])
            raise ValueError(
                f"reference[{place}] is {reference[place]!r}, which is not a molecule: give valid "
                "SMILES"
            )
        self.radius, self.num_bits = radius, num_bits
        self._reference_MW = packed_MW
        self.add_sum("distance_sum", torch.float64)
        self.add_sum("num_molecules", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with an invalid string."""
        return cls(["CCO", "c1ccccc1"]), [(["CCN", "C1CC"],), (["Cc1ccccc1", "CCO"],), ([],)]

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        _, packed_NW = morgan_fingerprints(smiles, self.radius, self.num_bits)
        device = self.distance_sum.device
        nearest_N = nearest_similarity(packed_NW.to(device), self._reference_MW.to(device))
        self.distance_sum = self.distance_sum + (1 - nearest_N.double()).sum()
        self.num_molecules = self.num_molecules + len(packed_NW)

    def compute(self) -> Tensor:
        """Return the mean distance in [0, 1], float64; nan without a valid molecule."""
        return self.distance_sum / self.num_molecules
