"""Docking scores of molecules in a protein's pocket, by AutoDock Vina."""

import importlib.util
from pathlib import Path
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import MoleculeComponent, Posed
from triptych.objectives.rewards.molecules.transforms import ReverseSigmoid, Transform

# What Vina has atom types for, as meeko writes them.
_ELEMENTS = frozenset(("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I", "Si", "At"))


class VinaDocking(MoleculeComponent):
    """The best binding energy that AutoDock Vina finds, in kcal/mol; lower is better.

    MARA docks with QuickVina2-GPU; we use Vina's CPU program, which has the same scoring function.
    3D coordinates are embedded by ETKDG and relaxed by MMFF, both seeded. The maps of the receptor
    are computed once in each process. The best pose is kept with the value. A molecule of several
    fragments, or with an element that Vina has no type for, scores 0 and costs no oracle call.

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
        name: In ledger, logs and tables; null: `vina_docking`.

    Raises:
        ValueError: If vina or meeko is not installed, a file is missing or unreadable, or not
            exactly one of `center` and `ligand` is given.
    """

    cost_ms = 30_000.0
    unit = "kcal/mol"
    packages = ("vina", "meeko")
    input_files = ("receptor", "ligand")

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
        name: str | None = None,
    ) -> None:
        super().__init__(transform or ReverseSigmoid(low=-16.0, high=0.0, k=0.15), name)
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
        self._program: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_program": None}

    def prepare(self) -> None:
        """Read the receptor and compute its maps, once in each process."""
        if self._program is None:
            from vina import Vina

            program: Any = Vina(sf_name="vina", cpu=self.num_cpus, seed=self.seed, verbosity=0)
            program.set_receptor(self.receptor)
            assert self.center is not None
            # Without a ligand, maps are made for all types of atoms.
            program.compute_vina_maps(center=list(self.center), box_size=list(self.box_size))
            self._program = program

    def refuses(self, molecule: Mol, smiles: str) -> str | None:
        """Say whether the molecule has several fragments, or an element without a type."""
        if "." in smiles:
            return "several fragments, and docking takes one: set largest_fragment of the reward"
        symbols = {atom.GetSymbol() for atom in molecule.GetAtoms()} - _ELEMENTS
        return f"no atom type for {', '.join(sorted(symbols))}" if symbols else None

    def identity(self) -> dict[str, Any]:
        """Return versions too; not how many threads dock."""
        return super().identity() | {"num_cpus": None}

    def value(self, molecule: Mol, smiles: str) -> Posed:
        """Dock a molecule.

        Returns:
            The energy in kcal/mol, with the pose.

        Raises:
            ValueError: If no coordinates can be found for it.
        """
        self.prepare()
        self._program.set_ligand_from_string(self._ligand(molecule, smiles))
        self._program.dock(exhaustiveness=self.exhaustiveness, n_poses=1)
        energy = float(self._program.energies(n_poses=1)[0][0])
        return Posed(energy, _sdf(self._program.poses(n_poses=1), smiles, energy))

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


def _sdf(pdbqt: str, smiles: str, energy: float) -> str:
    """Write a pose as an entry of an SD file, with its SMILES and energy as properties."""
    from meeko import PDBQTMolecule, RDKitMolCreate

    found, failures = RDKitMolCreate.write_sd_string(PDBQTMolecule(pdbqt, skip_typing=True))
    if failures or "$$$$" not in found:
        raise ValueError(f"meeko cannot read the pose of {smiles}")
    entry = str(found).split("$$$$")[0].rstrip("\n").split("\n")
    end = next(place for place, line in enumerate(entry) if line.startswith("M  END"))
    block = "\n".join([smiles, *entry[1 : end + 1]])
    return f"{block}\n>  <energy_kcal_per_mol>\n{energy:.3f}\n\n$$$$\n"


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
