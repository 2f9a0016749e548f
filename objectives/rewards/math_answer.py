"""A reward of 1 for a right mathematical answer, compared as an expression and not as a text."""

import logging
import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from triptych.objectives.rewards.base import TextReward

_LETTER = re.compile(r"[A-J]")
# From the surest to the least sure; of several matches the last one counts.
_CHOICES = (
    re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-J])\b"),
    re.compile(r"(?i:\banswer\b[^.\n]{0,20}?)[\s(:*]([A-J])\b"),
    re.compile(r"\(([A-J])\)"),
    re.compile(r"^\W*([A-J])\W*$", re.MULTILINE),
    re.compile(r"^\s*([A-J])\s*[).:]"),
)


class MathAnswer(TextReward):
    r"""1 for a reply whose final answer equals one of the record's, 0 for any other.

    `math-verify` finds the answer (in \boxed{...}, in other LaTeX, else the last number) and
    compares expressions: 1/2 is 0.5 and \frac{2}{4}. If the first right answer is a letter from A
    to J, the row is a choice: a letter that the reply chooses decides, and without one the answer
    is compared with the option's text.

    Args:
        field: The record's field with the list of right answers (or a single one).
        boxed: Count an answer in \boxed{...} alone.
        finished_only: A reply that was cut off at the length limit gets 0.
        digits: Decimal digits to which numbers have to agree.
        time_limit_s: Longest time to read, and to compare, one reply; it then gets 0.

    Raises:
        ImportError: when scoring begins, if `math-verify` is not installed. A record without
            answers, or with one that cannot be read, is an error of its completions.

    Source: https://github.com/huggingface/Math-Verify.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        field: str = "answers",
        boxed: bool = False,
        finished_only: bool = False,
        digits: int = 6,
        time_limit_s: int = 3,
    ) -> None:
        for name, value, least in (("digits", digits, 0), ("time_limit_s", time_limit_s, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}: set it to at least {least}")
        self.field = field
        self.boxed = boxed
        self.finished_only = finished_only
        self.digits = digits
        self.time_limit_s = time_limit_s

    def prepare(self, device: torch.device) -> None:
        """Look for math-verify.

        Raises:
            ImportError: if it is not installed.
        """
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError(
                "MathAnswer needs math-verify: install the extra `math` (pip install math-verify)"
            )

    def score_one(
        self, text: str, prompt: str, record: dict[str, Any], finished: bool = True
    ) -> float:
        """Compare the reply's answer with the right ones."""
        right = self._right_answers(record)
        if self.finished_only and not finished:
            return 0.0
        is_choice = _LETTER.fullmatch(right[0]) is not None
        if is_choice:
            chosen = chosen_letter(text, self.boxed)
            if chosen is not None:
                return float(chosen == right[0])
        limit_s = self.time_limit_s if _can_be_timed() else None
        given = _parsed(text, self.boxed, limit_s)
        for answer in right[int(is_choice) :]:
            expression = _right(answer, limit_s)
            if not expression and not is_choice:  # an option may be words, which its letter names
                raise ValueError(f"the right answer {answer!r} is no mathematical expression")
            if expression and _equal(expression, given, self.digits, limit_s):
                return 1.0
        return 0.0

    def _right_answers(self, record: dict[str, Any]) -> Sequence[str]:
        found = record.get(self.field)
        answers = found if isinstance(found, (list, tuple)) else [found]
        texts = [str(answer) for answer in answers if answer is not None]
        if not texts:
            raise ValueError(
                f"the record has no right answer in {self.field!r}: give data with this field "
                "(`prompts.task` of ChatPrompts reads GSM8K, SVAMP, AQuA and MATH), or set `field`"
            )
        return texts


def chosen_letter(text: str, boxed: bool = False) -> str | None:
    r"""Return the letter that a reply to a question with options chooses; None if it is unclear.

    >>> chosen_letter(r"So it is \boxed{B}."), chosen_letter("A bus costs 3, so the answer is (C)")
    ('B', 'C')
    >>> chosen_letter("D) 12"), chosen_letter("A dog or B"), chosen_letter("B", boxed=True)
    ('D', None, None)
    """
    for pattern in _CHOICES[:1] if boxed else _CHOICES:
        found = pattern.findall(text)
        if found:
            letter: str = found[-1]
            return letter
    return None


@lru_cache(maxsize=4096)
def _right(answer: str, limit_s: int | None) -> list[Any]:
    r"""Read a right answer; one without a \boxed{...} of its own is put into one."""
    if "\\boxed" not in answer:
        answer = f"\\boxed{{{answer.strip().strip('$')}}}"
    return _parsed(answer, True, limit_s)


def _parsed(text: str, boxed: bool, limit_s: int | None) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    if boxed and "\\boxed" not in text:
        return []
    latex = LatexExtractionConfig(boxed_match_priority=0)
    found: list[Any] = parse(
        text,
        extraction_config=[latex] if boxed else [latex, ExprExtractionConfig()],
        parsing_timeout=limit_s,
    )
    return found


def _equal(right: list[Any], given: list[Any], digits: int, limit_s: int | None) -> bool:
    from math_verify import verify

    equal: bool = verify(right, given, float_rounding=digits, timeout_seconds=limit_s)
    return equal


def _can_be_timed() -> bool:
    """Tell whether math-verify's time limits work here: its alarms need the main thread."""
    if threading.current_thread() is threading.main_thread():
        return True
    for name in ("parser", "grader"):  # it would warn about each reply
        logging.getLogger(f"math_verify.{name}").setLevel(logging.ERROR)
    return False
