"""Molecules as SMILES strings: read quietly, written canonically, reduced to their scaffold."""

from typing import Any

# RDKit ships no complete types: a molecule is Any.
Mol = Any
# RDKit walks along a molecule by recursion, which some ten thousand atoms in a row end with the
# whole process; and the time it takes grows with their square.
MOST_CHARACTERS = 2000


def read_molecule(smiles: str) -> Mol | None:
    """Read a SMILES string with RDKit, sanitised; its complaints stay off the terminal.

    Args:
        smiles: A SMILES string, as a model may have written it.

    Returns:
        The molecule; None where the string is no molecule, one without atoms, or enormous: longer
        than `MOST_CHARACTERS`.

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
        keep_stereo: Whether marks of stereochemistry stay.

    Returns:
        The canonical string; None where `smiles` is no molecule.

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

    Rings, what links them, and atoms held by a double bond to either (RDKit's variant). A molecule
    without a ring has the empty scaffold.

    >>> murcko_scaffold(read_molecule("CCc1ccccc1")), murcko_scaffold(read_molecule("CCO"))
    ('c1ccccc1', '')
    """
    from rdkit.Chem.Scaffolds import MurckoScaffold

    text: str = MurckoScaffold.MurckoScaffoldSmiles(mol=molecule, includeChirality=False)
    return text
