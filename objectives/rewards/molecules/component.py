"""The seam of what a molecule is scored by: one property, mapped to [0, 1]."""

import math
from abc import ABC, abstractmethod
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.transforms import Identity, Transform


class MoleculeComponent(ABC):
    """One property of a molecule. A subclass is picklable and named by `class_path` in a YAML.

    Public attributes are its settings: a ledger of scores is good only for the same ones.

    Attributes:
        cost_ms: About how long a molecule takes. Cheap components come first, and a factor of zero
            spares the others.

    Args:
        transform: Maps the property to [0, 1]; null: it lies there already.
    """

    cost_ms: float = 0.1

    def __init__(self, transform: Transform | None = None) -> None:
        self.transform = transform or Identity()

    @property
    def name(self) -> str:
        """Its class's name, in words joined by underscores."""
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.lstrip("_")

    def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Load what scoring needs, before the first molecule's time counts."""

    @abstractmethod
    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute the property.

        Args:
            molecule: As RDKit has read it.
            smiles: Its canonical SMILES.
        """

    def score(self, molecule: Mol, smiles: str) -> float:
        """Compute the property and map it to [0, 1].

        Raises:
            ValueError: If the property is nan, or what comes out does not lie in [0, 1].
        """
        value = self.value(molecule, smiles)
        if math.isnan(value):  # which a step would map to 0 in silence
            raise ValueError(f"{self.name} gives nan")
        score = self.transform(value)
        if not 0 <= score <= 1:
            raise ValueError(
                f"{self.name} gives {value:g}, which its transform leaves at {score:g}: give it a "
                "transform that maps to [0, 1]"
            )
        return score


def describe(thing: Any) -> Any:
    """Write a component, or anything made of them, as plain data: classes and public attributes."""
    if isinstance(thing, (str, int, float, bool, type(None))):
        return thing
    if isinstance(thing, (list, tuple)):
        return [describe(part) for part in thing]
    if isinstance(thing, dict):
        return {str(key): describe(value) for key, value in thing.items()}
    kind = type(thing)
    public = {k: describe(v) for k, v in vars(thing).items() if not k.startswith("_")}
    # Without the package's name, as in version 0.1: an oracle's ledger stays with its objective.
    module = kind.__module__.removeprefix("triptych.")
    return {"class_path": f"{module}.{kind.__qualname__}"} | public
