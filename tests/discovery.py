"""Finds classes in our packages, so that contract tests meet new ones unasked."""

import importlib
import inspect
import pkgutil
from types import ModuleType


def classes_in(package: ModuleType, base: type) -> list[type]:
    """Every concrete subclass that a package defines, at whatever depth, sorted by name."""
    found = []
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        found += [
            value
            for _, value in inspect.getmembers(module, inspect.isclass)
            if issubclass(value, base)
            and value.__module__ == module.__name__
            and not inspect.isabstract(value)
        ]
    return sorted(found, key=lambda kind: kind.__qualname__)
