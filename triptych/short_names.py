"""Short class paths, without the package's name, and class paths of version 0.1.

`metrics.diversify.novelty` and the former `metrics.novelty` import the same module object as
`triptych.metrics.diversify.novelty`. The command line enables this while it runs, so that short
class paths in YAML, and files of older runs and exports, keep working. A user's own `models` or
`metrics` takes precedence and is never replaced. `import triptych` alone changes nothing.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from triptych import ROOT

# Folders with classes that a configuration can name.
COMPONENTS = ("models", "objectives", "metrics", "datamodules", "callbacks", "lit_modules")
FOLDERS = (*COMPONENTS, "studies", "benchmarks", "campaigns")
# Modules of version 0.1 that got another name, not only another folder.
RENAMED = {
    "objectives.thought_structure": "objectives.commune.structure",
    "lit_modules.causal_lm": "lit_modules.diversify.molecules.molecule_pretraining",
}


def full_name(name: str) -> str | None:
    """Return the full name of the module that a short or former name stands for.

    Args:
        name: Dotted name of a module or package, such as `callbacks.progress`.

    Returns:
        Its name in `triptych`; None if there is no such module, or more than one.

    >>> full_name("models.product_keys")
    'triptych.models.remember.index.product_keys'
    >>> full_name("callbacks.probes"), full_name("models.nothing"), full_name("numpy")
    ('triptych.callbacks.remember.probes', None, None)
    """
    name = name.removeprefix("triptych.")
    name = RENAMED.get(name, name)
    folder, *rest = name.split(".")
    if folder not in FOLDERS:
        return None
    found = _modules(folder)
    if not rest or name in found:
        return f"triptych.{name}"
    same = [one for one in found if one.endswith(f".{rest[-1]}")]
    files = [one for one in same if (ROOT / one.replace(".", "/")).with_suffix(".py").is_file()]
    best = files or same  # `datamodules.facts` was a file, and is a folder with that file in it
    return f"triptych.{best[0]}" if len(best) == 1 else None


def full_class_path(path: str) -> str:
    """Return the current class path for a short or former one, and any other path unchanged.

    >>> full_class_path("ProductKeyIndex")
    'triptych.models.remember.index.product_keys.ProductKeyIndex'
    >>> full_class_path("models.product_keys.ProductKeyIndex")
    'triptych.models.remember.index.product_keys.ProductKeyIndex'
    >>> full_class_path("mine.index.Sampled")
    'mine.index.Sampled'
    """
    module, _, name = path.rpartition(".")
    same = [] if module else component_classes().get(name, [])
    if len(same) == 1:
        return same[0]
    known = full_name(module)
    return path if known is None else f"{known}.{name}"


@functools.cache
def component_classes() -> dict[str, list[str]]:
    """Return the class paths of Triptych's public classes by name.

    >>> component_classes()["MemoryPretraining"]
    ['triptych.lit_modules.remember.memory_pretraining.MemoryPretraining']
    """
    found: dict[str, list[str]] = {}
    for folder in COMPONENTS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(("triptych", *file.relative_to(ROOT).with_suffix("").parts))
            for name in re.findall(
                r"^class ([A-Z]\w*)", file.read_text(encoding="utf-8"), re.MULTILINE
            ):
                found.setdefault(name, []).append(f"{module}.{name}")
    return found


@contextmanager
def short_names_allowed() -> Iterator[None]:
    """Allow imports of the folders' modules by their short and former names."""
    finder = _ShortNames()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@functools.cache
def _modules(folder: str) -> frozenset[str]:
    """Return the dotted names of all modules and packages in a folder, from the folder on."""

    def names() -> Iterator[str]:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    return frozenset(names())


class _ShortNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by short names, unless another module of that name is on the path."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in FOLDERS:
            return None
        elsewhere = [place for place in (sys.path if path is None else path) if not _ours(place)]
        own = importlib.machinery.PathFinder.find_spec(name, elsewhere, target)
        if own is not None:
            return own
        full = full_name(name)
        if full is None:
            return None
        found = importlib.import_module(full)
        return importlib.machinery.ModuleSpec(
            name, self, origin=found.__file__, loader_state=found, is_package=_is_package(found)
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module: ModuleType = spec.loader_state
        spec.loader_state = module.__spec__  # Python overwrites the module's spec
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _is_package(module: ModuleType) -> bool:
    return hasattr(module, "__path__")


def _ours(place: str) -> bool:
    return Path(place or ".").resolve().is_relative_to(ROOT) and not _is_users(place)


def _is_users(place: str) -> bool:
    """Tell whether a folder below the root is not part of the clone, such as a work folder."""
    inside = Path(place or ".").resolve().relative_to(ROOT).parts
    return bool(inside) and inside[0] not in (*FOLDERS, "triptych")
