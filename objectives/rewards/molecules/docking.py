"""Docking scores of molecules in a protein's pocket, by AutoDock Vina."""

import importlib.util
from pathlib import Path
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import ReverseSigmoid, Transform


class VinaDocking(MoleculeComponent):
    """The best binding energy that AutoDock Vina finds, in kcal/mol; lower is better.

    MARA docks with QuickVina2-GPU; we use Vina's CPU program, which has the same scoring function.
    3D coordinates are embedded by ETKDG and relaxed by MMFF, both seeded.

    Args:
        receptor: PDBQT file of the protein.
        center: Center of the search box, in angstrom; null: that of `ligand`.
        box_size: Sides of the search box, in angstrom.
        exhaustiveness: Search effort of Vina.
        num_cpus: Threads per docking.
        seed: Seed of the coordinates and of the search.
        transform: Maps the energy to [0, 1]; null: the reverse sigmoid from -16 to 0 with k = 0.15
            of MARA's sister paper (2505.08774).
        ligand: PDB or SDF file of a molecule in the pocket; the mean of its atoms is the center of
            the box.

    Raises:
        ValueError: If vina or meeko is not installed, a file is missing or unreadable, or not
            exactly one of `center` and `ligand` is given.
    """

    cost_ms = 30_000.0

    def __init__(
        self,
        receptor: str,
        center: tuple[float, float, float] | None = None,
        box_size: tuple[float, float, float] = (20.0, 20.0, 20.0),
        exhaustiveness: int = 8,
        num_cpus: int = 1,
        seed: int = 1,
        transform: Transform | None = None,
        ligand: str | None = None,
    ) -> None:
        super().__init__(transform or ReverseSigmoid(low=-16.0, high=0.0, k=0.15))
        missing = [name for name in ("vina", "meeko") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"docking needs {' and '.join(missing)}: install the extra `docking` "
                "(pip install -c constraints.txt vina meeko)"
            )
        if not Path(receptor).is_file():
            raise ValueError(
                f"receptor is {receptor}, and there is no such file: give the protein as PDBQT, "
                "which meeko's mk_prepare_receptor.py makes of a PDB file"
            )
        if (center is None) == (ligand is None):
            raise ValueError("give the pocket by center or by ligand, one of them")
        self.receptor, self.box_size, self.ligand = receptor, box_size, ligand
        self.center = _middle(Path(ligand)) if ligand is not None else center
        self.exhaustiveness, self.num_cpus, self.seed = exhaustiveness, num_cpus, seed

    def value(self, molecule: Mol, smiles: str) -> float:
        """Dock a molecule.

        Raises:
            ValueError: If no coordinates can be found for it.
        """
        from vina import Vina

        program: Any = Vina(sf_name="vina", cpu=self.num_cpus, seed=self.seed, verbosity=0)
        program.set_receptor(self.receptor)
        program.set_ligand_from_string(self._ligand(molecule, smiles))
        assert self.center is not None
        program.compute_vina_maps(center=list(self.center), box_size=list(self.box_size))
        program.dock(exhaustiveness=self.exhaustiveness, n_poses=1)
        return float(program.energies(n_poses=1)[0][0])

    def _ligand(self, molecule: Mol, smiles: str) -> str:
        """Convert a molecule with coordinates to PDBQT."""
        from meeko import MoleculePreparation, PDBQTWriterLegacy
        from rdkit import Chem
        from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

        whole = Chem.AddHs(molecule)
        if rdDistGeom.EmbedMolecule(whole, randomSeed=self.seed) != 0:
            raise ValueError(f"no coordinates were found for {smiles}")
        rdForceFieldHelpers.MMFFOptimizeMolecule(whole)
        (setup,) = MoleculePreparation().prepare(whole)
        text, is_ok, why = PDBQTWriterLegacy.write_string(setup)
        if not is_ok:
            raise ValueError(f"meeko cannot prepare {smiles}: {why}")
        return str(text)


def _middle(path: Path) -> tuple[float, float, float]:
    """Average the positions of a molecule's atoms, in angstrom."""
    from rdkit import Chem, rdBase

    if not path.is_file():
        raise ValueError(f"ligand is {path}, and there is no such file")
    with rdBase.BlockLogs():
        if path.suffix == ".pdb":
            molecule = Chem.MolFromPDBFile(str(path), sanitize=False)
        else:
            molecule = Chem.MolFromMolFile(str(path), sanitize=False)  # the first one
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"ligand is {path}, which holds no molecule: give a .pdb or .sdf file")
    x, y, z = molecule.GetConformer().GetPositions().mean(0).tolist()
    return x, y, z
