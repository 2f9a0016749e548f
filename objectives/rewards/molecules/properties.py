"""Properties that RDKit computes: drug-likeness, lipophilicity, size, polarity, rings."""

from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import MoleculeComponent


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

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute TPSA."""
        from rdkit.Chem import rdMolDescriptors

        return float(rdMolDescriptors.CalcTPSA(molecule))


class MolecularWeight(MoleculeComponent):
    """Average molecular weight, in g/mol."""

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
