"""The seam of components of a molecule's score: one property, mapped to [0, 1].

A component of single molecules has `value`; one of batches (a program, a server, a network) has
`values`:

    class OwnModel(MoleculeComponent):
        batch_size = 64

        def values(self, molecules, smiles):
            return [Failure("no charges") if y is None else y for y in my_model(smiles)]
"""

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.identity import (
    file_hashes,
    package_versions,
    source_lines,
)
from triptych.objectives.rewards.molecules.transforms import Identity, Transform


@dataclass(frozen=True)
class Failure:
    """In place of a value: this molecule could not be scored.

    It says nothing about the molecule, which gets no score and no weight in training.

    Attributes:
        reason: Why, for the ledger and the log.
    """

    reason: str


class Posed(float):
    """A value with the pose that it was computed from.

    Attributes:
        sdf: The pose, as one entry of an SD file.
    """

    sdf: str

    def __new__(cls, value: float, sdf: str = "") -> "Posed":
        """Make a number with a pose."""
        made = super().__new__(cls, value)
        made.sdf = sdf
        return made


class MoleculeComponent(ABC):  # noqa: B024 (one of `value` and `values` is needed, not both)
    """One property of a molecule. A subclass is picklable and named by `class_path` in a YAML.

    Public attributes are its settings: a ledger of scores is valid only for equal settings. The
    files that they name count with their content, classes of your own with their source.

    Attributes:
        cost_ms: Approximate time per molecule. Cheap components are computed first, and after a
            factor of zero the others are skipped.
        batch_size: Most molecules of one call of `values`; above 1, molecules are scored in
            batches.
        is_filter: Whether the score multiplies the mean of the other components, rather than being
            a part of it.
        unit: Of the property, for tables and figures; empty if it has none.
        packages: Distributions whose version decides scores.
        input_files: Settings that name files which must exist before a search begins.

    Args:
        transform: Maps the property to [0, 1]; null: it is in [0, 1] already.
        name: In ledger, logs and tables; null: that of the class.
    """

    cost_ms: float = 0.1
    batch_size: int = 1
    is_filter: bool = False
    unit: str = ""
    packages: tuple[str, ...] = ()
    input_files: tuple[str, ...] = ()
    _given_name: str | None = None

    def __init__(self, transform: Transform | None = None, name: str | None = None) -> None:
        self.transform = transform or Identity()
        self._given_name = name or None

    @property
    def name(self) -> str:
        """The given name, or that of the class, in words joined by underscores."""
        return self._given_name or self.default_name

    @property
    def default_name(self) -> str:
        """The name of the class, in words joined by underscores."""
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.lstrip("_")

    @classmethod
    def missing_inputs(cls, settings: Mapping[str, Any]) -> list[str]:
        """Say which inputs are missing, from the settings of a YAML, before anything is made.

        Args:
            settings: The arguments of the constructor.

        Returns:
            One message for each, empty where nothing is missing.
        """
        given = {key: settings.get(key) for key in cls.input_files}
        return [
            f"{cls.__name__}.{key} is {path}, and there is no such file"
            for key, path in given.items()
            if isinstance(path, str) and not Path(path).exists()
        ]

    def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Load resources for scoring, before the first molecule's time starts.

        What is raised here ends the run.
        """

    def refuses(self, molecule: Mol, smiles: str) -> str | None:
        """Say why this molecule cannot be scored at all; asked before a call is spent on it.

        Args:
            molecule: The molecule as an RDKit object.
            smiles: Its canonical SMILES.

        Returns:
            The reason; None if it can be scored. A refused molecule scores 0 and costs no call.
        """
        return None

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compute the property of one molecule.

        Args:
            molecule: The molecule as an RDKit object.
            smiles: Its canonical SMILES.

        Raises:
            ValueError: If it could not be computed.
        """
        if type(self).values is MoleculeComponent.values:
            raise NotImplementedError(f"{type(self).__name__} has neither value nor values")
        (found,) = self.values([molecule], [smiles])
        if isinstance(found, Failure):
            raise ValueError(found.reason)
        return found

    def values(self, molecules: Sequence[Mol], smiles: Sequence[str]) -> list[float | Failure]:
        """Compute the property of several molecules: one by one, unless a subclass does better.

        An exception from here costs all of them their score. They are then tried again in smaller
        batches, so that only those that break the component are lost.

        Args:
            molecules: Molecules as RDKit objects.
            smiles: Their canonical SMILES.

        Returns:
            For each its property, or why there is none.
        """
        found: list[float | Failure] = []
        for molecule, text in zip(molecules, smiles, strict=True):
            try:
                found.append(self.value(molecule, text))
            except Exception as error:  # a user's code on a model's molecule: anything can happen
                found.append(Failure(f"{type(error).__name__}: {error}"))
        return found

    def score(self, molecule: Mol, smiles: str) -> float:
        """Compute the property and map it to [0, 1].

        Raises:
            ValueError: If the property is nan, or the score is outside of [0, 1].
        """
        return self.score_of(self.value(molecule, smiles))

    def score_of(self, value: float) -> float:
        """Map a property to [0, 1].

        Raises:
            ValueError: If the property is nan, or the score is outside of [0, 1].
        """
        if math.isnan(value):  # `Step` would silently map it to 0
            raise ValueError(f"{self.name} gives nan")
        score = self.transform(value)
        if not 0 <= score <= 1:
            raise ValueError(
                f"{self.name} gives {value:g}, which its transform leaves at {score:g}: give it a "
                "transform that maps to [0, 1]"
            )
        return score

    def identity(self) -> dict[str, Any]:
        """Return what decides scores besides public attributes, as plain data."""
        found: dict[str, Any] = {}
        if self._given_name is not None:
            found["name"] = self._given_name
        if self.packages:
            found["versions"] = package_versions(self.packages)
        return found


def describe(thing: Any) -> Any:
    """Convert a component or objective to plain data that is equal for equal scores.

    That is its class, its public attributes, the content of the files that these name, the source
    of classes of a user's own, and what its method `identity` adds. An attribute that is equal to
    the class's own attribute of that name is left out, so that a new setting changes no ledger.
    """
    if isinstance(thing, (str, int, float, bool, type(None))):
        return thing
    if isinstance(thing, (list, tuple)):
        return [describe(part) for part in thing]
    if isinstance(thing, dict):
        return {str(key): describe(value) for key, value in thing.items()}
    kind = type(thing)
    own = {
        key: value
        for key, value in vars(thing).items()
        if not key.startswith("_") and not _is_default(kind, key, value)
    }
    # Without the package's name, as in version 0.1, so that ledgers keep their objective.
    found: dict[str, Any] = {
        "class_path": f"{kind.__module__.removeprefix('triptych.')}.{kind.__qualname__}"
    }
    found |= {key: describe(value) for key, value in own.items()}
    hashes = file_hashes(list(own.values()))
    if hashes and "sha256" not in own:
        found |= {f"sha256 of {path}": digest for path, digest in hashes.items()}
    if not kind.__module__.startswith("triptych.") and not kind.__module__.startswith("builtins"):
        found["source"] = source_lines(kind)
    identity = getattr(thing, "identity", None)
    return found | (identity() if callable(identity) else {})


def _is_default(kind: type, key: str, value: Any) -> bool:
    default = getattr(kind, key, None)
    return type(default) is type(value) and default == value and default is not None
