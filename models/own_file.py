"""Python files of one's own, named by their path, as in `rewards/short.py:Short`."""

import importlib.util
import os
import sys
from pathlib import Path


def importable_name(file: str) -> str:
    """Return the name under which a Python file is imported from now on.

    A file below the working directory, or below a folder on Python's path, is named from there on:
    `rewards/short.py` is `rewards.short`. The folder of any other file comes last on Python's path.

    Args:
        file: Path of the file; a relative one starts at the working directory or, if nothing is
            there, at the folders on Python's path (such as that of a configuration).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its name is no name of a module, or another module has the name.
    """
    path = Path(file)
    places = [Path.cwd(), *(Path(place) for place in sys.path if place)]
    found = next((place / path for place in places if (place / path).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"there is no file {file}, neither in the working directory ({Path.cwd()}) nor beside "
            "a configuration"
        )
    found = Path(os.path.normpath(found))
    for place in places:
        if found.is_relative_to(place):
            parts = found.relative_to(place).with_suffix("").parts
            if all(part.isidentifier() for part in parts) and _is(".".join(parts), found):
                return ".".join(parts)
    if not found.stem.isidentifier():
        raise ValueError(
            f"{file} cannot be imported: rename it to letters, digits and underscores, then .py"
        )
    if str(found.parent) not in sys.path:
        sys.path.append(str(found.parent))
        importlib.invalidate_caches()
    if not _is(found.stem, found):
        raise ValueError(
            f"{file} cannot be imported, since another module is called {found.stem}: rename it"
        )
    return found.stem


def _is(name: str, file: Path) -> bool:
    """Tell whether a module's name stands for a file."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    return (
        spec is not None
        and spec.origin is not None
        and Path(spec.origin).is_file()
        and file.samefile(spec.origin)
    )
