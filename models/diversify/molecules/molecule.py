"""Molecules as SMILES strings: parsing, canonical form, scaffolds."""

from typing import Any

# RDKit's types are incomplete, so a molecule is Any.
Mol = Any
# RDKit traverses a molecule recursively: a chain of some ten thousand atoms crashes the process,
# and the time grows with the square of the length.
MOST_CHARACTERS = 2000


def read_molecule(smiles: str) -> Mol | None:
    """Parse and sanitise a SMILES string with RDKit, without RDKit's log messages.

    Args:
        smiles: A SMILES string, possibly invalid.

    Returns:
        The molecule; None if the string is no molecule, has no atoms, or is longer than
        `MOST_CHARACTERS`.

    >>> read_molecule("C1CC") is None, read_molecule("") is None, read_molecule("CCO").GetNumAtoms()
    (True, True, 3)
    """
    from rdkit import Chem, rdBase

    if len(smiles) > MOST_CHARACTERS:
        return None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


def canonical_smiles(smiles: str, keep_stereo: bool = True) -> str | None:
    """Write a SMILES string in RDKit's canonical form.

    Args:
        smiles: A SMILES string.
        keep_stereo: Whether to keep stereochemistry.

    Returns:
        The canonical string; None if `smiles` is no molecule.

    >>> canonical_smiles("OCC"), canonical_smiles("C[C@H](N)O", keep_stereo=False)
    ('CCO', 'CC(N)O')
    """
    molecule = read_molecule(smiles)
    return None if molecule is None else write_molecule(molecule, keep_stereo)


def write_molecule(molecule: Mol, keep_stereo: bool = True) -> str:
    """Write a molecule as canonical SMILES."""
    from rdkit import Chem

    text: str = Chem.MolToSmiles(molecule, isomericSmiles=keep_stereo)
    return text


def murcko_scaffold(molecule: Mol) -> str:
    """Reduce a molecule to its Bemis-Murcko scaffold, as canonical SMILES without stereochemistry.

    The scaffold consists of rings, their linkers, and atoms double-bonded to either (RDKit's
    variant). A molecule without rings has the empty scaffold.

    >>> murcko_scaffold(read_molecule("CCc1ccccc1")), murcko_scaffold(read_molecule("CCO"))
    ('c1ccccc1', '')
    """
    from rdkit.Chem.Scaffolds import MurckoScaffold

    text: str = MurckoScaffold.MurckoScaffoldSmiles(mol=molecule, includeChirality=False)
    return text
