"""Triptych: PyTorch Lightning training in three panels: Remember, Diversify, Commune.

`triptych.metrics` is the folder `metrics/`, and so on, in a clone as in an installed package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent

#: Folder that holds `configs/`: the clone, or the installed package.
ROOT = _CHECKOUT if (_CHECKOUT / "train.py").is_file() else _PACKAGE

if ROOT == _CHECKOUT:  # an installed package holds the folders itself
    __path__.append(str(_CHECKOUT))
