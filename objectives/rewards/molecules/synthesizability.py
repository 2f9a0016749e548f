"""Synthesizability: Ertl and Schuffenhauer's score, or a retrosynthesis model."""

import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import ReverseSigmoid, Transform


class SyntheticAccessibility(MoleculeComponent):
    """SA score (Ertl and Schuffenhauer 2009), from 1 (easy) to 10 (hard), by RDKit Contrib.

    Args:
        transform: Maps the score to [0, 1]; null: a reverse sigmoid from 2 to 6, k = 0.25 (ours).
        name: In ledger, logs and tables; null: that of the class.
    """

    cost_ms = 0.9

    def __init__(self, transform: Transform | None = None, name: str | None = None) -> None:
        super().__init__(transform or ReverseSigmoid(low=2.0, high=6.0, k=0.25), name)

    def prepare(self) -> None:
        """Read the table of fragments."""
        _scorer()

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute the SA score."""
        return float(_scorer().calculateScore(molecule))


class RetrosynthesisModel(ABC):
    """Base of synthesis planners. Wrap a planner (Syntheseus, AiZynthFinder) in a subclass.

    Public attributes are its settings, as in components.
    """

    def prepare(self) -> None:  # noqa: B027 (some need nothing)
        """Load the model."""

    @abstractmethod
    def score(self, smiles: str) -> float:
        """Score a molecule in [0, 1]: 1 if a route from purchasable parts was found."""


class Retrosynthesis(MoleculeComponent):
    """The score of a retrosynthesis model. MARA's chemistry tasks use Syntheseus with MEGAN.

    Args:
        model: The model, by `class_path`.
        transform: Maps the score to [0, 1]; null: unchanged.
        name: In ledger, logs and tables; null: that of the class.
    """

    cost_ms = 10_000.0

    def __init__(
        self,
        model: RetrosynthesisModel,
        transform: Transform | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(transform, name)
        self.model = model

    def prepare(self) -> None:
        """Load the model."""
        self.model.prepare()

    def value(self, molecule: Mol, smiles: str) -> float:
        """Score by the model."""
        return self.model.score(smiles)


@cache
def _scorer() -> Any:
    """Load the module from RDKit Contrib, which is outside of the package."""
    from rdkit.Chem import RDConfig

    path = os.path.join(RDConfig.RDContribDir, "SA_Score", "sascorer.py")
    spec = importlib.util.spec_from_file_location("rdkit_sascorer", path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise ValueError(
            f"this RDKit brings no SA score (looked for {path}): install RDKit from its wheels"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.readFragmentScores()  # otherwise the first molecule would wait for it
    return module
