"""Classes that a configuration names: by a short name, by a class path, or wrongly.

`MemoryPretraining` and `memory_pretraining.MemoryPretraining` stand for
`triptych.lit_modules.remember.memory_pretraining.MemoryPretraining`. Names are looked up in the
source files, so only the module that defines the class is imported.
"""

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jsonargparse._typehints as parser_types

from triptych.models.own_file import importable_name
from triptych.short_names import component_classes, full_name

# How an error of this module begins, so that the parser's report can find it.
MARK = "class_path: "

_Kind = type | tuple[type, ...]
# It declares a tuple of one class, and takes any.
_parsers_own: Callable[[Any, str], str] = parser_types.resolve_class_path_by_name


@contextmanager
def class_names_resolved() -> Iterator[None]:
    """Let jsonargparse find classes by `resolve`, in YAML files and on the command line."""
    parser_types.resolve_class_path_by_name = resolve  # type: ignore[assignment]
    try:
        yield
    finally:
        parser_types.resolve_class_path_by_name = _parsers_own  # type: ignore[assignment]


def resolve(kind: _Kind, name: str) -> str:
    """Return the class path that a name in a configuration stands for.

    Args:
        kind: The class that is expected there, or several.
        name: Name of a class, the end or the whole of a class path, or path/to/file.py:Class.

    Raises:
        ImportError: if there is no such class, several have the name, or its file cannot be
            imported. The message begins with `MARK`.

    >>> from triptych.objectives.rewards.base import Reward
    >>> resolve(Reward, "PythonFunction")
    'triptych.objectives.rewards.python_function.PythonFunction'
    """
    if ".py:" in name:
        name = _in_file(name)
    if name.endswith((".yaml", ".yml")):
        raise _error(f"there is no file {name} (paths in a configuration start at its folder)")
    if not all(part.isidentifier() for part in name.split(".")):
        raise _error(f"expected a class_path or the path of a .yaml file, got {name!r}")
    if "." not in name:
        return _of_name(kind, name)
    if not _exists(name.partition(".")[0]):
        same = _ending_in(name)
        if len(same) == 1:
            return same[0]
        if same:
            raise _error(f"several classes end in {name}: give one of {', '.join(same)}")
    _check_import(name)
    return name


def _in_file(name: str) -> str:
    """Return the class path for `path/to/file.py:Class`."""
    file, _, inner = name.rpartition(":")
    try:
        return f"{importable_name(file)}.{inner}"
    except (OSError, ValueError) as error:
        raise _error(str(error)) from error


def _of_name(kind: _Kind, name: str) -> str:
    """Find a class by its name among those that derive from `kind`."""
    ours = component_classes().get(name, [])
    for path in ours:
        importlib.import_module(path.rpartition(".")[0])
    try:
        path = _parsers_own(kind, name)  # among all classes that are imported by now
    except ValueError as error:
        same = sorted(str(error).rpartition(": ")[2].rstrip(".").split(", "))
        raise _error(f"several classes are called {name}: give one of {', '.join(same)}") from None
    if "." in path:
        return path
    if ours:
        return ours[0]  # of another kind, which the parser says
    close = get_close_matches(name, [*component_classes(), *_loaded(kind)], n=1)
    raise _error(f"there is no class {name}{_hint(close)}")


def _loaded(kind: _Kind) -> list[str]:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    paths = [path for one in kinds for path in parser_types.get_all_subclass_paths(one)]
    return [path.rpartition(".")[2] for path in paths]


def _ending_in(name: str) -> list[str]:
    """Return our class paths that end in a dotted name."""
    same = component_classes().get(name.rpartition(".")[2], [])
    return [path for path in same if path.endswith(f".{name}")]


def _check_import(path: str) -> None:
    """Import what a class path names.

    Raises:
        ImportError: with the cause and, for a slip of the pen, what was probably meant.
    """
    module, _, name = path.rpartition(".")
    found = _imported(module)
    if found is None and "." in module:  # a class in a class
        outer, _, middle = module.rpartition(".")
        found = getattr(_imported(outer), middle, None)
    if found is None:
        raise _error(f"there is no module {module}{_module_hint(module, name)}")
    if not hasattr(found, name):
        close = get_close_matches(name, _names_in(found), n=1)
        raise _error(f"there is no {path}{_hint([f'{module}.{one}' for one in close])}")


def _imported(module: str) -> Any:
    """Import a module; None if there is none of that name.

    Raises:
        ImportError: if its code, or that of a module which it imports, raises an error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise _broken(module, error) from error
    except Exception as error:
        raise _broken(module, error) from error


def _broken(module: str, error: Exception) -> ImportError:
    """Word an error in a module's code, with the last place that is not Python's own."""
    if isinstance(error, SyntaxError):
        place = f"{_short(error.filename)}, line {error.lineno}: "
        return _error(f"{module} cannot be imported: {place}{error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    outside = [one for one in frames if "importlib" not in one.filename]
    place = f"{_short(outside[-1].filename)}, line {outside[-1].lineno}: " if outside[1:] else ""
    return _error(f"{module} cannot be imported: {place}{type(error).__name__}: {error}")


def _short(file: str | None) -> str:
    """Return a file's path from the working directory, if it lies there."""
    path = Path(file or "")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _module_hint(module: str, name: str) -> str:
    """Suggest a module beside the one that is missing, or the class wherever it is."""
    package, _, last = module.rpartition(".")
    if package:
        parent = _imported(package)
        beside = [] if parent is None else _names_in(parent)
    else:
        beside = [path.stem for place in _users_places() for path in place.glob("*.py")]
    close = get_close_matches(last, beside, n=1)
    if close:
        return _hint([f"{package}.{close[0]}" if package else close[0]])
    classes = component_classes()
    named = get_close_matches(name, classes, n=1, cutoff=0.85)
    if named:
        return _hint(classes[named[0]])
    if package:
        return ""
    return "; a file of yours has to be in the working directory or beside the configuration"


def _hint(close: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _users_places() -> list[Path]:
    """Return the folders of Python's path outside of the installation."""
    places = [Path(place or ".") for place in sys.path]
    return [
        place
        for place in places
        if place.is_dir() and not place.is_relative_to(sys.base_prefix)
        if "site-packages" not in place.parts
    ]


def _names_in(module: Any) -> list[str]:
    folders = getattr(module, "__path__", [])
    return [*vars(module), *(info.name for info in pkgutil.iter_modules(folders))]


def _exists(top: str) -> bool:
    """Tell whether there is a module or package of a name that has no dot."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return full_name(top) is not None or top in sys.modules
    return spec is not None and spec.origin is not None  # any folder is a package without origin


def _error(text: str) -> ImportError:
    return ImportError(f"{MARK}{text}")
