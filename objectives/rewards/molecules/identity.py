"""What decides a score besides settings: the source of functions and the content of files."""

import ast
import hashlib
import inspect
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType
from typing import Any

# Of a string that may name a file. Longer ones are texts.
_MOST_CHARACTERS = 1024


def source_lines(thing: Callable[..., Any] | type) -> list[str]:
    """Return the source of a function or class, and of what it uses of its own module.

    That is the source of functions and classes that it names, of those that they name, and the
    values of plain constants. Where there is no source (a function written in C, or typed into an
    interpreter), the hash of its bytecode, or the version of its package, takes its place.
    """
    found: dict[str, list[str]] = {}
    _add_source(inspect.unwrap(thing), found)
    return [line for name in sorted(found) for line in found[name]]


def package_versions(packages: Iterator[str] | tuple[str, ...] | list[str]) -> dict[str, str]:
    """Return the installed version of each distribution; "not installed" where there is none."""
    return {name: _version(name) for name in packages}


def file_hashes(value: Any) -> dict[str, str]:
    """Return the SHA-256 of all files and folders that a setting names, by path.

    A string names a file if it looks like a path (it has a separator or an extension) and there is
    one. A folder's hash covers the names and contents of all files in it.

    Args:
        value: A setting: a string, or a list or dictionary of settings.
    """
    if isinstance(value, str):
        return {value: _sha256(Path(value))} if _names_file(value) else {}
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return {path: digest for part in value for path, digest in file_hashes(part).items()}
    return {}


def _names_file(text: str) -> bool:
    looks_like_one = os.sep in text or bool(Path(text).suffix)
    if not looks_like_one or len(text) > _MOST_CHARACTERS or "\0" in text:
        return False
    try:
        return Path(text).exists()
    except OSError:  # too long a name for the file system
        return False


def _sha256(path: Path) -> str:
    if path.is_dir():
        files = sorted(part for part in path.rglob("*") if part.is_file())
        pairs = [f"{part.relative_to(path)} {_sha256(part)}" for part in files]
        return hashlib.sha256("\n".join(pairs).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add_source(thing: Any, found: dict[str, list[str]]) -> None:
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    if name in found:
        return
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        found[name] = [f"{name}: {_without_source(thing)}"]
        return
    found[name] = text.splitlines()
    module = vars(inspect.getmodule(thing) or object)
    for used in sorted(_names(text) & module.keys()):
        value = module[used]
        if getattr(value, "__module__", None) == thing.__module__ and (
            inspect.isfunction(value) or inspect.isclass(value)
        ):
            _add_source(value, found)
        elif isinstance(value, (str, int, float, bool, tuple, frozenset)):
            found.setdefault(used, [f"{used} = {value!r}"])


def _names(text: str) -> set[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a lambda within a call, for example
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _without_source(thing: Any) -> str:
    code = getattr(thing, "__code__", None)
    if isinstance(code, CodeType):
        constants = [part for part in code.co_consts if not isinstance(part, CodeType)]
        read = repr((code.co_code, constants, code.co_names))
        return f"bytecode {hashlib.sha256(read.encode()).hexdigest()}"
    package = str(getattr(thing, "__module__", "") or "").partition(".")[0]
    return f"{package} {_version(package)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):
        return "not installed"
