"""Plain numbers for constructors, where signatures say `PositiveInt` and the like."""

import functools
from collections.abc import Callable
from typing import Any

from jsonargparse import typing as restricted

_TYPES: tuple[type, ...] = (
    *(restricted.PositiveInt, restricted.NonNegativeInt, restricted.PositiveFloat),
    *(restricted.NonNegativeFloat, restricted.ClosedUnitInterval, restricted.OpenUnitInterval),
)


def with_plain_numbers(construct: Callable[..., Any]) -> Callable[..., Any]:
    """Make an instantiator that gets `int` and `float` for numbers of restricted types.

    jsonargparse passes instances of the restricted types themselves. An optimizer would write them
    into checkpoints as its learning rate, and `torch.load(weights_only=True)` refuses to read them.
    """

    @functools.wraps(construct)
    def constructed(*args: Any, **kwargs: Any) -> Any:
        return construct(
            *map(plain, args), **{name: plain(value) for name, value in kwargs.items()}
        )

    return constructed


def plain(value: Any) -> Any:
    """Return a value with plain numbers, also in lists, tuples and dicts.

    >>> [type(number) for number in plain([restricted.PositiveInt(3), restricted.PositiveFloat(2)])]
    [<class 'int'>, <class 'float'>]
    """
    if isinstance(value, _TYPES) and isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    return value
