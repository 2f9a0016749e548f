r"""Verifiable maths as prompts: rows of GSM8K, SVAMP, AQuA and MATH, with their right answers.

    gsm8k   question, answer ("... #### 72") or final_answer
    svamp   question (or Body and Question, or question_concat), answer (or Answer)
    aqua    question (or problem), options, correct (a letter); also TAL-SCQ5K
    math    problem, solution (with \boxed{...}) or answer

`answers` of an `aqua` row are the letter and the option's text, in this order. The reward is
`triptych.objectives.rewards.math_answer.MathAnswer`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from triptych.datamodules.sources.record_files import BadRowError, Row

MathTask = Literal["gsm8k", "svamp", "aqua", "math"]

LETTERS = "ABCDEFGHIJ"
_LETTERED = re.compile(r"^\s*\(?([A-J])\s*[).:]\s*")


def math_adapter(
    task: MathTask, instruction: str
) -> Callable[[Row, Mapping[str, str]], dict[str, Any]]:
    """Return what brings a row of a task to `prompt` and `answers`.

    Args:
        task: The form of the rows.
        instruction: Sentence after the question, such as how to give the answer; may be empty.

    Raises:
        ValueError: if there is no such task.
    """
    if task not in get_args(MathTask):
        raise ValueError(f"task is {task!r}: take one of {', '.join(get_args(MathTask))}")
    read = {"gsm8k": _gsm8k, "svamp": _svamp, "aqua": _aqua, "math": _math}[task]

    def adapted(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
        raw = dict(row.values)
        for name, column in columns.items():
            if column in raw:
                raw[name] = raw[column]
        question, answers = read(raw, row.place)
        prompt = f"{question.strip()}\n\n{instruction}" if instruction else question.strip()
        category = raw.get("category") or raw.get("type") or raw.get("Type")
        found = {"prompt": prompt, "answers": answers, "category": category}
        number = raw.get("id", raw.get("ID"))
        if number is not None:
            found["id"] = str(number)
        return {**row.values, **found, **{columns.get(k, k): v for k, v in found.items()}}

    return adapted


def _gsm8k(raw: Mapping[str, Any], place: str) -> tuple[str, list[str]]:
    question, answer = _text(raw, place, "question"), raw.get("final_answer")
    if answer is None:
        given = _text(raw, place, "answer")
        _, mark, answer = given.rpartition("####")
        if not mark:
            raise BadRowError(f"{place}: field 'answer' has no #### before its last number")
    return question, [_number(answer)]


def _svamp(raw: Mapping[str, Any], place: str) -> tuple[str, list[str]]:
    if raw.get("Body") is not None:
        body = _text(raw, place, "Body").strip().rstrip(".")
        question = f"{body}. {_text(raw, place, 'Question').strip()}"
    else:
        question = _text(raw, place, "question", "question_concat")
    answer = raw.get("answer", raw.get("Answer"))
    if answer is None:
        raise BadRowError(f"{place}: field 'answer' is missing")
    return question, [_number(answer)]


def _aqua(raw: Mapping[str, Any], place: str) -> tuple[str, list[str]]:
    question, right = _text(raw, place, "question", "problem"), _text(raw, place, "correct").strip()
    options = raw.get("options")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise BadRowError(f"{place}: field 'options' must be a list of texts")
    texts = [_LETTERED.sub("", option).strip() for option in options]
    letters = LETTERS[: len(texts)]
    if len(right) != 1 or right not in letters:
        raise BadRowError(f"{place}: field 'correct' is {right!r}: one of {', '.join(letters)}")
    listed = "\n".join(f"({a}) {text}" for a, text in zip(letters, texts, strict=True))
    answer = texts[letters.index(right)]
    return f"{question.strip()}\n{listed}", [right, answer]


def _math(raw: Mapping[str, Any], place: str) -> tuple[str, list[str]]:
    problem, answer = _text(raw, place, "problem", "question"), raw.get("answer")
    if answer is None:
        answer = last_boxed(_text(raw, place, "solution"))
        if answer is None:
            raise BadRowError(f"{place}: field 'solution' has no \\boxed{{...}}")
    return problem, [str(answer)]


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} of a text; None if there is none.

    >>> last_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}."), last_boxed("2")
    ('\\frac{1}{2}', None)
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    first = start + len("\\boxed{")
    depth = 1
    for place in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[first:place]
    return None


def _text(raw: Mapping[str, Any], place: str, *names: str) -> str:
    for name in names:
        if isinstance(raw.get(name), str) and raw[name].strip():
            text: str = raw[name]
            return text
    raise BadRowError(f"{place}: field {' or '.join(map(repr, names))} is missing or no text")


def _number(answer: Any) -> str:
    """Return a number as text, without a fraction of 0 and commas between thousands."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    text = str(answer).strip()
    return text.replace(",", "") if re.fullmatch(r"-?\$?[\d,]+(\.\d+)?", text) else text
