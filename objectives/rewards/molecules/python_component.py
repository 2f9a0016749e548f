"""A component from any Python function of the user's own."""

import importlib
from collections.abc import Callable
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import Transform


class PythonComponent(MoleculeComponent):
    """Scores a molecule by a function `f(molecule) -> float` of an RDKit molecule.

    Args:
        function: Where it is: "package.module:name", importable from the working directory or
            installed.
        cost_ms: About how long it takes; cheap components come first.
        transform: Maps its value to [0, 1]; null: as it is.

    Raises:
        ValueError: If there is no such function.
    """

    def __init__(
        self, function: str, cost_ms: float = 1.0, transform: Transform | None = None
    ) -> None:
        super().__init__(transform)
        self.function, self.cost_ms = function, cost_ms
        _find(function)

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.rpartition(":")[2]

    def value(self, molecule: Mol, smiles: str) -> float:
        """Call the function."""
        return float(_find(self.function)(molecule))


def _find(function: str) -> Callable[[Mol], Any]:
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'function is {function!r}, which cannot be imported ({error}): write "module:name" of '
            "a function that the working directory or an installed package holds"
        ) from error
    if not callable(found):
        raise ValueError(f"function is {function!r}, which is no function")
    return found
