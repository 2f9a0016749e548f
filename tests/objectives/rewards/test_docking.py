"""Docking into a receptor of a few atoms, by the real program."""

import io
import math
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
    # What has no coordinates costs itself alone.
    pool = ScoringPool(MoleculeObjective([docking]), 0, 10.0)
    found = dict(pool.score(["OCCN", "[Xe]"]))
    assert found[0].score > 0
    assert found[0].raw == {"vina_docking": energy}
    assert math.isnan(found[1].score)
    assert found[1].error is not None
    # The pose is that of the molecule, in the box.
    (pose,) = Chem.ForwardSDMolSupplier(io.BytesIO(found[0].poses["vina_docking"].encode()))
    assert Chem.MolToSmiles(pose) == "NCCO"
    assert pose.GetProp("_Name") == "OCCN"
    assert float(pose.GetProp("energy_kcal_per_mol")) == pytest.approx(energy, abs=1e-3)
    assert abs(pose.GetConformer().GetPositions()).max() < 4.5 + 2
    # What docking cannot type costs no call.
    objective = MoleculeObjective([docking])
    assert objective.ruled_out("OCCN") is None
    assert objective.ruled_out("CB(O)O") == "vina_docking: no atom type for B"
    assert "several fragments" in objective.ruled_out("CO.Cl")
    # Maps are computed once, and give the energies of maps made for the ligand alone.
    made = docking._program
    docking.value(Chem.MolFromSmiles("CO"), "CO")
    assert docking._program is made
    assert own_energy(docking, molecule) == pytest.approx(energy, abs=1e-6)


def own_energy(docking, molecule) -> float:
    from vina import Vina

    program = Vina(sf_name="vina", cpu=1, seed=1, verbosity=0)
    program.set_receptor(docking.receptor)
    program.set_ligand_from_string(docking._ligand(molecule, "OCCN"))
    program.compute_vina_maps(center=list(docking.center), box_size=list(docking.box_size))
    program.dock(exhaustiveness=1, n_poses=1)
    return float(program.energies(n_poses=1)[0][0])


def test_another_receptor_at_the_same_path_is_another_objective(folder):
    receptor = folder / "other.pdbqt"
    text = (folder / "receptor.pdbqt").read_text()
    described = []
    for content in (text, text, text.replace("ATOM      1", "ATOM      9")):
        receptor.write_text(content)
        docking = VinaDocking(str(receptor), (0.0, 0.0, 0.0))
        described.append(MoleculeObjective([docking]).describe())
    assert described[0] == described[1] != described[2]
    assert set(described[0]["components"][0]["versions"]) == {"vina", "meeko"}


def test_missing_files_are_found_from_the_settings(folder):
    receptor = str(folder / "receptor.pdbqt")
    assert VinaDocking.missing_inputs({"receptor": receptor}) == []
    assert VinaDocking.missing_inputs({"receptor": receptor, "ligand": "no.pdb"}) == [
        "VinaDocking.ligand is no.pdb, and there is no such file"
    ]


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
