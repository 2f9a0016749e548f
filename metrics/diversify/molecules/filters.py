"""Filters of MOSES: the share of molecules without structural alerts."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric
from triptych.models.diversify.molecules.molecule import Mol, read_molecule

ELEMENTS = ("C", "N", "S", "O", "F", "Cl", "Br", "H")
_LARGEST_RING = 7


class FilterShare(SummedMetric):
    """The share of valid molecules that pass the filters of MOSES, as RDKit can apply them.

    A molecule passes without an alert, a charged atom, an element other than C, N, S, O, F, Cl, Br
    and H, and a ring of 8 or more atoms (Polykovskiy et al. 2020). Repeats count.

    Deviation: MOSES' alerts are its own medicinal chemistry filters (MCF, 22 patterns) and PAINS.
    RDKit has PAINS and not MCF, so MCF count only where you give them as `alerts`: values are
    higher than MOSES' without them. Alerts are looked for in molecules with explicit hydrogens.

    Args:
        catalogs: Catalogues of RDKit's `FilterCatalog`, such as "PAINS", "BRENK", "NIH", "ZINC".
        alerts: SMARTS patterns of your own, such as the MCF of MOSES' file mcf.csv.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a catalogue is unknown or a pattern is invalid.

    >>> metric = FilterShare()
    >>> metric.update(["CCO", "C[N+](C)(C)C", "C1CCCCCCC1", "O=C1C=CC(=O)C=C1"])  # PAINS: quinone
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    num_passed: Tensor
    num_molecules: Tensor

    def __init__(
        self, catalogs: Sequence[str] = ("PAINS",), alerts: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.catalogs, self.alerts = tuple(catalogs), tuple(alerts)
        _catalog(self.catalogs), _patterns(self.alerts)
        self.add_sum("num_passed", torch.int64)
        self.add_sum("num_molecules", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with what passes, what does not, and no molecule."""
        return cls(alerts=["[N;R0]=O"]), [
            (["CCO", "C[N+](C)(C)C", "C1CC"],),
            (["c1ccccc1", "CCN=O", "O=C1C=CC(=O)C=C1"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        read = [read_molecule(text) for text in smiles]
        molecules = [molecule for molecule in read if molecule is not None]
        self.num_passed = self.num_passed + sum(map(self.passes, molecules))
        self.num_molecules = self.num_molecules + len(molecules)

    def passes(self, molecule: Mol) -> bool:
        """Return whether a molecule passes all filters."""
        from rdkit import Chem

        if any(
            atom.GetFormalCharge() or atom.GetSymbol() not in ELEMENTS
            for atom in molecule.GetAtoms()
        ):
            return False
        if any(len(ring) > _LARGEST_RING for ring in molecule.GetRingInfo().AtomRings()):
            return False
        with_hydrogens = Chem.AddHs(molecule)
        if _catalog(self.catalogs).HasMatch(with_hydrogens):
            return False
        return not any(map(with_hydrogens.HasSubstructMatch, _patterns(self.alerts)))

    def compute(self) -> Tensor:
        """Return the share in [0, 1], float64; nan without a valid molecule."""
        return self.num_passed.double() / self.num_molecules


@cache
def _catalog(names: tuple[str, ...]) -> Any:
    """Load catalogues, once in a process."""
    from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

    params, known = FilterCatalogParams(), FilterCatalogParams.FilterCatalogs.names
    for name in names:
        if name not in known:
            raise ValueError(f"catalogs has {name!r}: give some of {', '.join(sorted(known))}.")
        params.AddCatalog(known[name])
    return FilterCatalog(params)


@cache
def _patterns(alerts: tuple[str, ...]) -> list[Mol]:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        patterns = [Chem.MolFromSmarts(alert) for alert in alerts]
    unread = [alert for alert, pattern in zip(alerts, patterns, strict=True) if pattern is None]
    if unread:
        wrong = unread[0]
        raise ValueError(f"alerts has {wrong!r}, which is no SMARTS pattern: correct it.")
    return patterns
