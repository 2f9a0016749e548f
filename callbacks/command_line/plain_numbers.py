"""Plain numbers in place of the parser's restricted ones."""

import functools
from collections.abc import Callable
from typing import Any

from jsonargparse.typing import PositiveInt

_MODULE = PositiveInt.__module__


def plain_numbers(value: Any) -> Any:
    """Replace numbers such as `PositiveInt` by an `int` or a `float`, also inside of containers.

    Settings such as a learning rate reach optimizer states, and so checkpoints. There `torch.load`
    refuses any class that it does not know (`weights_only`).

    >>> numbers = [PositiveInt(3), {"count": PositiveInt(5)}, (True, 0.5, None)]
    >>> plain_numbers(numbers)
    [3, {'count': 5}, (True, 0.5, None)]
    >>> type(plain_numbers(numbers)[0]).__name__
    'int'
    """
    if isinstance(value, int | float) and type(value).__module__ == _MODULE:
        return int(value) if isinstance(value, int) else float(value)
    if type(value) in (list, tuple):
        return type(value)(map(plain_numbers, value))
    if type(value) is dict:
        return {key: plain_numbers(inner) for key, inner in value.items()}
    return value


def with_plain_numbers(construct: Callable[..., Any]) -> Callable[..., Any]:
    """Make an instantiator for jsonargparse that passes plain numbers on to ``construct``."""

    @functools.wraps(construct)
    def constructed(*args: Any, **kwargs: Any) -> Any:
        return construct(*args, **plain_numbers(kwargs))

    return constructed
