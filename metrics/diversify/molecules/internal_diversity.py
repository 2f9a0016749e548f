"""Internal diversity: the mean dissimilarity of the molecules of a set.

There are three definitions. All use Tanimoto similarities of Morgan fingerprints, radius 2:

- MOSES (Polykhovskiy et al. 2020), IntDiv_p = 1 - mean over x of (mean over y of T(x, y)^p)^(1/p).
  Self-pairs are included, 1024 bits, and two empty fingerprints have T = 1. The root is taken per
  row, as in the published code; the paper's formula has one root outside.
- TDC (Huang et al. 2021), "Diversity": 1 - mean T over pairs of different molecules, without
  repeats; 2048 bits in the published code; two empty fingerprints have T = 0.
- GuacaMol (Brown et al. 2019): 1 - the mean of the N x N matrix with a zero diagonal, 4096 bits.
  GuacaMol itself reports that mean for its unique molecules, so set `unique` to compare with it.

The number of bits has more influence than the self-pairs, so state it with the value.
"""

# Shapes: N molecules, W words of a packed fingerprint

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.fingerprints import FingerprintMetric, sorted_rows
from triptych.metrics.diversify.molecules.molecule_ids import molecule_ids
from triptych.metrics.diversify.molecules.tanimoto import symmetric_tiles

Compat = Literal["moses", "tdc", "guacamol"]
NUM_BITS = {"moses": 1024, "tdc": 2048, "guacamol": 4096}


def internal_diversity(packed_NW: Tensor, p: float = 1.0, compat: Compat = "moses") -> Tensor:
    """Compute the internal diversity of packed fingerprints, tile by tile.

    Args:
        packed_NW: Fingerprints from `fingerprints.pack`, with repeats.
        p: Power of the similarities; other than 1 for "moses" alone.
        compat: The definition.

    Returns:
        A float64 scalar; nan without molecules, and for "tdc" also for one.

    Raises:
        ValueError: If `p` is not positive, or not 1 for a definition without a power.
    """
    check_power(p, compat)
    num_molecules = len(packed_NW)
    # Float32 sums of a tile's row, float64 sums of those. Sorting makes the value independent of
    # the order of molecules.
    packed_NW = sorted_rows(packed_NW)
    sums_N = torch.zeros(num_molecules, dtype=torch.float64, device=packed_NW.device)
    for rows, columns, similarity_RC in symmetric_tiles(packed_NW, float(compat == "moses")):
        on_diagonal = rows == columns
        if on_diagonal and compat != "moses":
            similarity_RC.fill_diagonal_(0.0)
        if p != 1:
            similarity_RC.pow_(p)
        sums_N[rows] += similarity_RC.sum(1)
        if not on_diagonal:
            sums_N[columns] += similarity_RC.sum(0)
    if compat == "tdc":
        return 1 - sums_N.sum() / (num_molecules * (num_molecules - 1))
    means_N = sums_N / num_molecules
    return 1 - (means_N ** (1 / p)).mean()


def check_power(p: float, compat: Compat) -> None:
    """Check that a definition has this power.

    Raises:
        ValueError: If not, or if the definition is unknown.
    """
    if compat not in NUM_BITS:
        raise ValueError(f"compat is {compat!r}: set it to one of {', '.join(NUM_BITS)}")
    if p <= 0 or (p != 1 and compat != "moses"):
        raise ValueError(f"p is {p} for {compat}: set it to 1, or to a positive power for moses")


class InternalDiversity(FingerprintMetric):
    """IntDiv_p of the valid molecules seen.

    Args:
        p: Power of the similarities; MOSES reports 1 and 2.
        compat: The definition. "tdc" removes repeats; the others keep them by default, so that a
            generator that repeats itself scores low.
        radius: Radius of the Morgan fingerprint, in bonds.
        num_bits: Length of the fingerprint; None: that of the definition (1024, 2048, 4096).
        unique: Whether to remove repeated molecules; None: as the definition does.
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = InternalDiversity()
    >>> metric.update(["C", "O"])  # no bit in common; each is like itself
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        p: float = 1.0,
        compat: Compat = "moses",
        radius: int = 2,
        num_bits: int | None = None,
        unique: bool | None = None,
        **kwargs: Any,
    ) -> None:
        check_power(p, compat)
        if compat == "tdc" and unique is False:
            raise ValueError('compat="tdc" removes repeats: set unique to null or true.')
        super().__init__(radius, num_bits or NUM_BITS[compat], **kwargs)
        self.p, self.compat = p, compat
        self.unique = compat == "tdc" if unique is None else unique
        self.add_row_state("ids", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat and an invalid string."""
        return cls(p=2.0), [
            (["CCO", "c1ccccc1", "C1CC"],),
            (["CCN", "OCC"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        super().update(smiles)
        if self.unique:
            self.append_rows("ids", molecule_ids(smiles)[1])

    def compute(self) -> Tensor:
        """Return the diversity in [0, 1], a float64 scalar; nan without molecules."""
        packed = self.fingerprints
        if self.unique and len(packed):
            ids = self.rows("ids").view(-1, 2)
            rows = torch.unique(torch.cat([ids, packed], dim=1), dim=0)
            packed = rows[:, 2:]
        return internal_diversity(packed, self.p, self.compat)
