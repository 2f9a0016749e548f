"""The tasks of the molecule study and their scoring components."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.studies.arms import Settings, probe

_COMPONENTS = "triptych.objectives.rewards.molecules"
# Six fused rings of drugs as SMARTS; about 5% of ZINC contain one of them.
RINGS = {
    "indole": "c1ccc2nccc2c1",
    "benzimidazole": "c1ccc2ncnc2c1",
    "quinoline": "c1ccc2ncccc2c1",
    "quinazoline": "c1ccc2ncncc2c1",
    "benzothiazole": "c1ccc2scnc2c1",
    "benzofuran": "c1ccc2occc2c1",
}
DRUGS = (
    *("celecoxib", "imatinib", "haloperidol", "sildenafil"),
    *("zolpidem", "linezolid", "donepezil", "losartan"),
)


@dataclass(frozen=True)
class Task:
    """One objective.

    Args:
        components: Settings of the components; their geometric mean is the score.
        threshold: Minimum score of a hit, and the tau of MARA.
    """

    components: tuple[Settings, ...]
    threshold: float

    def reward(self, budget: int) -> Settings:
        """Return the settings of the oracle."""
        objective = probe(f"{_COMPONENTS}.objective.MoleculeObjective")
        objective["init_args"]["components"] = [dict(each) for each in self.components]
        return probe(
            f"{_COMPONENTS}.oracle_reward.OracleReward", objective=objective, budget=budget
        )


def tasks() -> Mapping[str, Task]:
    """Return the tasks by name; the first one has the bounds.

    About 6% of the ZINC molecules are hits of the first task, none of the second, 3% of the others.
    """
    from triptych.datamodules.embedded.molecules import drugs

    like = _part("structure.TargetSimilarity", targets=[drugs()[name] for name in DRUGS])
    easy = _part("synthesizability.SyntheticAccessibility")
    few_donors = _part("properties.HydrogenBondDonors", transform=_step(0, 3))
    drug_like = _part("properties.DrugLikeness")
    return {
        "scaffolds": Task(
            (
                _part("structure.Substructure", patterns=list(RINGS.values())),
                _part("properties.DrugLikeness", transform=_step(0.6, 1.0)),
            ),
            0.99,
        ),
        "similarity": Task((drug_like, easy, few_donors, like), 0.75),
        "properties": Task(
            (
                *(drug_like, easy, few_donors),
                _part("properties.LogP", transform=_window(1, 4, 3)),
                _part("properties.PolarSurfaceArea", transform=_window(40, 90, 50)),
                _part("properties.MolecularWeight", transform=_window(250, 400, 150)),
            ),
            0.96,
        ),
        "docking stand-in": Task(
            (
                *(drug_like, easy, few_donors),
                _part(
                    "python_component.PythonComponent",
                    function="triptych.studies.diversify.molecules.molecule_tasks:pocket_energy",
                    # Scale of the docking scores in 2505.08774.
                    transform=_transform("ReverseSigmoid", low=-16.0, high=0.0, k=0.15),
                ),
            ),
            0.88,
        ),
    }


def pocket_energy(molecule: Any) -> float:
    """Compute a surrogate of a docking energy in kcal/mol, without a protein.

    It falls with size, aromatic rings, acceptors and an amide, as docking energies do. It rises
    beyond 30 heavy atoms and 6 rotatable bonds.

    >>> from triptych.models.diversify.molecules.molecule import read_molecule
    >>> round(pocket_energy(read_molecule("c1ccccc1")), 2)  # -4 - 6 x 0.12 - 1.2
    -5.92
    """
    from rdkit.Chem import rdMolDescriptors

    count: Any = rdMolDescriptors
    size, bends = molecule.GetNumHeavyAtoms(), count.CalcNumRotatableBonds(molecule)
    gain = 4 + 0.12 * min(size, 30) + 1.2 * min(count.CalcNumAromaticRings(molecule), 3)
    gain += 0.6 * min(count.CalcNumHBA(molecule), 5) + (count.CalcNumAmideBonds(molecule) > 0)
    energy: float = -gain + 0.3 * max(0, size - 30) + 0.25 * max(0, bends - 6)
    return energy


def _part(name: str, **settings: Any) -> Settings:
    return probe(f"{_COMPONENTS}.{name}", **settings)


def _transform(name: str, **settings: Any) -> Settings:
    return probe(f"{_COMPONENTS}.transforms.{name}", **settings)


def _step(low: float, high: float) -> Settings:
    return _transform("Step", low=low, high=high)


def _window(low: float, high: float, width: float) -> Settings:
    """Return a window: 1/2 at both ends, 1/(1 + 10^-3) in the middle if `width` is its width."""
    steepness = {"divisor": width, "falling": 6.0, "rising": 6.0}
    return _transform("DoubleSigmoid", low=low, high=high, **steepness)
