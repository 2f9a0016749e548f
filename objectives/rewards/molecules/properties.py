"""Properties that RDKit computes: drug-likeness, size, polarity, rings, any descriptor by name."""

import difflib
from functools import cache
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import Transform


class DrugLikeness(MoleculeComponent):
    """QED (Bickerton et al. 2012), in [0, 1]."""

    cost_ms = 2.0

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute QED with its mean weights."""
        from rdkit.Chem import QED

        return float(QED.qed(molecule))


class LogP(MoleculeComponent):
    """Crippen's octanol-water partition coefficient, log10."""

    cost_ms = 0.5

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute logP."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcCrippenDescriptors(molecule)[0])


class PolarSurfaceArea(MoleculeComponent):
    """Topological polar surface area (TPSA), in square angstrom."""

    unit = "Å²"

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute TPSA."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcTPSA(molecule))


class MolecularWeight(MoleculeComponent):
    """Average molecular weight, in g/mol."""

    unit = "g/mol"

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute the weight."""
        from rdkit.Chem import Descriptors

        weigh: Any = vars(Descriptors)["MolWt"]  # RDKit's types do not list it
        return float(weigh(molecule))


class HydrogenBondDonors(MoleculeComponent):
    """The number of hydrogen bond donors; MARA requires fewer than 4."""

    def value(self, molecule: Mol, smiles: str) -> float:
        """Count donors."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcNumHBD(molecule))


class Rings(MoleculeComponent):
    """The number of rings in the smallest set of smallest rings."""

    def value(self, molecule: Mol, smiles: str) -> float:
        """Count rings."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcNumRings(molecule))


class HydrogenBondAcceptors(MoleculeComponent):
    """The number of hydrogen bond acceptors."""

    def value(self, molecule: Mol, smiles: str) -> float:
        """Count acceptors."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcNumHBA(molecule))


class RotatableBonds(MoleculeComponent):
    """The number of rotatable bonds, by RDKit's strict definition (amides do not count)."""

    def value(self, molecule: Mol, smiles: str) -> float:
        """Count rotatable bonds."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcNumRotatableBonds(molecule))


class FractionSp3(MoleculeComponent):
    """The share of the carbons that are sp3, in [0, 1]; 0 without carbon."""

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute the share."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcFractionCSP3(molecule))


class Stereocentres(MoleculeComponent):
    """The number of tetrahedral stereocentres, with or without a given configuration."""

    def value(self, molecule: Mol, smiles: str) -> float:
        """Count stereocentres."""
        from rdkit import Chem

        find: Any = Chem.FindMolChiralCenters
        return float(len(find(molecule, includeUnassigned=True, useLegacyImplementation=False)))


class FormalCharge(MoleculeComponent):
    """The total formal charge, in elementary charges."""

    def value(self, molecule: Mol, smiles: str) -> float:
        """Sum the charges of the atoms."""
        from rdkit import Chem

        return float(Chem.GetFormalCharge(molecule))


class RDKitDescriptor(MoleculeComponent):
    """Any of RDKit's descriptors by its name, such as BertzCT, LabuteASA or NumSpiroAtoms.

    Args:
        descriptor: A name in `rdkit.Chem.Descriptors.descList`.
        transform: Maps the descriptor to [0, 1]; null: unchanged.
        name: In ledger, logs and tables; null: that of the descriptor.

    Raises:
        ValueError: If there is no such descriptor.
    """

    cost_ms = 1.0

    def __init__(
        self, descriptor: str, transform: Transform | None = None, name: str | None = None
    ) -> None:
        super().__init__(transform, name)
        known = _descriptors()
        if descriptor not in known:
            near = difflib.get_close_matches(descriptor, known, 3, 0.4)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"descriptor is {descriptor!r}, which is none of RDKit's {len(known)}{meant}"
            )
        self.descriptor = descriptor

    @property
    def default_name(self) -> str:
        """The descriptor's name."""
        return self.descriptor

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute the descriptor."""
        return float(_descriptors()[self.descriptor](molecule))


@cache
def _descriptors() -> dict[str, Any]:
    from rdkit.Chem import Descriptors

    listed: Any = vars(Descriptors)["descList"]
    return dict(listed)
