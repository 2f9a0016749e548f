r"""Extraction of the answer of a worked solution: a number, a letter, or a boxed expression.

All readers return a normal form, so that equal answers are equal strings, or None. The answer is
read from the last `\boxed{...}` that holds one, else after the first "####" or "answer is" that a
candidate follows, else it is the last candidate of the text. What a model writes after its answer
("Question: ...", as in a prompt of several examples) is not read.
"""

import re
from collections.abc import Callable
from itertools import islice
from typing import Literal, get_args

from triptych.datamodules.commune.answer_letter import OPTION_LETTERS, letter_after, letter_in
from triptych.datamodules.commune.expression_form import normal_expression
from triptych.datamodules.commune.number_form import SPACED_NUMBER, numbers_in, plain_characters

AnswerKind = Literal["number", "letter", "boxed"]

_BOX = re.compile(
    r"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*)(?:\{|(?P<bare>[^\s{}$\\]*[^\s{}$\\.,;]))|\\[{}]|[{}]"
)
# \boxed{2}, \boxed{3} and \boxed{2} and \boxed{3} are one list.
_BETWEEN_BOXES = re.compile(
    r"(?<=[\w)])\}\$?\s*(?:,|,?\s*(?:\\text\{\s*)?\b(?:and|or)\b(?:\s*\})?)"
    r"\s*\$?\\boxed\{(?=[^{}]*\})"
)
_IS = r"(?:\s+(?:is|was|are|equals|be|comes|out|to|of|the|this|that|given|question|problem)){1,8}"
_HASHES = re.compile(r"####(?!#)")
_MARK = re.compile(
    rf"\b(?:final\s+)?answer(?:{_IS}(?<=is|be|as|to)\b|s?\s*[:=])(?!\s+not\b)\s*:?"
    r"|^\W*(?:final\s+)?answer\W*$|\bans\s*[:=]",
    re.IGNORECASE | re.MULTILINE,
)
_ANY_MARK = re.compile(rf"{_HASHES.pattern}|{_MARK.pattern}", _MARK.flags)
# A new question, or the turn of somebody else, after the answer.
_RUN_ON = re.compile(
    r"<\|[a-z_]+\|>|\n\s*(?:[#*]+\s*)?(?:Question|Q|Problem|User|Human|Instruction)\s*\d*\s*[*]*:",
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|[\"')*])|\n")
_LATEX = (
    (r"\\[dtc]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r" \1/\2"),
    (r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2"),
    (r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
    (r"\\div(?![A-Za-z])", "÷"),
    (r"\\approx(?![A-Za-z])", "="),
    (r"\{,\}", ","),
    (r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", ""),
    (r"\\!", ""),
    (r"\\[,;: ]", " "),
    (r"\\([$%#&])", r"\1"),
    (r"\\[()\[\]]", " "),
    (r"(?<![\d)])\*\*|\*\*(?![\d(])|(?<!\w)__|__(?!\w)|`", ""),
    (r"\$\$|\$(?=\s*[=.,;:)]|\s*$)", " "),
)
_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_WORD = re.compile(rf"\W*({'|'.join(_WORDS)})\b(?!-)", re.IGNORECASE)


def read_answer(text: str, kind: AnswerKind, num_options: int | None = None) -> str | None:
    r"""Read an answer of a kind.

    Args:
        text: A reply, or a solution from a data set.
        kind: What the answer is.
        num_options: Number of options of a `letter`; None: up to J.

    Raises:
        ValueError: on an unknown kind.

    >>> read_answer("5 * 9 = 45, so the answer is 1,045.50. I hope it helps!", "number")
    '1045.5'
    >>> read_answer("The answer is (C).", "letter"), read_answer("(C)", "letter", 2)
    ('C', None)
    >>> read_answer(r"so \boxed{\dfrac{1}{2}}", "boxed")
    '0.5'
    """
    if kind == "number":
        return read_number(text)
    if kind == "letter":
        return read_letter(text, num_options)
    if kind == "boxed":
        return read_boxed(text)
    raise ValueError(f"answer_kind is {kind!r}: choose {', '.join(get_args(AnswerKind))}")


def boxed_texts(text: str) -> list[str]:
    r"""Return the contents of every `\boxed{...}`, with matched braces; `\boxed 45` counts too.

    >>> boxed_texts(r"\boxed{1}, \boxed{\frac{2}{3}}, \boxed 45, \boxed{never closed")
    ['1', '\\frac{2}{3}', '45']
    """
    found: list[tuple[int, str]] = []
    opened: list[int | None] = []  # for each open brace the beginning of its box
    for match in _BOX.finditer(text):
        if match["bare"] is not None:
            found.append((match.start(), match["bare"]))
        elif match[0] == "}":
            if opened and (begin := opened.pop()) is not None:
                found.append((begin, text[begin : match.start()]))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append(match.end() if match["box"] else None)
    return [inside for _, inside in sorted(found)]


def last_boxed(text: str) -> str | None:
    r"""Return the contents of the last `\boxed{...}`, with matched braces, or None.

    >>> last_boxed(r"\boxed{1} and \boxed{\frac{2}{3}}")
    '\\frac{2}{3}'
    """
    found = boxed_texts(text)
    return found[-1] if found else None


def read_boxed(text: str) -> str | None:
    r"""Read an expression: the last box that is not empty, else the formula after a mark.

    >>> read_boxed(r"\boxed{3+2x}"), read_boxed("The answer is $45$."), read_boxed("45")
    ('2*x + 3', '45', None)
    """
    text = _BETWEEN_BOXES.sub(",", text)
    for inside in reversed(boxed_texts(text)):
        if inside.strip():
            return normal_expression(inside)
    text = _until_run_on(text, lambda before: bool(re.search(r"\d|\$", before)))
    for match in _ANY_MARK.finditer(text):
        after = re.sub(r"^[\s*:]+", "", text[match.end() :])
        formula = re.match(r"(?:\\\(|\\\[|\$\$?)\s*(.+?)\s*(?:\\\)|\\\]|\$\$?)", after, re.DOTALL)
        if formula is not None:
            return normal_expression(formula[1])
        end = _SENTENCE_END.search(after)
        plain = (after[: end.start()] if end else after).strip(" *")
        if re.match(r"[-+\\(\[{\u2212]?[\d.]", plain) or re.fullmatch(r"\S{1,40}", plain):
            return normal_expression(plain)
    return None


def read_number(text: str) -> str | None:
    """Read the number that a text ends with; equal numbers have one form.

    >>> read_number("#### -1,200"), read_number("2/4 of it"), read_number("none")
    ('-1200', '0.5', None)
    >>> read_number("The answer is 12 - 9 = 3."), read_number("The answer is right: it is 7")
    ('3', '7')
    """
    for inside in reversed(boxed_texts(text)):
        if (found := _boxed_number(inside)) is not None:
            return found
    text = _plain(_until_run_on(text, lambda before: bool(numbers_in(_plain(before)))))
    for pattern in (_HASHES, _MARK):  # hashes are asked for, words may come earlier by chance
        for match in pattern.finditer(text):
            found = _number_after(text[match.end() :], directly=pattern is _HASHES)
            if found is not None:
                return found
    found_anywhere = numbers_in(text)
    return found_anywhere[-1][2] if found_anywhere else None


def read_letter(text: str, num_options: int | None = None) -> str | None:
    """Read the letter of a choice.

    Args:
        text: A reply.
        num_options: Number of options; later letters are no candidates. None: up to J.

    >>> read_letter("A is too small, so it must be B"), read_letter("no idea")
    ('B', None)
    >>> read_letter("B. I am sure"), read_letter("(C) 5, not (A) 4")
    ('B', 'C')
    """
    letters = OPTION_LETTERS[:num_options]
    for inside in reversed(boxed_texts(text)):
        if (found := letter_after(_plain(inside), letters)) is not None:
            return found
    text = _until_run_on(
        text, lambda before: letter_in(_plain(before), letters, _ANY_MARK) is not None
    )
    return letter_in(_plain(text), letters, _ANY_MARK)


def _plain(text: str) -> str:
    """Replace LaTeX and Markdown around numbers and letters by plain characters."""
    text = plain_characters(text)
    for pattern, plain in _LATEX:
        text = re.sub(pattern, plain, text)
    return text


def _until_run_on(text: str, has_answer: Callable[[str], bool]) -> str:
    """Cut a text where a new question begins, if there is an answer before it."""
    for match in islice(_RUN_ON.finditer(text), 4):
        if has_answer(text[: match.start()]):
            return text[: match.start()]
    return text


def _boxed_number(inside: str) -> str | None:
    """Read a box: a list of numbers stays one."""
    plain = _plain(inside)
    parts = re.split(r",(?!\d{3}(?!\d))|;|\band\b|\bor\b", plain)
    values = [_number_after(part, False) for part in parts]
    if len(values) > 1 and all(value is not None for value in values):
        return ",".join(sorted(value for value in values if value is not None))
    return _number_after(plain, False)


def _number_after(text: str, directly: bool) -> str | None:
    """Read the number after a mark: the right-hand side of an equation, or the first one.

    Args:
        text: What follows the mark.
        directly: Only a number that follows at once; `#### Step 1` and `#### 1. Add` are headings.
    """
    text = re.sub(r"^[\s*:=_>]+", "", text)
    if (spaced := SPACED_NUMBER.match(text)) is not None:
        text = re.sub(r"\s", "", spaced[0]) + text[spaced.end() :]
    end = _SENTENCE_END.search(text)
    sentence = text[: end.start()] if end else text
    found = numbers_in(sentence)
    if not found:
        word = _WORD.match(sentence)
        return None if word is None or directly else str(_WORDS.index(word[1].lower()))
    if directly:
        before, after = text[: found[0][0]], text[found[0][1] :]
        is_direct = re.fullmatch(r"[\s(]*(?:[A-Za-z]\w?\s*=\s*|(?i:answer):?\s*)?", before)
        if is_direct is None or re.match(r"[.):]\s+[A-Z](?!\s+hope)", after):
            return None
    parts = sentence.split("=")
    if len(parts) > 1 and not re.search(r"[(;]", parts[0]):
        for part in reversed(parts):
            inside = numbers_in(part)
            if inside and not re.search(r"[-+*/×÷^]\s*\(?[$\d]", part[inside[0][1] :]):
                return inside[0][2]
    return found[0][2]
