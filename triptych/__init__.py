"""Triptych: PyTorch Lightning training in three panels: Remember, Diversify, Commune.

`triptych.metrics` is the folder `metrics/`, and so on, in a clone as in an installed package.
`import triptych` registers models with memory layers with transformers' Auto classes.
"""

from pathlib import Path

from triptych.auto_classes import register_with_transformers

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent

#: Folder that holds `configs/`: the clone, or the installed package.
ROOT = _CHECKOUT if (_CHECKOUT / "train.py").is_file() else _PACKAGE

if ROOT == _CHECKOUT:  # an installed package holds the folders itself
    __path__.append(str(_CHECKOUT))

register_with_transformers()
