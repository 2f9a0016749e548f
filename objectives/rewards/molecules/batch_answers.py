"""Reads what programs and servers answer about a batch of molecules."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.objectives.rewards.molecules.component import Failure

_SHOWN, _MOST_KEPT = 300, 50_000
# Further names of a result in an answer, if it has no endpoint of its own.
_USUAL = ("scores", "values", "predictions")


class SharedAnswers:
    """Results of one call that belong to other components, which read other endpoints of it.

    Each result is handed out once, so that a molecule which is asked for again is asked anew.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, str, str], float] = {}

    def take(self, source: Any, endpoint: str | None, smiles: Sequence[str]) -> list[float | None]:
        """Return what is there for an endpoint of a source, None for each molecule without."""
        if endpoint is None:
            return [None] * len(smiles)
        return [self._kept.pop((source, endpoint, text), None) for text in smiles]

    def keep(
        self,
        source: Any,
        endpoint: str | None,
        smiles: Sequence[str],
        found: Mapping[str, Sequence[float | Failure]],
    ) -> None:
        """Keep the results of other endpoints than this one."""
        for name, values in found.items():
            for text, value in zip(smiles, values, strict=True):
                if name != endpoint and not isinstance(value, Failure):
                    self._kept[source, name, text] = value
        while len(self._kept) > _MOST_KEPT:
            self._kept.pop(next(iter(self._kept)))


def read_text(text: str, count: int) -> dict[str, list[float | Failure]]:
    """Read the output of a program: JSON, or one score a line (as the endpoint "scores").

    Args:
        text: The output.
        count: Number of molecules that were sent.

    Returns:
        Endpoint -> a number for each molecule. Where the program gave none (null, nan, an empty
        line, a word), a failure with what it gave.

    Raises:
        ValueError: If the answer has another form, or another number of results.
    """
    stripped = text.strip()
    if stripped[:1] in ("{", "["):
        try:
            answer = json.loads(stripped)
        except json.JSONDecodeError as error:
            raise ValueError(f"the output is no JSON ({error}): {stripped[:_SHOWN]}") from None
        return read_json(answer, count)
    lines = text.splitlines()
    while len(lines) > count and not lines[-1].strip():
        lines.pop()
    return {_USUAL[0]: _numbers(lines, count)}


def read_json(answer: Any, count: int) -> dict[str, list[float | Failure]]:
    """Read a JSON answer.

    These forms are known; "activity" is an endpoint:

        [0.5, null]
        {"scores": [0.5, null]}                 or "values" or "predictions"
        {"activity": [0.5, 0.1], "solubility": [-3, -4]}
        [{"activity": 0.5}, {"activity": 0.1}]
        {"version": 1, "payload": {"activity": [0.5, 0.1]}}         as REINVENT 4 has it

    Args:
        answer: The parsed answer.
        count: Number of molecules that were sent.

    Returns:
        Endpoint -> a number or a failure for each molecule.

    Raises:
        ValueError: If the answer has another form, or another number of results.
    """
    if isinstance(answer, Mapping) and isinstance(answer.get("payload"), Mapping):
        answer = answer["payload"]
    if isinstance(answer, list) and answer and all(isinstance(row, Mapping) for row in answer):
        names = list(dict.fromkeys(name for row in answer for name in row))
        answer = {name: [row.get(name) for row in answer] for name in names if name != "smiles"}
    if isinstance(answer, list):
        answer = {_USUAL[0]: answer}
    lists = {}
    if isinstance(answer, Mapping):
        lists = {k: v for k, v in answer.items() if isinstance(v, list) and k != "smiles"}
    if not lists:
        raise ValueError(f"the answer is {str(answer)[:_SHOWN]}: give a list with numbers")
    return {name: _numbers(values, count) for name, values in lists.items()}


def chosen(
    found: Mapping[str, list[float | Failure]], endpoint: str | None
) -> list[float | Failure]:
    """Return the results of an endpoint; null: the only one, or "scores" among several.

    Raises:
        ValueError: If there is no such endpoint, or no endpoint is set and there are several.
    """
    if endpoint is None:
        names = [name for name in _USUAL if name in found] or list(found)
        if len(names) != 1:
            raise ValueError(f"the answer has {', '.join(found)}: set endpoint to one of them")
        (endpoint,) = names
    if endpoint not in found:
        raise ValueError(
            f"the answer has no {endpoint!r}, only {', '.join(found)}: set endpoint to one of them"
        )
    return found[endpoint]


def _numbers(given: Sequence[Any], count: int) -> list[float | Failure]:
    if len(given) != count:
        raise ValueError(f"{count} molecules were sent, and {len(given)} results came back")
    return [_number(part) for part in given]


def _number(part: Any) -> float | Failure:
    try:
        number = float(part)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    shown = "nothing" if part is None or part == "" else str(part)[:_SHOWN]
    return Failure(f"it gave {shown} in place of a number")
