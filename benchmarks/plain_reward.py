"""A reward of drug-likeness, synthesizability and similarity to drugs: ours, and plain RDKit.

The reward is the geometric mean of four factors: QED; the reverse sigmoid of the SA score from 2 to
6; 1 for at most three hydrogen bond donors, else 0; the largest Tanimoto similarity to eight drugs.
"""

import math
from typing import Any

from triptych.datamodules.embedded.molecules import drugs
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.properties import DrugLikeness, HydrogenBondDonors
from triptych.objectives.rewards.molecules.structure import TargetSimilarity
from triptych.objectives.rewards.molecules.synthesizability import SyntheticAccessibility
from triptych.objectives.rewards.molecules.transforms import Step

TARGETS = (
    *("celecoxib", "diazepam", "paroxetine", "imatinib"),
    *("losartan", "rivaroxaban", "sildenafil", "carbamazepine"),
)


def drugs_task() -> MoleculeObjective:
    """Build the objective from our components."""
    known = drugs()
    return MoleculeObjective(
        [
            DrugLikeness(),
            SyntheticAccessibility(),
            HydrogenBondDonors(Step(0, 3)),
            TargetSimilarity([known[name] for name in TARGETS]),
        ]
    )


class PlainReward:
    """The same reward in plain RDKit, with every factor computed for every molecule."""

    def __init__(self) -> None:
        import os
        import sys

        from rdkit import Chem, RDConfig, rdBase
        from rdkit.Chem import rdFingerprintGenerator

        sys.path.append(os.path.join(RDConfig.RDContribDir, "SA_Score"))
        try:
            import sascorer
        finally:
            sys.path.pop()
        rdBase.DisableLog("rdApp.*")
        self._chem, self._sascorer = Chem, sascorer
        generator = rdFingerprintGenerator.GetMorganGenerator(2, fpSize=2048)
        self._fingerprint = generator.GetFingerprint
        known = drugs()
        self._targets = [self._fingerprint(Chem.MolFromSmiles(known[name])) for name in TARGETS]
        self("CCO")  # loads the fragment table of the SA score

    def canonical(self, smiles: str) -> str | None:
        """Return the canonical SMILES of a molecule; None if it is invalid."""
        molecule = self._chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            return None
        text: str = self._chem.MolToSmiles(molecule)
        return text

    def __call__(self, smiles: str) -> float:
        """Score a canonical SMILES string, parsed again as in the components of REINVENT."""
        from rdkit import DataStructs
        from rdkit.Chem import QED, rdMolDescriptors

        molecule: Any = self._chem.MolFromSmiles(smiles)
        hardness = self._sascorer.calculateScore(molecule)
        likeness = DataStructs.BulkTanimotoSimilarity(self._fingerprint(molecule), self._targets)
        factors = [
            QED.qed(molecule),
            1 / (1 + 10 ** (10 * 0.25 * (hardness - 4) / 4)),
            1.0 if rdMolDescriptors.CalcNumHBD(molecule) <= 3 else 0.0,
            max(likeness),
        ]
        if min(factors) == 0:
            return 0.0
        return math.exp(sum(math.log(factor) for factor in factors) / len(factors))
