"""Molecules of a report as SVG images."""

import re
from collections.abc import Sequence
from typing import Any

from triptych.callbacks.report.page import image_uri
from triptych.models.diversify.molecules.molecule import read_molecule

#: Pixels of a drawing.
WIDTH, HEIGHT = 240, 170
_DECIMALS = re.compile(r"(\d+\.\d)\d+")


def molecule_uri(smiles: str) -> str | None:
    """Draw a molecule, and return it as a data URI; None if the SMILES string is not valid.

    Args:
        smiles: A SMILES string, possibly of a model.
    """
    from rdkit.Chem.Draw import rdMolDraw2D

    molecule = read_molecule(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        return None
    drawer: Any = rdMolDraw2D.MolDraw2DSVG(WIDTH, HEIGHT)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, molecule)
    drawer.FinishDrawing()
    text = _DECIMALS.sub(r"\1", drawer.GetDrawingText())  # a tenth of a pixel is enough
    return image_uri(text.encode(), "image/svg+xml")


def is_smiles_column(name: str, values: Sequence[Any]) -> bool:
    """Return whether a column of samples holds molecules: by its name, and by most of its values.

    Args:
        name: Name of the column.
        values: Its values.
    """
    if name not in ("smiles", "molecule", "completion", "output"):
        return False
    texts = [value for value in values if isinstance(value, str) and value]
    if name in ("completion", "output") and not any(set("=()") & set(text) for text in texts):
        return False  # single words such as "NO" are molecules by accident
    valid = sum(" " not in text and read_molecule(text) is not None for text in texts)
    return bool(texts) and valid >= len(texts) / 2
