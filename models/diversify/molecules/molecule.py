"""Molecules as SMILES strings: parsing, canonical form, scaffolds."""

from functools import lru_cache
from typing import Any

# RDKit's types are incomplete, so a molecule is Any.
Mol = Any
# RDKit traverses a molecule recursively: a chain of some ten thousand atoms crashes the process,
# and the time grows with the square of the length.
MOST_CHARACTERS = 2000
# Searches ask for the same molecule several times, and many samples repeat.
_MOST_REMEMBERED = 2**16


def read_molecule(smiles: str) -> Mol | None:
    """Parse and sanitise a SMILES string with RDKit, without RDKit's log messages.

    RDKit itself drops what follows white space or a character that is not ASCII. Here such a string
    is invalid as a whole, so that no text after a molecule is taken for it.

    Args:
        smiles: A SMILES string, possibly invalid. White space around it is ignored.

    Returns:
        The molecule; None if the string is no molecule, has no atoms, has other text in it, or is
        longer than `MOST_CHARACTERS`.

    >>> read_molecule("C1CC") is None, read_molecule("") is None, read_molecule("CCO").GetNumAtoms()
    (True, True, 3)
    >>> read_molecule("CCO is the answer") is None
    True
    """
    from rdkit import Chem, rdBase

    text = smiles.strip()
    if len(text) > MOST_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
        return None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text)
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


@lru_cache(maxsize=_MOST_REMEMBERED)
def canonical_smiles(
    smiles: str, keep_stereo: bool = True, keep_isotopes: bool = True
) -> str | None:
    """Write a SMILES string in a canonical form that is its own canonical form.

    Args:
        smiles: A SMILES string.
        keep_stereo: Whether to keep stereochemistry.
        keep_isotopes: Whether to keep isotopes; if not, deuterium becomes ordinary hydrogen.

    Returns:
        The canonical string; None if `smiles` is no molecule, or RDKit cannot read what it writes
        for it.

    >>> canonical_smiles("OCC"), canonical_smiles("C[C@H](N)O", keep_stereo=False)
    ('CCO', 'CC(N)O')
    >>> canonical_smiles("[2H]C"), canonical_smiles("[2H]C", keep_isotopes=False)
    ('[2H]C', 'C')
    """
    molecule = read_molecule(smiles)
    if molecule is None:
        return None
    text = write_molecule(molecule, keep_stereo, keep_isotopes)
    return text if read_molecule(text) is not None else None


def write_molecule(molecule: Mol, keep_stereo: bool = True, keep_isotopes: bool = True) -> str:
    """Write a molecule as SMILES that reading and writing does not change.

    RDKit's canonical form of a few molecules has another canonical form; some alternate for ever.
    So the molecule is read and written until a form comes back, and of a cycle the first in
    alphabetical order is taken. Hydrogen atoms become implicit where their atom can carry them;
    the geometry of a double bond that only a hydrogen marks (`[H]/N=C`) is not kept.

    Args:
        molecule: The molecule, which is not changed.
        keep_stereo: Whether to keep stereochemistry.
        keep_isotopes: Whether to keep isotopes.
    """
    from rdkit import Chem

    if not (keep_stereo and keep_isotopes):
        molecule = Chem.Mol(molecule)
    if not keep_stereo:
        Chem.RemoveStereochemistry(molecule)
    if not keep_isotopes:
        for atom in molecule.GetAtoms():
            atom.SetIsotope(0)
    text: str = Chem.MolToSmiles(molecule)
    written: list[str] = []
    while text not in written:
        written.append(text)
        read = read_molecule(text)
        if read is None:
            return text
        text = Chem.MolToSmiles(_without_hydrogens(read) if "[H]" in text else read)
    return min(written[written.index(text) :])


def _without_hydrogens(molecule: Mol) -> Mol:
    """Make all hydrogen atoms implicit that another atom can carry."""
    from rdkit import Chem, rdBase

    which: Any = Chem.RemoveHsParameters()
    which.removeDefiningBondStereo = True
    which.removeNonimplicit = True
    which.removeWithWedgedBond = True
    with rdBase.BlockLogs():
        return Chem.RemoveHs(molecule, which)


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
