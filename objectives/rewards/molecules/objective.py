"""The weighted mean of components, computed lazily."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from triptych.models.diversify.molecules.molecule import read_molecule
from triptych.objectives.rewards.molecules.component import MoleculeComponent, describe


@dataclass(frozen=True)
class MoleculeScore:
    """The score of a molecule.

    Attributes:
        score: In [0, 1].
        components: Score of each component that was computed, by name.
        error: The error message, with a score of 0; None without an error.
    """

    score: float
    components: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class MoleculeObjective:
    """The weighted mean of components.

    The geometric mean, prod v^(w / sum w), is REINVENT's product, and the scale of MARA's
    thresholds. Components are computed in the order of their cost. Once one of them is zero, so is
    the geometric mean, and the others are skipped.

    Args:
        components: The components.
        weights: A positive weight for each; null: 1 for all.
        mean: "geometric" or "arithmetic".

    Raises:
        ValueError: If there is no component, two have the same name, or weights do not fit.
    """

    def __init__(
        self,
        components: Sequence[MoleculeComponent],
        weights: Sequence[float] | None = None,
        mean: Literal["geometric", "arithmetic"] = "geometric",
    ) -> None:
        if not components:
            raise ValueError("the objective has no components: give at least one")
        self.components = list(components)
        self.weights = [1.0] * len(components) if weights is None else [float(w) for w in weights]
        if len(self.weights) != len(components) or not all(0 < w < math.inf for w in self.weights):
            raise ValueError(
                f"the objective has {len(components)} components and the weights {self.weights}: "
                "give one positive weight for each"
            )
        self.mean = mean
        counts: dict[str, int] = {}
        self._names = []
        for component in self.components:
            number = counts[component.name] = counts.get(component.name, 0) + 1
            self._names.append(component.name if number == 1 else f"{component.name}_{number}")
        self._order = sorted(range(len(components)), key=lambda i: self.components[i].cost_ms)

    @property
    def names(self) -> list[str]:
        """Names of the components; a second component of the same name is numbered."""
        return list(self._names)

    def describe(self) -> dict[str, Any]:
        """Return all settings that determine scores, including RDKit's version."""
        import rdkit

        return {"rdkit": rdkit.__version__, **describe(self)}

    def prepare(self) -> None:
        """Prepare the components."""
        read_molecule("C")  # imports RDKit
        for component in self.components:
            component.prepare()

    def score(self, smiles: str) -> MoleculeScore:
        """Score a molecule, given as canonical SMILES.

        Raises:
            ValueError: If the molecule is invalid, or a component is outside of [0, 1].
        """
        molecule = read_molecule(smiles)
        if molecule is None:
            raise ValueError(f"{smiles!r} is no molecule")
        found: dict[str, float] = {}
        for index in self._order:
            score = self.components[index].score(molecule, smiles)
            found[self._names[index]] = score
            if score == 0 and self.mean == "geometric":
                return MoleculeScore(0.0, found)
        scores = [found[name] for name in self._names]
        total = sum(self.weights)
        pairs = list(zip(scores, self.weights, strict=True))
        if self.mean == "arithmetic":
            return MoleculeScore(sum(score * weight for score, weight in pairs) / total, found)
        log_mean = sum(weight * math.log(score) for score, weight in pairs) / total
        return MoleculeScore(math.exp(log_mean), found)
