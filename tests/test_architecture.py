"""The plan of the house: floors, rooms, and the size of files and folders."""

import ast
from collections.abc import Iterator
from pathlib import Path

from triptych import ROOT

FLOORS = [
    {"studies", "benchmarks", "campaigns"},
    {"triptych"},  # the command line
    {"lit_modules", "callbacks"},
    {"datamodules", "metrics"},
    {"objectives"},
    {"models"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PANELS = {"remember", "diversify", "commune"}
# What every floor may import: where the clone is, what modules promise to each other, and the hook
# that registers models when transformers is imported.
GROUND = {"triptych", "triptych.short_names", "triptych.protocols", "triptych.auto_classes"}
FILES = sorted(path for name in FLOOR_OF for path in (ROOT / name).rglob("*.py"))
MOST_LINES, MOST_MODULES = 500, 20
# A policy may have memory layers: all that one panel takes from another.
MOST_IMPORTS_BETWEEN_PANELS = 10


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def own(path: Path) -> tuple[str, ...]:
    """Folders and name of a file, from the root."""
    return path.relative_to(ROOT).with_suffix("").parts


def test_imports_run_strictly_downward():
    broken = []
    for path in FILES:
        floor = own(path)[0]
        for name in imports(path):
            top, *rest = name.split(".")
            if top == "triptych" and name not in GROUND:
                folder = rest[0] if rest[0] in FLOOR_OF else "triptych"
                if folder != floor and FLOOR_OF[folder] <= FLOOR_OF[floor]:
                    broken.append(f"{path}: {name}")
            if top in FLOOR_OF and top != "triptych":
                broken.append(f"{path}: {name}, without `triptych.` before it")
            if floor in ("models", "objectives") and top == "lightning":
                broken.append(f"{path}: {name}")
    assert not broken


def test_the_ground_rests_on_nothing_of_ours():
    for name in GROUND:
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        tree = ast.parse((path if path.is_file() else ROOT / name / "__init__.py").read_text())
        for node in tree.body:  # what stands under TYPE_CHECKING is not imported
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                modules = names if isinstance(node, ast.Import) else [str(node.module)]
                ours = {module for module in modules if module.partition(".")[0] == "triptych"}
                assert ours <= GROUND, path


def room(parts: tuple[str, ...]) -> str | None:
    """The panel that a module belongs to; None for a floor's hall."""
    if parts[:2] == ("objectives", "rewards"):  # the seam that users extend most has its own room
        return "diversify"
    return next((part for part in parts[1:2] if part in PANELS), None)


def test_a_panel_imports_itself_and_the_halls():
    between = []
    for path in FILES:
        panel = room(own(path))
        for name in imports(path):
            other = room(tuple(name.split(".")[1:])) if name.startswith("triptych.") else None
            if panel and other and other != panel:
                between.append((f"{path.relative_to(ROOT)}: {name}", panel, name))
    allowed = [
        one
        for one, panel, name in between
        if panel == "diversify" and name.startswith("triptych.models.remember.")
    ]
    assert [one for one, *_ in between] == allowed
    assert len(allowed) <= MOST_IMPORTS_BETWEEN_PANELS


def test_files_and_folders_stay_small():
    long = {path: n for path in FILES if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long
    folders = {path.parent for path in FILES}
    full = {
        folder: n
        for folder in folders
        if (n := len(set(folder.glob("*.py")) - {folder / "__init__.py"})) > MOST_MODULES
    }
    assert not full


def test_every_folder_says_what_is_in_it():
    for folder in {path.parent for path in FILES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_no_file_is_named_after_nothing():
    assert not {path.name for path in FILES} & {"utils.py", "helpers.py", "common.py"}
