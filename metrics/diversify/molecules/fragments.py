"""Frag of MOSES: whether molecules are made of the fragments of a reference, as often."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.molecule_ids import text_ids
from triptych.metrics.gathered_metric import GatheredMetric
from triptych.models.diversify.molecules.molecule import Mol, read_molecule


def brics_fragments(molecule: Mol) -> list[str]:
    """Cut a molecule at its BRICS bonds (Degen et al. 2008).

    Returns:
        Canonical SMILES of the pieces; cut ends are dummy atoms with the kind of their bond.

    >>> brics_fragments(read_molecule("CCOc1ccccc1"))
    ['[16*]c1ccccc1', '[3*]O[3*]', '[4*]CC']
    """
    from rdkit import Chem
    from rdkit.Chem.BRICS import BreakBRICSBonds

    return sorted(Chem.MolToSmiles(BreakBRICSBonds(molecule)).split("."))


class FragmentSimilarity(GatheredMetric):
    """Frag: the cosine of the counts of BRICS fragments of the valid molecules and of a reference.

    Repeats count, as in MOSES (Polykovskiy et al. 2020). 1 if fragments are equally frequent, 0 if
    none is shared.

    Args:
        reference: SMILES of the reference set; MOSES takes its test set.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the reference is empty or has an invalid string.

    >>> metric = FragmentSimilarity(["CCOc1ccccc1"])
    >>> metric.update(["CCO", "CCOc1ccccc1"])  # one fragment of its own beside three shared ones
    >>> round(metric.compute().item(), 4)  # 3 / sqrt(3 * 4)
    0.866
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, reference: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        molecules = [read_molecule(text) for text in reference]
        if None in molecules or not molecules:
            raise ValueError(
                f"reference[{molecules.index(None)}] is not a molecule: give valid SMILES"
                if molecules
                else "the reference holds no molecule: give at least one SMILES string"
            )
        self._reference = _counts(_fragment_ids(molecules))
        self.add_row_state("fragments", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat and an invalid string."""
        return cls(["CCOc1ccccc1", "CCO"]), [
            (["CCO", "COc1ccccc1", "C1CC"],),
            (["OCC", "CC(=O)NC"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        molecules = [read_molecule(text) for text in smiles]
        self.append_rows("fragments", _fragment_ids(m for m in molecules if m is not None))

    def compute(self) -> Tensor:
        """Return the cosine in [0, 1], a float64 scalar; nan without a valid molecule."""
        found = _counts(self.rows("fragments").view(-1, 2))
        shared = sum(count * self._reference[fragment] for fragment, count in found.items())
        squares = [sum(n * n for n in counts.values()) for counts in (found, self._reference)]
        cosine = shared / math.sqrt(squares[0] * squares[1]) if found else math.nan
        return torch.tensor(cosine, dtype=torch.float64, device=self.device)


def _fragment_ids(molecules: Iterable[Mol]) -> Tensor:
    return text_ids(piece for molecule in molecules for piece in brics_fragments(molecule))


def _counts(ids: Tensor) -> Counter[tuple[int, ...]]:
    return Counter(map(tuple, ids.tolist()))
