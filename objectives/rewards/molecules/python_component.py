"""A component by any Python function that the settings name."""

import inspect
from collections.abc import Sequence
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import Failure, MoleculeComponent
from triptych.objectives.rewards.molecules.identity import package_versions, source_lines
from triptych.objectives.rewards.molecules.transforms import Transform
from triptych.objectives.rewards.python_function import imported_function


class PythonComponent(MoleculeComponent):
    """Scores a molecule by a function `f(molecule) -> float` of an RDKit molecule.

    A function whose first parameter is called `molecules` or `smiles` gets a batch, as RDKit
    molecules or as SMILES, and returns a list with a number for each; None where it has none.

    Its source, and that of what it uses of its own module, counts in the ledger: calls of a
    function that was changed since are not mixed with new ones.

    Args:
        function: "package.module:name", importable from the working directory or installed, or
            "path/to/file.py:name".
        cost_ms: Approximate time per molecule; cheap components are computed first.
        transform: Maps the value to [0, 1]; null: unchanged.
        name: In ledger, logs and tables; null: that of the function.
        batch_size: Most molecules of one call, of a function of batches.
        packages: Distributions whose version decides the value, for the ledger.
        inputs: Files that the function reads, such as the weights of a network, for the ledger.

    Raises:
        ValueError: If the function does not exist.
    """

    inputs: list[str] | tuple[()] = ()

    def __init__(
        self,
        function: str,
        cost_ms: float = 1.0,
        transform: Transform | None = None,
        name: str | None = None,
        batch_size: int = 64,
        packages: Sequence[str] = (),
        inputs: Sequence[str] = (),
    ) -> None:
        super().__init__(transform, name)
        self.function, self.cost_ms = function, cost_ms
        self._form = _form(imported_function(function))
        if self._form != "one":
            self.batch_size = batch_size
        self._packages = tuple(packages)
        if inputs:
            self.inputs = list(inputs)

    @property
    def default_name(self) -> str:
        """The function's name."""
        return self.function.rpartition(":")[2]

    def value(self, molecule: Mol, smiles: str) -> float:
        """Call the function on one molecule."""
        if self._form != "one":
            return super().value(molecule, smiles)
        return float(imported_function(self.function)(molecule))

    def values(self, molecules: Sequence[Mol], smiles: Sequence[str]) -> list[float | Failure]:
        """Call the function on each molecule, or on all at once, as its parameter says."""
        if self._form == "one":
            return super().values(molecules, smiles)
        given: Any = list(molecules) if self._form == "molecules" else list(smiles)
        found = list(imported_function(self.function)(given))
        return [Failure("it gave nothing") if part is None else float(part) for part in found]

    def identity(self) -> dict[str, Any]:
        """Return the function's source, and versions."""
        found = super().identity() | {
            f"source of {self.function}": source_lines(imported_function(self.function)),
            "batch_size": None,
        }
        return found | ({"versions": package_versions(self._packages)} if self._packages else {})


def _form(function: Any) -> str:
    try:
        first = next(iter(inspect.signature(function).parameters), None)
    except ValueError:  # some functions written in C have no signature
        return "one"
    return first if first in ("molecules", "smiles") else "one"
