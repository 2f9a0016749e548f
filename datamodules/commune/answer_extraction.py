r"""Extraction of the answer of a worked solution: a number, a letter, or a boxed expression.

All readers return a normal form, so that equal answers are equal strings, or None. The answer is
read from `\boxed{...}` if there is one, else after "####" or "answer is", else it is the last
candidate in the text.
"""

import re
from fractions import Fraction
from typing import Literal, get_args

AnswerKind = Literal["number", "letter", "boxed"]

_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s*/\s*\d+)?")
_MARK = re.compile(r"(?:####|answer\s*(?:is|:))\s*", re.IGNORECASE)
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?![A-Za-z'’])")
_DROPPED = (r"\left", r"\right", r"\!", r"\,", r"\;", r"\ ", r"\$", "$", "^{\\circ}", "^\\circ")


def read_answer(text: str, kind: AnswerKind) -> str | None:
    r"""Read an answer of a kind.

    Raises:
        ValueError: on an unknown kind.

    >>> read_answer("5 * 9 = 45, so the answer is 1,045.50.", "number")
    '1045.5'
    >>> read_answer("The answer is (C).", "letter")
    'C'
    >>> read_answer(r"so \boxed{\dfrac{1}{2}}", "boxed")
    '\\frac{1}{2}'
    """
    if kind == "number":
        return read_number(text)
    if kind == "letter":
        return read_letter(text)
    if kind == "boxed":
        inside = last_boxed(text)
        return None if inside is None else normal_expression(inside)
    raise ValueError(f"answer_kind is {kind!r}: choose {', '.join(get_args(AnswerKind))}")


def last_boxed(text: str) -> str | None:
    r"""Return the contents of the last `\boxed{...}`, with matched braces, or None.

    >>> last_boxed(r"\boxed{1} and \boxed{\frac{2}{3}}")
    '\\frac{2}{3}'
    """
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return None


def read_number(text: str) -> str | None:
    """Read the number that a text ends with, in lowest terms and without trailing zeros.

    >>> read_number("#### -1,200"), read_number("2/4 of it"), read_number("none")
    ('-1200', '1/2', None)
    """
    scope = _scope(text)
    found = [match.group() for match in _NUMBER.finditer(scope) if match.group().strip("-$ ")]
    if not found:
        return None
    chosen = found[0] if scope is not text else found[-1]
    cleaned = chosen.replace(",", "").replace("$", "").replace(" ", "")
    try:
        value = Fraction(cleaned)
    except ZeroDivisionError:
        return None
    if value.denominator == 1:
        return str(value.numerator)
    return str(value) if "/" in cleaned else repr(float(value))


def read_letter(text: str) -> str | None:
    """Read the letter of a choice, A to J.

    >>> read_letter("A is too small, so it must be B"), read_letter("no idea")
    ('B', None)
    """
    scope = _scope(text)
    found = _LETTER.findall(scope)
    if not found:
        return None
    letter: str = found[0] if scope is not text else found[-1]
    return letter


def normal_expression(text: str) -> str:
    r"""Normalise an expression: remove spaces, sizes of brackets and units.

    >>> normal_expression(r"  \dfrac{3}{4}\text{ cm}. "), normal_expression("1,000.0")
    ('\\frac{3}{4}', '1000')
    """
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = re.sub(r"\\(?:text|mbox)\{\s*([A-Za-z]+)\s*\}$", _unit_or_word, text.strip().rstrip("."))
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\%", "")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\s+", "", text)
    if re.fullmatch(r"-?[\d,]*\.?\d+", text):
        return read_number(text) or text
    return text


def _unit_or_word(match: re.Match[str]) -> str:
    """Remove a unit after something else; keep a word that is the whole answer."""
    return match.group(1) if match.start() == 0 else ""


def _scope(text: str) -> str:
    """Return the part of a text with the answer, or the text itself if none is marked."""
    inside = last_boxed(text)
    if inside is not None:
        return inside
    marks = list(_MARK.finditer(text))
    return text[marks[-1].end() :] if marks else text
