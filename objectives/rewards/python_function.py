"""A reward by any Python function that the settings name."""

import importlib
import math
from collections.abc import Callable
from typing import Any, Self

from triptych.objectives.rewards.base import TextReward


class PythonFunction(TextReward):
    """Scores each completion by a Python function `f(text, prompt, record) -> float`.

    For existing functions. A reward with settings is as short to write as a subclass of
    `TextReward`, named by its `class_path`.

    Args:
        function: "package.module:name". The module must be importable from the working directory or
            be installed.
        least: Least value of the function; null: unbounded.
        most: Largest value of the function; null: unbounded.
        title: Name of its column in logs and tables; null: the function's name.

    Raises:
        ValueError: on construction, if the function does not exist, or least is not below most.
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
        imported_function(function)

    @classmethod
    def example(cls) -> Self:
        """Return a reward by a function that fails on every text, so that all rewards are nan."""
        return cls("math:fsum")

    @property
    def name(self) -> str:
        """The title, or the function's name."""
        return self._title

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Call the function."""
        return float(imported_function(self.function)(text, prompt, record))


def imported_function(function: str) -> Callable[..., Any]:
    """Import a function named "package.module:name".

    Raises:
        ValueError: if it does not exist, or is not callable.
    """
    module, _, name = function.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"function is {function!r}, but there is no such function ({error}): give "
            '"package.module:name" of one that can be imported'
        ) from error
    if not callable(found):
        raise ValueError(f"function is {function!r}, which is a {type(found).__name__}: name one")
    function_found: Callable[..., Any] = found
    return function_found
