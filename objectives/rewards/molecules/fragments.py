"""Salts and mixtures."""

from typing import Any

from triptych.models.diversify.molecules.molecule import read_molecule, write_molecule


def largest_fragment(smiles: str) -> str:
    """Return the fragment of a salt or mixture that matters, as canonical SMILES.

    That is an organic one (with carbon) before others, then the one with the most heavy atoms, then
    the heaviest, then the first in the canonical order of their SMILES.

    >>> largest_fragment("CN1CCCC1c1cccnc1.Cl"), largest_fragment("CCO.CCO"), largest_fragment("CC")
    ('CN1CCCC1c1cccnc1', 'CCO', 'CC')

    Raises:
        ValueError: If the string is no molecule.
    """
    from rdkit import Chem
    from rdkit.Chem import Descriptors

    molecule = read_molecule(smiles)
    if molecule is None:
        raise ValueError(f"{smiles!r} is no molecule")
    weigh: Any = vars(Descriptors)["MolWt"]

    def rank(part: Any) -> tuple[bool, int, float]:
        has_carbon = any(atom.GetAtomicNum() == 6 for atom in part.GetAtoms())
        return has_carbon, part.GetNumHeavyAtoms(), weigh(part)

    parts = Chem.GetMolFrags(molecule, asMols=True)
    written = sorted(((write_molecule(part), part) for part in parts), key=lambda pair: pair[0])
    return max(written, key=lambda pair: rank(pair[1]))[0]
