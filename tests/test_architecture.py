"""Imports run strictly downward: the floors of the house."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = [
    {"studies", "benchmarks"},
    {"train"},
    {"lit_modules", "callbacks"},
    {"datamodules", "metrics"},
    {"objectives"},
    {"models"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(
    path
    for name in FLOOR_OF
    for path in [ROOT / f"{name}.py", *(ROOT / name).rglob("*.py")]
    if path.is_file()
)


def imported_packages(path: Path) -> Iterator[str]:
    """The top-level names of everything that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_strictly_downward(path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    for name in set(imported_packages(path)) - {own}:
        assert FLOOR_OF.get(name, len(FLOORS)) > FLOOR_OF[own], f"{own} imports {name}"
        assert own not in ("models", "objectives") or "lightning" not in name, f"{own}: {name}"


def test_no_file_is_named_after_nothing():
    names = {path.name for path in FILES}
    assert not names & {"utils.py", "helpers.py", "common.py"}
