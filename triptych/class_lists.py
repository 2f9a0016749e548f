"""Names of the modules and datamodules that the package offers, for the command line's help.

They are read from the source files, since importing all of them would take seconds.
"""

import ast
import functools

from triptych import ROOT

PANELS = ("remember", "diversify", "commune")


@functools.cache
def offered_classes(folder: str, base: str, method: str) -> dict[str, list[str]]:
    """Find the classes in the panels' folders that can be named in a configuration.

    Args:
        folder: Folder of the package, such as `lit_modules`.
        base: Name of the class that they derive from, directly or not.
        method: Method that a usable class defines or inherits; abstract bases lack it.

    Returns:
        For each panel, class paths below the folder in alphabetical order.

    >>> offered_classes("datamodules", "LightningDataModule", "train_dataloader")["commune"]
    ... # doctest: +ELLIPSIS
    ['commune.agent_states.AgentStates', 'commune.debate_questions.DebateQuestions', ...]
    """
    bases: dict[str, set[str]] = {}
    methods: dict[str, set[str]] = {}
    paths: dict[str, str] = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        module = ".".join(file.relative_to(ROOT / folder).with_suffix("").parts)
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                paths[node.name] = f"{module}.{node.name}"
                bases[node.name] = {ast.unparse(b).rpartition(".")[2] for b in node.bases}
                methods[node.name] = {d.name for d in node.body if isinstance(d, ast.FunctionDef)}

    usable = []
    for name, path in paths.items():
        line = _with_ancestors(name, bases)
        if base in line and any(method in methods.get(one, ()) for one in line):
            usable.append(path)
    return {panel: sorted(p for p in usable if p.startswith(f"{panel}.")) for panel in PANELS}


def listed(folder: str, base: str, method: str) -> str:
    """Return the class paths of `offered_classes` as text, panel by panel."""
    panels = offered_classes(folder, base, method).values()
    return "; ".join(", ".join(paths) for paths in panels if paths)


def _with_ancestors(name: str, bases: dict[str, set[str]]) -> set[str]:
    """Return a class's name and those of all classes that it derives from."""
    found: set[str] = set()
    open_names = {name}
    while open_names:
        found |= open_names
        open_names = {parent for one in open_names for parent in bases.get(one, ())} - found
    return found
