"""The weighted mean of components, computed lazily and in batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from triptych.models.diversify.molecules.molecule import Mol, read_molecule
from triptych.objectives.rewards.molecules.component import (
    Failure,
    MoleculeComponent,
    Posed,
    describe,
)


@dataclass(frozen=True)
class MoleculeScore:
    """The score of a molecule.

    Attributes:
        score: In [0, 1]; nan with an error.
        components: Score of each component that was computed, by name.
        error: Why there is no score; None without an error.
        raw: Property of each component that was computed, before its transform.
        poses: Pose of each component that has one, as an entry of an SD file.
        was_killed: Whether it hung, or ended the process.
    """

    score: float
    components: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    raw: dict[str, float] = field(default_factory=dict)
    poses: dict[str, str] = field(default_factory=dict)
    was_killed: bool = False

    @classmethod
    def failed(cls, why: str, was_killed: bool = False) -> "MoleculeScore":
        """Return the result for a molecule that could not be scored."""
        return cls(math.nan, error=why, was_killed=was_killed)


class MoleculeObjective:
    """The weighted mean of components, times filters.

    The geometric mean, prod v^(w / sum w), is REINVENT's product, and the scale of MARA's
    thresholds. Components are computed in the order of their cost. Once a filter or, in the
    geometric mean, a component is zero, so is the score, and the others are skipped.

    Args:
        components: The components. One that is a filter by its nature (`CustomAlerts`) multiplies
            the mean, whatever its weight.
        weights: A positive weight for each; null: 1 for all.
        mean: "geometric" or "arithmetic".
        filters: Components that multiply the mean; null: none.
        preliminary: Cheap filters that are computed before an oracle call is spent. A molecule
            that scores 0 there costs no call. Null: none.

    Raises:
        ValueError: If there is no component, two have the same given name, or weights do not fit.
    """

    #: Only what is set is described, so that ledgers of earlier versions keep their objective.
    filters: list[MoleculeComponent] | tuple[()] = ()
    preliminary: list[MoleculeComponent] | tuple[()] = ()

    def __init__(
        self,
        components: Sequence[MoleculeComponent],
        weights: Sequence[float] | None = None,
        mean: Literal["geometric", "arithmetic"] = "geometric",
        filters: Sequence[MoleculeComponent] | None = None,
        preliminary: Sequence[MoleculeComponent] | None = None,
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
        if mean not in ("geometric", "arithmetic"):
            raise ValueError(f'mean is {mean!r}: set it to "geometric" or "arithmetic"')
        self.mean = mean
        if filters:
            self.filters = list(filters)
        if preliminary:
            self.preliminary = list(preliminary)
        self._parts: list[MoleculeComponent] = [*self.components, *self.filters, *self.preliminary]
        self._names = _names(self._parts)
        # Weight of each part in the mean; None for those that multiply it.
        self._weights = [
            None if part.is_filter else weight
            for part, weight in zip(self.components, self.weights, strict=True)
        ] + [None] * (len(self._parts) - len(self.components))
        self._order = sorted(range(len(self._parts)), key=lambda i: self._parts[i].cost_ms)

    @property
    def names(self) -> list[str]:
        """Names of components and filters; a second one of the same name is numbered."""
        return list(self._names)

    @property
    def parts(self) -> dict[str, MoleculeComponent]:
        """Components and filters by name."""
        return dict(zip(self._names, self._parts, strict=True))

    @property
    def batch_size(self) -> int:
        """Molecules to score at once: the largest batch that a component takes."""
        sizes: list[int] = [part.batch_size for part in self._parts]
        return max(sizes)

    def describe(self) -> dict[str, Any]:
        """Return all that determines scores: settings, files, sources, and RDKit's version."""
        import rdkit

        return {"rdkit": rdkit.__version__, **describe(self)}

    def prepare(self) -> None:
        """Prepare the components."""
        read_molecule("C")  # imports RDKit
        for component in self._parts:
            component.prepare()

    @property
    def rules_out(self) -> bool:
        """Whether a filter or component may refuse a molecule before a call."""
        refuses = MoleculeComponent.refuses
        return bool(self.preliminary) or any(type(p).refuses is not refuses for p in self._parts)

    def ruled_out(self, smiles: str) -> str | None:
        """Say why a molecule scores 0 without an oracle call.

        Args:
            smiles: Canonical SMILES.

        Returns:
            Name of the preliminary filter that is 0, or why a component refuses the molecule; None
            if it has to be scored.

        Raises:
            ValueError: If a preliminary filter fails on it.
        """
        molecule = read_molecule(smiles)
        if molecule is None:
            return "no molecule"
        for part in self._parts:
            why = part.refuses(molecule, smiles)
            if why is not None:
                return f"{part.name}: {why}"
        first = len(self._parts) - len(self.preliminary)
        for name, part in zip(self._names[first:], self._parts[first:], strict=True):
            if part.score(molecule, smiles) == 0:
                return name
        return None

    def score(self, smiles: str) -> MoleculeScore:
        """Score a molecule, given as canonical SMILES.

        Raises:
            ValueError: If the molecule is invalid, a component fails, or is outside of [0, 1].
        """
        (found,) = self.scores([smiles])
        if found.error is not None:
            raise ValueError(found.error)
        return found

    def scores(self, smiles: Sequence[str]) -> list[MoleculeScore]:
        """Score molecules, given as canonical SMILES; one that fails has an error and no score."""
        rows = [_Row(text, read_molecule(text)) for text in smiles]
        for row in rows:
            if row.molecule is None:
                row.error = f"ValueError: {row.smiles!r} is no molecule"
        for index in self._order:
            part, size = self._parts[index], max(1, self._parts[index].batch_size)
            ends_at_zero = self._weights[index] is None or self.mean == "geometric"
            asked = [row for row in rows if row.is_open]
            for first in range(0, len(asked), size):
                self._ask(part, self._names[index], asked[first : first + size], ends_at_zero)
        return [row.result(self._combined(row)) for row in rows]

    def _ask(
        self, part: MoleculeComponent, name: str, rows: "list[_Row]", ends_at_zero: bool
    ) -> None:
        try:
            found = part.values([row.molecule for row in rows], [row.smiles for row in rows])
            if len(found) != len(rows):
                raise ValueError(f"{name} gives {len(found)} values for {len(rows)} molecules")
        except Exception as error:  # a user's code or program: anything can happen
            found = [Failure(f"{type(error).__name__}: {error}")] * len(rows)
        for row, value in zip(rows, found, strict=True):
            if isinstance(value, Failure):
                row.error = value.reason
                continue
            try:
                score = part.score_of(float(value))
            except Exception as error:  # not a number, or outside of [0, 1]
                row.error = f"{type(error).__name__}: {error}"
                continue
            row.scores[name], row.raw[name] = score, float(value)
            if isinstance(value, Posed) and value.sdf:
                row.poses[name] = value.sdf
            row.is_zero |= ends_at_zero and score == 0

    def _combined(self, row: "_Row") -> float:
        """Combine the scores of a molecule; nan after an error."""
        if row.error is not None:
            return math.nan
        if row.is_zero:
            return 0.0
        pairs, factor = [], 1.0
        for name, weight in zip(self._names, self._weights, strict=True):
            if weight is None:
                factor *= row.scores[name]
            else:
                pairs.append((row.scores[name], weight))
        total = sum(weight for _, weight in pairs)
        if not pairs:
            return factor
        if self.mean == "arithmetic":
            return factor * (sum(score * weight for score, weight in pairs) / total)
        return factor * math.exp(sum(weight * math.log(score) for score, weight in pairs) / total)


@dataclass
class _Row:
    """One molecule on its way through the components."""

    smiles: str
    molecule: Mol | None
    scores: dict[str, float] = field(default_factory=dict)
    raw: dict[str, float] = field(default_factory=dict)
    poses: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    is_zero: bool = False

    @property
    def is_open(self) -> bool:
        """Whether further components are to be computed."""
        return self.error is None and not self.is_zero

    def result(self, score: float) -> MoleculeScore:
        return MoleculeScore(score, self.scores, self.error, self.raw, self.poses)


def _names(parts: Sequence[MoleculeComponent]) -> list[str]:
    """Name the parts; a second one of the same class is numbered, a given name is as it is."""
    counts: dict[str, int] = {}
    names = []
    for part in parts:
        number = counts[part.name] = counts.get(part.name, 0) + 1
        names.append(part.name if number == 1 else f"{part.name}_{number}")
    given = [part.name for part in parts if part.name != part.default_name]
    for name in given:
        if names.count(name) > 1 or given.count(name) > 1:
            raise ValueError(
                f"two components are called {name!r}: give each a name of its own (name), which "
                "the ledger keeps its scores under"
            )
    return names
