"""Refuses a single string where a list of strings belongs.

A string is a sequence of strings to Python, so `metric.update("CCO")` would count three molecules.
What an argument takes is read from its type hint, so every metric is checked in the same way.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

_LISTS = (list, tuple, Sequence, Iterable, typing.Sequence, typing.Iterable)


def check_lists(function: Callable[..., Any], arguments: Mapping[str, Any], owner: str) -> None:
    """Check that no argument of a call is a string where its hint asks for a list.

    Args:
        function: Has the type hints; a union with `str` allows a string.
        arguments: By name.
        owner: Who was called, for the message.

    Raises:
        ValueError: If one is.
    """
    for name, depth in _list_depths(function).items():
        if name in arguments:
            _check(arguments[name], depth, f"{owner} got the string {{}} {{}} `{name}`")


def _check(value: Any, depth: int, message: str, place: str = "as") -> None:
    if isinstance(value, str | bytes):
        raise ValueError(f"{message.format(repr(value[:40]), place)}: put it into a list.")
    if depth > 1 and isinstance(value, list | tuple):
        for item in value:
            _check(item, depth - 1, message, "as an element of")


@cache
def _list_depths(function: Callable[..., Any]) -> dict[str, int]:
    """Find how many levels of lists each argument has: 2 for `Sequence[Sequence[str]]`."""
    function = inspect.unwrap(function)
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # hints of other people's metrics may name what cannot be imported
        return {}
    return {name: depth for name, hint in hints.items() if (depth := _depth(hint))}


def _depth(hint: Any) -> int:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return 0 if str in parts else max(map(_depth, parts), default=0)
    if origin in _LISTS:
        return 1 + (_depth(parts[0]) if parts else 0)
    return 0
