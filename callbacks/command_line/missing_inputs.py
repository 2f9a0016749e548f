"""Files that settings name, looked for before a prior is trained for hours."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace

from triptych.short_names import full_class_path


def refuse_missing_inputs(settings: Any) -> None:
    """Look for the inputs of all classes that settings name by `class_path`.

    A class says by its class method `missing_inputs(init_args)` which of them are not there.

    Args:
        settings: Composed settings, before anything is made of them.

    Raises:
        FileNotFoundError: If inputs are missing, with all of them.
    """
    missing = list(_missing(settings))
    if missing:
        raise FileNotFoundError("; ".join(missing))


def _missing(settings: Any) -> Iterator[str]:
    if isinstance(settings, Namespace):
        settings = dict(vars(settings))
    if isinstance(settings, (list, tuple)):
        for part in settings:
            yield from _missing(part)
    if not isinstance(settings, Mapping):
        return
    path, own = settings.get("class_path"), settings.get("init_args")
    if isinstance(path, str):
        look = getattr(_class(path), "missing_inputs", None)
        if look is not None:
            own_settings = dict(vars(own)) if isinstance(own, Namespace) else dict(own or {})
            yield from look(own_settings)
    for part in settings.values():
        yield from _missing(part)


def _class(path: str) -> Any:
    """Import a class; None where that fails, which its own place reports."""
    module, _, name = full_class_path(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
