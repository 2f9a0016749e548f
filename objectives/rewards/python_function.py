"""A reward by any Python function that the settings name."""

import asyncio
import importlib
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Self

import torch

from triptych.models.diversify.rollout import Rollout
from triptych.models.own_file import importable_name
from triptych.objectives.rewards.background_loop import wait_for
from triptych.objectives.rewards.base import Scores, TextReward, asked_columns, score_each

Call = Literal["one", "texts", "trl"]
# Columns of a row that TRL's functions get under another name, or that are ours alone.
_OWN_COLUMNS = {"prompt", "prompts", "completion", "completions", "completion_ids", "prompt_ids"}
_OF_TRL_ALONE = ("trainer_state", "environments")


class PythonFunction(TextReward):
    """Scores completions by a Python function, called as its parameters ask for.

        f(text, prompt, record) -> float                    one completion
        f(texts) -> list                                    all of a step
        f(prompts, completions, **columns) -> list          TRL's reward function, as it is

    The first parameter of the second form is called `texts`; TRL's form has one called
    `completions` or `completion_ids`. A value of None means that the reward does not apply. The
    first two forms also get `finished` and `num_tokens` if they have such parameters, and the
    second one `prompts` and `records`. Any form may be `async`: single completions are then scored
    concurrently.

    TRL's form gets `prompts`, `completions`, `completion_ids`, the columns of the data, `log_extra`
    and `log_metric`, as far as it has parameters for them or a `**kwargs`. What it logs becomes a
    component of the reward.

    A reward with settings is as short to write as a subclass of `TextReward`, named by its
    `class_path`.

    Args:
        function: "package.module:name" of one that is installed or lies in the working directory,
            or "path/to/file.py:name".
        least: Least value of the function; null: unbounded.
        most: Largest value of the function; null: unbounded.
        title: Name of its column in logs and tables; null: the function's name.
        conversational: Give TRL's form prompts and completions as lists of messages, which it reads
            by `completion[0]["content"]`; else as texts.

    Raises:
        ValueError: on construction, if the function does not exist, needs what TRL's trainers alone
            have, or least is not below most.
    """

    def __init__(
        self,
        function: str,
        least: float | None = None,
        most: float | None = None,
        title: str | None = None,
        conversational: bool = False,
    ) -> None:
        self.range = (-math.inf if least is None else least, math.inf if most is None else most)
        if not self.range[0] < self.range[1]:
            raise ValueError(f"least is {least} and most {most}: set least below most")
        self.function = function
        self.conversational = conversational
        self._title = title or function.rpartition(":")[2]
        self.call = _call_of(imported_function(function), function)
        if conversational and self.call != "trl":
            raise ValueError(
                f"conversational is set, but {function} has no parameter called completions: only "
                "TRL's form gets messages"
            )

    @classmethod
    def example(cls) -> Self:
        """Return a reward by a function that fails on every text, so that all rewards are nan."""
        return cls("math:fsum")

    @property
    def name(self) -> str:
        """The title, or the function's name."""
        return self._title

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float | None:
        """Call a function of a single completion."""
        value: float | None = _result(imported_function(self.function)(text, prompt, record))
        return None if value is None else float(value)

    def score(self, rollout: Rollout) -> Scores:
        """Call the function in its form."""
        function = imported_function(self.function)
        if self.call == "trl":
            return self._score_as_trl(function, rollout)
        if self.call == "texts":
            offered = {"prompts": _prompts(rollout), "records": _records(rollout)}
            names = inspect.signature(function).parameters
            asked = {name: column for name, column in offered.items() if name in names}
            asked |= asked_columns(function, rollout)
            return _of_list(_result(function(list(rollout.texts), **asked)))
        if inspect.iscoroutinefunction(function):
            return _score_concurrently(function, rollout)
        return score_each(function, rollout)

    def _score_as_trl(self, function: Callable[..., Any], rollout: Rollout) -> Scores:
        count, records = len(rollout), _records(rollout)
        prompts: list[Any] = _prompts(rollout)
        completions: list[Any] = list(rollout.texts)
        if self.conversational:
            prompts = [
                list(record.get("messages") or [{"role": "user", "content": prompt}])
                for record, prompt in zip(records, prompts, strict=True)
            ]
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        lengths = rollout.num_tokens.tolist()
        ids = [row[:n] for row, n in zip(rollout.token_ids_BT.tolist(), lengths, strict=True)]
        components: dict[str, torch.Tensor] = {}

        def log_extra(column: str, values: Sequence[Any]) -> None:
            """Keep a column of numbers; texts have no place in logs."""
            if all(isinstance(value, (int, float)) for value in values):
                components[column] = torch.tensor(list(values), dtype=torch.float32)

        def log_metric(name: str, value: float) -> None:
            components[name] = torch.full((count,), float(value), dtype=torch.float32)

        columns = {name for record in records for name in record} - _OWN_COLUMNS
        offered: dict[str, Any] = {
            **{name: [record.get(name) for record in records] for name in sorted(columns)},
            "prompts": prompts,
            "completions": completions,
            "completion_ids": ids,
            "log_extra": log_extra,
            "log_metric": log_metric,
        }
        parameters = inspect.signature(function).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            offered = {name: value for name, value in offered.items() if name in parameters}
        try:
            values = _result(function(**offered))
        except TypeError as error:
            if self.conversational:
                raise
            raise TypeError(
                f"{error} (completions are texts here: set conversational to true for a function "
                'that reads completion[0]["content"])'
            ) from error
        scores = _of_list(values)
        scores.components |= components
        return scores


def imported_function(function: str) -> Callable[..., Any]:
    """Import a function named "package.module:name" or "path/to/file.py:name".

    Raises:
        ValueError: if it does not exist, or is not callable.
    """
    module, _, name = function.rpartition(":")
    try:
        if module.endswith(".py"):
            module = importable_name(module)
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise ValueError(
            f"function is {function!r}, but there is no such function ({error}): give "
            '"package.module:name" of one that can be imported, or "path/to/file.py:name"'
        ) from error
    if not callable(found):
        raise ValueError(f"function is {function!r}, which is a {type(found).__name__}: name one")
    function_found: Callable[..., Any] = found
    return function_found


def _call_of(function: Callable[..., Any], name: str) -> Call:
    """Tell by the names of a function's parameters how it is called."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some functions written in C have no signature
        return "one"
    if {"completions", "completion_ids"} & parameters.keys():
        for other in _OF_TRL_ALONE:
            if other in parameters and parameters[other].default is inspect.Parameter.empty:
                raise ValueError(
                    f"function is {name!r}, which needs {other}: only TRL's trainers have that. "
                    "Give the parameter a default"
                )
        return "trl"
    return "texts" if next(iter(parameters), None) == "texts" else "one"


def _result(value: Any) -> Any:
    """Return a value, waited for where it is awaitable."""
    if not inspect.isawaitable(value):
        return value

    async def waited(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    return wait_for(waited(value))


def _score_concurrently(function: Callable[..., Awaitable[Any]], rollout: Rollout) -> Scores:
    """Score all completions at once by a coroutine function; an exception costs its own."""
    asked = asked_columns(function, rollout)

    async def together() -> list[Any]:
        rows = enumerate(zip(rollout.texts, _prompts(rollout), _records(rollout), strict=True))
        calls = [function(*row, **{k: v[i] for k, v in asked.items()}) for i, row in rows]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = iter(wait_for(together()))

    def next_result(text: str, prompt: str, record: dict[str, Any]) -> float | None:
        result = next(results)
        if isinstance(result, BaseException):
            raise result
        value: float | None = result
        return value

    return score_each(next_result, rollout)


def _of_list(values: Any) -> Scores:
    """Return the scores of a list or tensor, whose length the caller checks."""
    return Scores.of_values(values.tolist() if isinstance(values, torch.Tensor) else values)


def _prompts(rollout: Rollout) -> list[str]:
    return list(rollout.prompts or [""] * len(rollout))


def _records(rollout: Rollout) -> list[dict[str, Any]]:
    return [dict(record) for record in rollout.records] or [{} for _ in range(len(rollout))]
