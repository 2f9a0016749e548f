"""Docking into a receptor of a few atoms, by the real program."""

from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from triptych.objectives.rewards.molecules.docking import VinaDocking
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.scoring_pool import ScoringPool

pytest.importorskip(
    "vina",
    reason="docking needs the extra `docking`; vina has wheels for Linux on x86-64 alone, and for "
    "Python up to 3.12",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tripeptide as the receptor, and a ligand beside it in both formats."""
    from meeko import MoleculePreparation, PDBQTWriterLegacy

    folder = tmp_path_factory.mktemp("docking")
    peptide = Chem.AddHs(Chem.MolFromSmiles("NCC(=O)NCC(=O)NCC(=O)O"))
    rdDistGeom.EmbedMolecule(peptide, randomSeed=1)
    text, _, _ = PDBQTWriterLegacy.write_string(MoleculePreparation().prepare(peptide)[0])
    atoms = [line for line in text.splitlines() if line.startswith("ATOM")]
    (folder / "receptor.pdbqt").write_text("\n".join(atoms) + "\n")
    ligand = Chem.MolFromSmiles("OC")
    rdDistGeom.EmbedMolecule(ligand, randomSeed=1)
    for atom, place in enumerate([(1.0, 2.0, -1.0), (2.0, 2.0, -1.0)]):
        ligand.GetConformer().SetAtomPosition(atom, place)
    (folder / "ligand.pdb").write_text(Chem.MolToPDBBlock(ligand))
    (folder / "ligand.sdf").write_text(Chem.MolToMolBlock(ligand) + "$$$$\n")
    return folder


def test_a_receptor_of_a_few_atoms(folder):
    docking = VinaDocking(
        str(folder / "receptor.pdbqt"), (0.0, 0.0, 0.0), (9.0, 9.0, 9.0), exhaustiveness=1
    )
    molecule = Chem.MolFromSmiles("OCCN")
    energy = docking.value(molecule, "OCCN")
    assert -4 < energy < 0
    assert docking.value(molecule, "OCCN") == energy  # seeded
    # 1 / (1 + 10^(1.5 (v + 8) / 16))
    assert docking.score(molecule, "OCCN") == pytest.approx(
        1 / (1 + 10 ** (1.5 * (energy + 8) / 16))
    )
    # What has no place in the box, or no coordinates, costs itself alone.
    pool = ScoringPool(MoleculeObjective([docking]), 0, 10.0)
    found = dict(pool.score(["OCCN", "[Xe]"]))
    assert found[0].score > 0
    assert found[1].score == 0
    assert found[1].error is not None


def test_the_pocket_by_a_ligand(folder):
    receptor = str(folder / "receptor.pdbqt")
    for name in ("ligand.pdb", "ligand.sdf"):
        assert VinaDocking(receptor, ligand=str(folder / name)).center == (1.5, 2.0, -1.0)
    (folder / "empty.sdf").write_text("")
    for settings, match in [
        ({"receptor": str(folder / "nothing.pdbqt")}, "receptor is .*nothing.pdbqt, and there is"),
        ({}, "by center or by ligand, one of them"),
        ({"center": (0.0, 0.0, 0.0), "ligand": "ligand.pdb"}, "one of them"),
        ({"ligand": str(folder / "nothing.pdb")}, "nothing.pdb, and there is no such file"),
        ({"ligand": str(folder / "empty.sdf")}, "which holds no molecule"),
    ]:
        with pytest.raises(ValueError, match=match):
            VinaDocking(**{"receptor": receptor} | settings)
