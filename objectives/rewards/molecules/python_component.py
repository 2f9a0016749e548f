"""A component by any Python function that the settings name."""

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import Transform
from triptych.objectives.rewards.python_function import imported_function


class PythonComponent(MoleculeComponent):
    """Scores a molecule by a function `f(molecule) -> float` of an RDKit molecule.

    Args:
        function: "package.module:name", importable from the working directory or installed.
        cost_ms: Approximate time per molecule; cheap components are computed first.
        transform: Maps the value to [0, 1]; null: unchanged.

    Raises:
        ValueError: If the function does not exist.
    """

    def __init__(
        self, function: str, cost_ms: float = 1.0, transform: Transform | None = None
    ) -> None:
        super().__init__(transform)
        self.function, self.cost_ms = function, cost_ms
        imported_function(function)

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.rpartition(":")[2]

    def value(self, molecule: Mol, smiles: str) -> float:
        """Call the function."""
        return float(imported_function(self.function)(molecule))
