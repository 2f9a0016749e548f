"""Validity, uniqueness and novelty of generated molecules.

Definitions of GuacaMol (Brown et al. 2019) and MOSES (Polykhovskiy et al. 2020): the share of valid
strings, of different ones among these, and of those outside of a reference set among the different
ones. TDC divides uniqueness by the number of all strings; we divide by the valid ones.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.molecule_ids import molecule_ids, text_ids, unique_rows
from triptych.metrics.gathered_metric import GatheredMetric
from triptych.metrics.summed_metric import SummedMetric
from triptych.models.diversify.molecules.molecule import canonical_smiles, read_molecule

_EXAMPLE = [(["CCO", "OCC", "C1CC"],), (["c1ccccc1", "CCO", ""],), ([],)]


class Validity(SummedMetric):
    """The share of strings that RDKit reads and sanitises as a molecule with at least one atom.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = Validity()
    >>> metric.update(["CCO", "C1CC", "", "c1ccccc1"])
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    num_valid: Tensor
    num_strings: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("num_valid", torch.int64)
        self.add_sum("num_strings", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, one of them empty."""
        return cls(), _EXAMPLE

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings, valid or not."""
        self.num_valid = self.num_valid + sum(read_molecule(text) is not None for text in smiles)
        self.num_strings = self.num_strings + len(smiles)

    def compute(self) -> Tensor:
        """Return the share in [0, 1], float64; nan before the first string."""
        return self.num_valid.double() / self.num_strings


class Uniqueness(GatheredMetric):
    """The share of different canonical SMILES among the valid strings.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = Uniqueness()
    >>> metric.update(["CCO", "OCC", "CCC", "C1CC", "CCN"])
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_row_state("ids", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches that share a molecule."""
        return cls(), _EXAMPLE

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        self.append_rows("ids", molecule_ids(smiles)[1])

    def compute(self) -> Tensor:
        """Return the share in [0, 1], float64; nan without a valid string."""
        ids = self.rows("ids").view(-1, 2)
        return torch.tensor(len(unique_rows(ids)), dtype=torch.float64) / len(ids)


class NovelMolecules(GatheredMetric):
    """The share of different valid molecules outside of a reference set.

    Args:
        reference: SMILES of the reference set, such as the prior's training data.
        is_canonical: Whether the reference is canonical already, as from our datamodules.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a string of the reference is invalid.

    >>> metric = NovelMolecules(reference=["CCO"])
    >>> metric.update(["OCC", "CCC", "CCC", "CCN", "CCCl"])
    >>> metric.compute()
    tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, reference: Sequence[str], is_canonical: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        canonical: list[str | None] = list(reference)
        if not is_canonical:
            canonical = [canonical_smiles(text) for text in reference]
        if None in canonical:
            place = canonical.index(None)
            raise ValueError(
                f"reference[{place}] is {reference[place]!r}, which is not a molecule: give valid "
                "SMILES"
            )
        self._reference = unique_rows(text_ids(text for text in canonical if text is not None))
        self.add_row_state("ids", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a molecule of the reference."""
        return cls(["CCO"]), _EXAMPLE

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        self.append_rows("ids", molecule_ids(smiles)[1])

    def compute(self) -> Tensor:
        """Return the share in [0, 1], float64; nan without a valid string."""
        found = unique_rows(self.rows("ids").view(-1, 2))
        num_both = len(unique_rows(torch.cat([found, self._reference.to(found)])))
        num_new = num_both - len(self._reference)
        return torch.tensor(num_new, dtype=torch.float64) / len(found)
