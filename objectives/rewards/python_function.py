"""A reward from any function of the user's own, named in the settings."""

import importlib
import math
from collections.abc import Callable
from typing import Any, Self

from triptych.objectives.rewards.base import TextReward


class PythonFunction(TextReward):
    """Scores each completion by a Python function `f(text, prompt, record) -> float`.

    For a function that is there already. A reward with settings of its own is as short to write: a
    subclass of `TextReward`, named by its `class_path`.

    Args:
        function: Where it is: "package.module:name". The module must be importable from the working
            directory or be installed.
        least: Least value it can give; null: unbounded.
        most: Largest value it can give; null: unbounded.
        title: Name of its column in logs and tables; null: the function's.

    Raises:
        ValueError: on construction, if there is no such function, or least is not below most.
    """

    def __init__(
        self,
        function: str,
        least: float | None = None,
        most: float | None = None,
        title: str | None = None,
    ) -> None:
        self.range = (-math.inf if least is None else least, math.inf if most is None else most)
        if not self.range[0] < self.range[1]:
            raise ValueError(f"least is {least} and most {most}: set least below most")
        self.function = function
        self._title = title or function.rpartition(":")[2]
        _find(function)

    @classmethod
    def example(cls) -> Self:
        """The mean of nothing but numbers fails on every text: all is nan."""
        return cls("math:fsum")

    @property
    def name(self) -> str:
        """The title, or the function's name."""
        return self._title

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Call the function."""
        return float(_find(self.function)(text, prompt, record))


def _find(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"function is {function!r}, but there is no such function ({error}): give "
            '"package.module:name" of one that can be imported'
        ) from error
    if not callable(found):
        raise ValueError(f"function is {function!r}, which is a {type(found).__name__}: name one")
    return found
