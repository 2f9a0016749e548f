"""Synthesis routes of amide couplings from purchasable building blocks."""

import hashlib
from itertools import combinations
from pathlib import Path
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol, canonical_smiles, read_molecule
from triptych.objectives.rewards.molecules.synthesizability import RetrosynthesisModel

# A carboxamide outside of rings; not a urea, carbamate, imide, hydrazide or hydroxamate.
_AMIDE = "[CX3;H1,$(C(=O)(N)[#6])](=[OX1])-!@[NX3;!$(N[!#6]);!$(N(C=O)C=O)]"


class AmideRoutes(RetrosynthesisModel):
    """1 for molecules made of building blocks by amide couplings only, else 0.

    Every set of amide bonds is cut in turn, each bond to an acid and an amine. There is a route if
    all pieces of a set can be bought. Selectivity of the couplings and stereochemistry are ignored.

    Args:
        building_blocks: File with one SMILES string per line, optionally followed by a name.
        max_cuts: Maximum number of amide bonds; a molecule with more scores 0.

    Raises:
        ValueError: If the file is missing or malformed, or `max_cuts` is below 1.

    Deviation: 2510.20817 uses Syntheseus with MEGAN for routes of amide couplings (2505.08774).
    This planner (ours) knows no other reaction and takes the building blocks from your list.
    """

    def __init__(self, building_blocks: str, max_cuts: int = 5) -> None:
        if max_cuts < 1:
            raise ValueError(f"max_cuts is {max_cuts}: set it to at least 1")
        path = Path(building_blocks)
        if not path.is_file():
            raise ValueError(
                f"building_blocks is {building_blocks}, and there is no such file: give one with a "
                "SMILES string a line, such as a vendor's catalogue"
            )
        self.building_blocks, self.max_cuts = building_blocks, max_cuts
        #: Hash of the file: a ledger is valid for these building blocks only.
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._blocks: frozenset[str] | None = None

    def prepare(self) -> None:
        """Read the building blocks."""
        if self._blocks is None:
            self._blocks = frozenset(_read(Path(self.building_blocks)))

    def score(self, smiles: str) -> float:
        """Score a molecule: 1 if there is a route, else 0."""
        self.prepare()
        assert self._blocks is not None
        molecule = read_molecule(smiles)
        if molecule is None:
            return 0.0
        bonds = amide_bonds(molecule)
        if len(bonds) > self.max_cuts:
            return 0.0
        for count in range(1, len(bonds) + 1):
            for chosen in combinations(bonds, count):
                if all(piece in self._blocks for piece in pieces(molecule, chosen)):
                    return 1.0
        return 0.0


def amide_bonds(molecule: Mol) -> list[tuple[int, int]]:
    """Find the bonds of amide couplings: carbon and nitrogen of each."""
    from rdkit import Chem

    matches = molecule.GetSubstructMatches(Chem.MolFromSmarts(_AMIDE))
    return sorted({(carbon, nitrogen) for carbon, _, nitrogen in matches})


def pieces(molecule: Mol, bonds: tuple[tuple[int, int], ...]) -> set[str]:
    """Cut amide bonds to acids and amines; return canonical SMILES without stereochemistry."""
    from rdkit import Chem

    editable: Any = Chem.RWMol(molecule)
    for carbon, nitrogen in bonds:
        editable.RemoveBond(carbon, nitrogen)
        oxygen = editable.AddAtom(Chem.Atom(8))
        editable.AddBond(carbon, oxygen, Chem.BondType.SINGLE)
        amine = editable.GetAtomWithIdx(nitrogen)
        if amine.GetNoImplicit():  # it was written in brackets
            amine.SetNumExplicitHs(amine.GetNumExplicitHs() + 1)
    Chem.SanitizeMol(editable)
    parts = Chem.GetMolFrags(editable, asMols=True)
    return {Chem.MolToSmiles(part, isomericSmiles=False) for part in parts}


def _read(path: Path) -> list[str]:
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        canonical = canonical_smiles(words[0], keep_stereo=False)
        if canonical is None:
            raise ValueError(
                f"{path}, line {number}: {words[0]!r} is no molecule: mend or remove it"
            )
        found.append(canonical)
    return found
