"""Components that go wrong, and one that keeps count; importable in worker processes."""

import os
import time
from pathlib import Path

from triptych.objectives.rewards.molecules.component import MoleculeComponent


class Breaking(MoleculeComponent):
    """Dies on propane, hangs on butane, raises on pentane; others score 0.5."""

    def value(self, molecule, smiles):
        if smiles == "CCC":
            os._exit(3)
        if smiles == "CCCC":
            time.sleep(600)
        if smiles == "CCCCC":
            raise RuntimeError("no pentane")
        return 0.5


class Counting(MoleculeComponent):
    """Writes down what it is asked for; is interrupted on its third molecule where told so."""

    def __init__(self, file, value=0.5, interrupt=False):
        super().__init__()
        self._file, self.constant, self._interrupt = Path(file), value, interrupt

    def value(self, molecule, smiles):
        asked = self._file.read_text().splitlines() if self._file.exists() else []
        if self._interrupt and len(asked) == 2:
            raise KeyboardInterrupt
        self._file.write_text("".join(f"{text}\n" for text in [*asked, smiles]))
        return self.constant


class NotANumber(MoleculeComponent):
    """nan for ethane; others score 0.5."""

    def value(self, molecule, smiles):
        return float("nan") if smiles == "CC" else 0.5


def three(molecule):
    return 3.0


def lengths(smiles):
    return [None if len(text) == 1 else len(text) for text in smiles]
