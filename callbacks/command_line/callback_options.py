"""Options of callbacks by the name of their class: ``--callback.NanGuard.OPTION VALUE``.

``trainer.callbacks`` is a list, of which later files can only replace the whole or append to it.
These options change one callback of the composed list, wherever it stands. A configuration may hold
them too::

    callback:
      SparseMemoryFinetuning: {num_slots: 64, learning_rate: 1}
"""

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._loaders_dumpers import yaml_load as _yaml_load
from lightning.pytorch import Callback

from triptych.callbacks.command_line.parser_errors import class_options, explain, imported

OPTION = "callback"
CALLBACK_HELP = (
    "Options of callbacks in trainer.callbacks, by their class: --callback.CLASS.OPTION "
    "VALUE, such as --callback.SparseMemoryFinetuning.num_slots 64. In a file: callback: {CLASS: "
    "{OPTION: VALUE}}."
)
_PREFIX = f"--{OPTION}."
_read: Any = _yaml_load  # as options are read: 1e-3 is a number
Settings = list[tuple[str, Any]]


def without_callback_options(words: Sequence[str]) -> tuple[list[str], Settings]:
    """Take the options of callbacks out of a command line.

    Returns:
        The other words, and pairs of `CLASS.OPTION` and value.

    Raises:
        ArgumentError: if a value is missing.

    >>> without_callback_options(["fit", "--callback.A.rate", "1e-3", "--seed_everything", "1"])
    (['fit', '--seed_everything', '1'], [('A.rate', 0.001)])
    """
    others: list[str] = []
    settings: Settings = []
    rest = iter(map(str, words))
    for word in rest:
        if not word.startswith(_PREFIX):
            others.append(word)
            continue
        name, has_value, text = word.removeprefix(_PREFIX).partition("=")
        value = text if has_value else next(rest, None)
        if value is None:
            raise ArgumentError(None, f"{word}: expected a value after it")
        settings.append((name, _read(value)))
    return others, settings


def set_callback_options(options: Namespace, given: Settings) -> None:
    """Change the callbacks in parsed options.

    Args:
        options: Options of `fit` or `validate`; `trainer.callbacks` changes, and `callback` is
            null afterwards.
        given: Those of the command line, which come after those of files.

    Raises:
        ArgumentError: if there is no such callback or option, or a value is of the wrong type.
    """
    of_files = options.get(OPTION) or {}
    settings = [
        (f"{name}.{option}", value)
        for name, owned in of_files.items()
        for option, value in _mapping(name, owned).items()
    ] + given
    if OPTION in options:
        options[OPTION] = None
    if not settings:
        return
    listed = options.trainer.callbacks or []
    listed = listed if isinstance(listed, list) else [listed]
    callbacks = [as_plain(one) for one in listed]
    for name, value in settings:
        _set(callbacks, name, value)
        _validate(callbacks, name)
    options.trainer.callbacks = _validate(callbacks, "")


def _mapping(name: str, owned: Any) -> Mapping[str, Any]:
    if not isinstance(owned, Namespace | Mapping):
        raise ArgumentError(None, f"{OPTION}.{name}: expected options by name, got {owned!r}")
    plain: Mapping[str, Any] = as_plain(owned)
    return plain


def _set(callbacks: list[dict[str, Any]], name: str, value: Any) -> None:
    """Set one option in the composed list."""
    class_name, *keys = name.split(".")
    where = f"--{OPTION}.{name}"
    names = [str(one["class_path"]).rpartition(".")[2] for one in callbacks]
    places = [place for place, own in enumerate(names) if own == class_name]
    if not places:
        close = get_close_matches(class_name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise ArgumentError(
            None, f"{where}: trainer.callbacks has no {class_name or 'callback'}; {hint}"
        )
    if len(places) > 1:
        raise ArgumentError(
            None,
            f"{where}: trainer.callbacks has {len(places)} of {class_name}, so that the name does "
            "not say which: change them in the configuration",
        )
    callback = callbacks[places[0]]
    known = class_options(imported(callback["class_path"]))
    if not keys or keys[0] not in known:
        close = get_close_matches(keys[0] if keys else "", known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"{class_name} takes {', '.join(known)}"
        raise ArgumentError(None, f"{where}: there is no such option; {hint}")
    node = callback
    for key in keys[:-1]:
        node = _inside(node, key)
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ArgumentError(None, f"{where}: {key} has no options of its own")
    _inside(node, keys[-1])[keys[-1]] = value


def _inside(node: dict[str, Any], key: str) -> dict[str, Any]:
    """Step into the options of a class, which may be left out of a name."""
    if "class_path" not in node or key in ("class_path", "init_args"):
        return node
    if node.get("init_args") is None:
        node["init_args"] = {}
    inner: dict[str, Any] = node["init_args"]
    return inner


def _validate(callbacks: list[dict[str, Any]], name: str) -> Any:
    """Return the list as the parser reads it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    try:
        return parser.parse_object({"callbacks": as_plain(callbacks)}).callbacks
    except ArgumentError as error:
        key = name.rpartition(".")[2]  # all keys before it are in the name
        text = explain(str(error)).rpartition(f"{key}: ")[2]
        raise ArgumentError(None, f"--{OPTION}.{name}: {text}") from error


def as_plain(node: Any) -> Any:
    """Return parsed options as dictionaries and lists."""
    if isinstance(node, Namespace | Mapping):
        pairs = vars(node) if isinstance(node, Namespace) else node
        return {key: as_plain(value) for key, value in pairs.items()}
    return [as_plain(one) for one in node] if isinstance(node, list | tuple) else node
