"""The seam of components of a molecule's score: one property, mapped to [0, 1]."""

import math
from abc import ABC, abstractmethod
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.transforms import Identity, Transform


class MoleculeComponent(ABC):
    """One property of a molecule. A subclass is picklable and named by `class_path` in a YAML.

    Public attributes are its settings: a ledger of scores is valid only for equal settings.

    Attributes:
        cost_ms: Approximate time per molecule. Cheap components are computed first, and after a
            factor of zero the others are skipped.

    Args:
        transform: Maps the property to [0, 1]; null: it is in [0, 1] already.
    """

    cost_ms: float = 0.1

    def __init__(self, transform: Transform | None = None) -> None:
        self.transform = transform or Identity()

    @property
    def name(self) -> str:
        """The name of the class, in words joined by underscores."""
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.lstrip("_")

    def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Load resources for scoring, before the first molecule's time starts."""

    @abstractmethod
    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute the property.

        Args:
            molecule: The molecule as an RDKit object.
            smiles: Its canonical SMILES.
        """

    def score(self, molecule: Mol, smiles: str) -> float:
        """Compute the property and map it to [0, 1].

        Raises:
            ValueError: If the property is nan, or the score is outside of [0, 1].
        """
        value = self.value(molecule, smiles)
        if math.isnan(value):  # `Step` would silently map it to 0
            raise ValueError(f"{self.name} gives nan")
        score = self.transform(value)
        if not 0 <= score <= 1:
            raise ValueError(
                f"{self.name} gives {value:g}, which its transform leaves at {score:g}: give it a "
                "transform that maps to [0, 1]"
            )
        return score


def describe(thing: Any) -> Any:
    """Convert a component or objective to plain data: classes and public attributes."""
    if isinstance(thing, (str, int, float, bool, type(None))):
        return thing
    if isinstance(thing, (list, tuple)):
        return [describe(part) for part in thing]
    if isinstance(thing, dict):
        return {str(key): describe(value) for key, value in thing.items()}
    kind = type(thing)
    public = {k: describe(v) for k, v in vars(thing).items() if not k.startswith("_")}
    # Without the package's name, as in version 0.1, so that ledgers keep their objective.
    module = kind.__module__.removeprefix("triptych.")
    return {"class_path": f"{module}.{kind.__qualname__}"} | public
