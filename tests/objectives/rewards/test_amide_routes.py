"""Amide couplings, cut by hand."""

import pickle

import pytest
from rdkit import Chem

from triptych.objectives.rewards.molecules.amide_routes import AmideRoutes, amide_bonds, pieces
from triptych.objectives.rewards.molecules.component import describe
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.synthesizability import Retrosynthesis

PARACETAMOL = "CC(=O)Nc1ccc(O)cc1"
# Acetic acid, glycine, aniline: two couplings.
CHAIN = "CC(=O)NCC(=O)Nc1ccccc1"


@pytest.mark.parametrize(
    ("smiles", "count"),
    [
        (PARACETAMOL, 1),
        (CHAIN, 2),
        ("O=CN1CCOCC1", 1),  # of formic acid
        ("CN(C)C(=O)c1ccccc1", 1),
        ("CNC(=O)NC", 0),  # urea
        ("COC(=O)NC", 0),  # carbamate
        ("O=C1CCCCN1", 0),  # lactam
        ("CC(=O)NC(C)=O", 0),  # imide
        ("CC(=O)NN", 0),  # hydrazide
        ("CC(=O)NO", 0),  # hydroxamate
        ("CC(=O)OC", 0),  # ester
    ],
)
def test_which_bonds_a_coupling_makes(smiles, count):
    assert len(amide_bonds(Chem.MolFromSmiles(smiles))) == count


def test_pieces_by_hand():
    chain = Chem.MolFromSmiles(CHAIN)
    both = tuple(amide_bonds(chain))
    assert pieces(chain, both) == {"CC(=O)O", "NCC(=O)O", "Nc1ccccc1"}
    halves = [pieces(chain, (bond,)) for bond in both]
    assert {"CC(=O)O", "NCC(=O)Nc1ccccc1"} in halves
    assert {"CC(=O)NCC(=O)O", "Nc1ccccc1"} in halves
    # An amine that was written in brackets gets its hydrogen; stereochemistry is left out.
    proline = Chem.MolFromSmiles("CC(=O)[N]1CCC[C@H]1C(=O)O")
    assert pieces(proline, tuple(amide_bonds(proline))) == {"CC(=O)O", "O=C(O)C1CCCN1"}


def test_a_route_needs_all_its_pieces(tmp_path):
    def score(blocks: str, smiles: str, **settings) -> float:
        (tmp_path / "blocks.smi").write_text(blocks)
        return AmideRoutes(str(tmp_path / "blocks.smi"), **settings).score(smiles)

    assert score("OC(C)=O acetic acid\n\nOc1ccc(N)cc1 aminophenol\n", PARACETAMOL) == 1
    assert score("OC(C)=O\n", PARACETAMOL) == 0
    assert score(f"{PARACETAMOL}\n", PARACETAMOL) == 0  # bought, not made
    assert score("CC(=O)O\nNCC(=O)O\nNc1ccccc1\n", CHAIN) == 1
    assert score("CC(=O)O\nNCC(=O)Nc1ccccc1\n", CHAIN) == 1
    assert score("CC(=O)O\nNCC(=O)O\n", CHAIN) == 0
    assert score("CC(=O)O\nNCC(=O)O\nNc1ccccc1\n", CHAIN, max_cuts=1) == 0
    assert score("CC(=O)O\n", "C1CC") == 0
    with pytest.raises(ValueError, match="line 2: 'C1CC' is no molecule"):
        score("C\nC1CC\n", PARACETAMOL)
    with pytest.raises(ValueError, match="max_cuts is 0"):
        AmideRoutes(str(tmp_path / "blocks.smi"), max_cuts=0)
    with pytest.raises(ValueError, match=r"other\.smi, and there is no such file"):
        AmideRoutes(str(tmp_path / "other.smi"))


def test_a_ledger_tells_other_building_blocks(tmp_path):
    path = tmp_path / "blocks.smi"
    described = []
    for blocks in ("CC(=O)O\nNc1ccc(O)cc1\n", "CC(=O)O\n"):
        path.write_text(blocks)
        objective = MoleculeObjective([Retrosynthesis(AmideRoutes(str(path)))])
        assert objective.score(PARACETAMOL).score == float("Nc1" in blocks)
        assert describe(pickle.loads(pickle.dumps(objective))) == describe(objective)
        described.append(describe(objective))
    assert described[0] != described[1]
