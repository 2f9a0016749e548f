"""Molecules for runs without data: known drugs, and new molecules made of their fragments.

`drugs.csv` lists drugs by their international names, without stereochemistry. They are cut at the
bonds of the BRICS rules (Degen et al. 2008), and fragments of several drugs are joined at random by
the same rules, seeded. This takes a few milliseconds a molecule and is done once per machine.
"""

import csv
import random
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from triptych.models.disk_cache import build_once, default_cache_dir

DRUGS = Path(__file__).with_name("drugs.csv")
NUM_EMBEDDED = 4000
FEWEST_ATOMS, MOST_ATOMS = 10, 36  # heavy atoms; placeholders at open cuts do not count
VERSION = 1


@cache
def drugs() -> dict[str, str]:
    """Read the drugs: SMILES by name."""
    with DRUGS.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row["smiles"] for row in csv.DictReader(file)}


def grow_molecules(count: int, seed: int = 0) -> list[str]:
    """Join fragments of drugs to new molecules.

    Args:
        count: Number of molecules, with the drugs themselves.
        seed: Seed of the draws.

    Returns:
        Different canonical SMILES; the drugs come first.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import BRICS

    whole = [Chem.MolFromSmiles(smiles) for smiles in drugs().values()]
    grown = dict.fromkeys(Chem.MolToSmiles(molecule) for molecule in whole)
    names = sorted({piece for molecule in whole for piece in BRICS.BRICSDecompose(molecule)})
    pieces = [Chem.MolFromSmiles(name) for name in names]
    with_label = defaultdict(list)  # fragments with a cut of this kind
    for piece in pieces:
        for atom in _open_cuts(piece):
            with_label[atom.GetIsotope()].append((piece, atom.GetIdx()))
    rng = random.Random(seed)
    with rdBase.BlockLogs():
        while len(grown) < count:
            molecule = _grow(rng.choice(pieces), with_label, rng)
            if molecule is not None and Chem.SanitizeMol(molecule, catchErrors=True) == 0:
                grown[Chem.MolToSmiles(molecule)] = None
    return list(grown)[:count]


def _grow(molecule: Any, with_label: dict[int, list[tuple[Any, int]]], rng: random.Random) -> Any:
    """Join fragments until no cut is open; return None if the molecule gets too large or small."""
    while cuts := _open_cuts(molecule):
        if molecule.GetNumHeavyAtoms() > MOST_ATOMS:
            return None
        cut = rng.choice(cuts)
        partners = _partners().get(cut.GetIsotope(), {})
        found = [(label, piece) for label in partners for piece in with_label[label]]
        if not found:
            return None
        label, (piece, place) = rng.choice(found)
        molecule = _join(molecule, cut.GetIdx(), piece, place, double=partners[label])
    return molecule if FEWEST_ATOMS <= molecule.GetNumHeavyAtoms() <= MOST_ATOMS else None


def _join(left: Any, left_cut: int, right: Any, right_cut: int, double: bool) -> Any:
    """Bond the atoms next to two open cuts and remove the placeholders."""
    from rdkit import Chem

    joined: Any = Chem.RWMol(Chem.CombineMols(left, right))
    right_cut += left.GetNumAtoms()
    ends = [joined.GetAtomWithIdx(cut).GetNeighbors()[0].GetIdx() for cut in (left_cut, right_cut)]
    joined.AddBond(*ends, Chem.BondType.DOUBLE if double else Chem.BondType.SINGLE)
    for cut in sorted((left_cut, right_cut), reverse=True):
        joined.RemoveAtom(cut)
    return joined


def _open_cuts(molecule: Any) -> list[Any]:
    """List the placeholder atoms of a fragment's cuts; their isotope is the kind of cut."""
    return [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 0]


@cache
def _partners() -> dict[int, dict[int, bool]]:
    """Return the kinds of cut that fit each kind, with True for a double bond."""
    from rdkit.Chem import BRICS

    partners: dict[int, dict[int, bool]] = defaultdict(dict)
    for rules in BRICS.reactionDefs:
        for one, other, bond in rules:
            kinds = [int(kind.rstrip("ab")) for kind in (one, other)]  # 7a and 7b are both 7
            for kind, fitting in (kinds, kinds[::-1]):
                partners[kind][fitting] = bond == "="
    return dict(partners)


@cache
def embedded_molecules() -> list[dict[str, Any]]:
    """List the embedded molecules as rows with the field `smiles`."""
    import rdkit

    name = f"{NUM_EMBEDDED}-{VERSION}-rdkit{rdkit.__version__}"
    folder = build_once(default_cache_dir() / "molecules" / name, _write)
    return [{"smiles": line} for line in (folder / "grown.smi").read_text().splitlines()]


def _write(folder: Path) -> None:
    (folder / "grown.smi").write_text("".join(f"{s}\n" for s in grow_molecules(NUM_EMBEDDED)))
