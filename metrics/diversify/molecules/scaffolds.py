"""The number of scaffolds in a set of molecules, and the evenness of its distribution."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.molecule_ids import molecule_ids, text_ids
from triptych.metrics.gathered_metric import GatheredMetric
from triptych.models.diversify.molecules.molecule import murcko_scaffold, read_molecule


class Scaffolds(GatheredMetric):
    """Bemis-Murcko scaffolds of the different valid molecules seen.

    A repeated molecule counts once, so that repeats of one hit do not look like a concentration on
    its scaffold. Molecules without a ring share the empty scaffold.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = Scaffolds()
    >>> metric.update(["Cc1ccccc1", "CCc1ccccc1", "C1CCCCC1", "C1CCCC1", "C1CCCC1"])
    >>> metric.compute()["scaffold_entropy_bits"]  # shares 1/2, 1/4, 1/4
    tensor(1.5000, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_row_state("molecules", torch.int64)
        self.add_row_state("scaffolds", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat and an invalid string."""
        return cls(), [
            (["Cc1ccccc1", "CCO", "C1CC"],),
            (["CCc1ccccc1", "OCC", "C1CCCCC1"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        read = [read_molecule(text) for text in smiles]
        self.append_rows("molecules", molecule_ids(smiles)[1])
        self.append_rows("scaffolds", text_ids(murcko_scaffold(m) for m in read if m is not None))

    def compute(self) -> dict[str, Tensor]:
        """Return float64 scalars.

        Returns:
            num_scaffolds: Number of different scaffolds.
            scaffold_diversity: Different scaffolds over different molecules; nan without molecules.
            scaffold_entropy_bits: Entropy of the scaffolds' shares; nan without molecules.
        """
        states = [self.rows(name).view(-1, 2) for name in ("molecules", "scaffolds")]
        pairs = torch.cat(states, dim=1)
        if not len(pairs):
            zero, nan = (
                torch.tensor(0.0, dtype=torch.float64),
                torch.tensor(torch.nan, dtype=torch.float64),
            )
            return {
                "num_scaffolds": zero,
                "scaffold_diversity": nan,
                "scaffold_entropy_bits": nan.clone(),
            }
        unique = torch.unique(pairs, dim=0)
        _, counts = torch.unique(unique[:, 2:], dim=0, return_counts=True)
        shares = counts.double() / len(unique)
        return {
            "num_scaffolds": torch.tensor(len(counts), dtype=torch.float64, device=pairs.device),
            "scaffold_diversity": torch.tensor(
                len(counts) / len(unique), dtype=torch.float64, device=pairs.device
            ),
            "scaffold_entropy_bits": -(shares * shares.log2()).sum(),
        }
