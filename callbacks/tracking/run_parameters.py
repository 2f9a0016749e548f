"""A run's settings as the parameters of a tracker: flat, with short names, without defaults."""

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse import Namespace as Settings

#: Sections that say nothing about what is trained.
NOT_OF_THE_MODEL = {"config", "run_dir", "run_name", "experiment", "tracking", "ckpt_path"}
ALWAYS = {"seed_everything": "seed"}


def run_parameters(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs from the defaults of a run and of the classes it names.

    ``model.init_args.memory.num_keys`` is called ``model.memory.num_keys``, and the class of the
    model is ``model``. A callback's settings are named after its class.

    Args:
        config: The composed settings of the run.
        defaults: Those of a run without any configuration file of the user.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key in ALWAYS:
            flat[ALWAYS[key]] = str(value)
        elif key == "trainer" and isinstance(value, Mapping):
            trained = {name: child for name, child in value.items() if name != "logger"}
            _flatten(key, trained, defaults.get(key), flat)
        elif key not in NOT_OF_THE_MODEL:
            _flatten(key, value, defaults.get(key), flat)
    return _shortened(flat)


def _flatten(name: str, value: Any, default: Any, flat: dict[str, str]) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        flat[f"{name}.class_path"] = str(value["class_path"]).rpartition(".")[2]
        of_class = _class_defaults(str(value["class_path"]))
        for key, child in (value.get("init_args") or {}).items():
            _flatten(f"{name}.init_args.{key}", child, of_class.get(key), flat)
    elif isinstance(value, Mapping):
        known = default if isinstance(default, Mapping) else {}
        for key, child in value.items():
            _flatten(f"{name}.{key}", child, known.get(key), flat)
    elif _is_list_of_objects(value):
        same = [json.dumps(item, sort_keys=True, default=str) for item in default or ()]
        names = _names_of(value)
        for item_name, item in zip(names, value, strict=True):
            if json.dumps(item, sort_keys=True, default=str) not in same:
                _flatten(f"{name}.{item_name}", item, None, flat)
    elif value != default:
        flat[name] = str(value)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _names_of(items: list[Mapping[str, Any]]) -> list[str]:
    """Name the items of a list by their classes, or by their numbers if that is ambiguous."""
    classes = [str(item.get("class_path", "")).rpartition(".")[2] for item in items]
    counts = Counter(classes)
    return [name if name and counts[name] == 1 else str(i) for i, name in enumerate(classes)]


def _shortened(flat: Mapping[str, str]) -> dict[str, str]:
    """Leave ``init_args`` and ``class_path`` out of names that stay different without them."""
    short = {name: _short(name) for name in flat}
    counts = Counter(short.values())
    return {short[n] if counts[short[n]] == 1 else n: value for n, value in flat.items()}


def _short(name: str) -> str:
    short = name.replace(".init_args.", ".").removesuffix(".class_path")
    return short.removeprefix("trainer.") if short.startswith("trainer.callbacks.") else short


@lru_cache(maxsize=64)
def _class_defaults(class_path: str) -> dict[str, Any]:
    """Return the defaults of a class, those of its dataclasses too; none if it has no signature."""
    parser = ArgumentParser(exit_on_error=False)
    module, _, name = class_path.rpartition(".")
    try:
        named = getattr(importlib.import_module(module), name)
        parser.add_class_arguments(named, "of", fail_untyped=False)
        defaults = parser.get_defaults()
    except Exception:  # a class that is built in another way: its settings all count
        return {}
    found = plain(defaults.get("of"))
    return found if isinstance(found, dict) else {}


def plain(value: Any) -> Any:
    """Turn jsonargparse's namespaces into mappings, at every depth."""
    if isinstance(value, Settings):
        value = value.as_dict() if not hasattr(value, "__dict__") else vars(value)
    if isinstance(value, Mapping):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    return value
