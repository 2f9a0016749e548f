r"""The normal form of a mathematical answer: equal answers are equal strings.

Units, sizes of brackets and names (`x = 3`) are dropped, numbers and terms are brought to one order
and lists stay lists: `\frac{1}{2}`, `1/2` and `0.5` are equal, `1,2` and `2` are not. It follows
the normalisation of the MATH data set (Hendrycks et al., 2103.03874), which compares text, and goes
on with a parser for what that leaves apart: the order of terms, roots, decimals.
"""

import re
from fractions import Fraction

from triptych.datamodules.commune.number_form import SPACED_NUMBER, number_form, plain_characters

_SPACES = ("\\,", "\\;", "\\:", "\\ ", "\\quad", "\\qquad", "~")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits|[bB]igg?[lr]?)(?![A-Za-z])|\\[$()\[\]]|\$|°|\\%|%"
    r"|\^\s*\{?\s*\\(?:circ|degree)\s*\}?(?:\s*[CF](?![A-Za-z]))?|\\degree(?![A-Za-z])"
)
_SPELLED = (
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:le|leqslant)(?![A-Za-z])|≤", r"\\leq "),
    (r"\\(?:ge|geqslant)(?![A-Za-z])|≥", r"\\geq "),
    (r"\\ne(?![A-Za-z])|≠", r"\\neq "),
    (r"\\(?:varnothing|O)(?![A-Za-z])|∅|\\\{\s*\\\}", r"\\emptyset"),
    (r"π", r"\\pi "),
    (r"∞", r"\\infty "),
    (r"√", r"\\sqrt"),
    (r"²", "^2"),
    (r"³", "^3"),
)
_TEXT = (
    r"\\(?:text|textbf|textit|textrm|textup|mbox|mathrm|mathbf|mathit|operatorname)"
    r"\s*\{([^{}]*)\}"
)
_CONNECTIVE = re.compile(
    r"\\(?:text|mbox|textrm)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=[\d\w})])\s+(?:and|or)\s+(?=\S)"
)
_SHORT_UNITS = (
    "cm|mm|km|m|dm|in|ft|yd|mi|kg|g|mg|lb|lbs|oz|s|sec|min|h|hr|hrs|mph|L|l|mL|ml|J|N|V|W|K"
)
_POWER = r"(?:\s*\^\s*\{?\d\}?)?"
_UNIT = re.compile(
    rf"(?<=[\d.}})])(?:\s+(?:(?:{_SHORT_UNITS}|[A-Za-z]{{3,}})(?![A-Za-z(\\])[ /]?(?:per )?)+"
    rf"|(?:cm|mm|km|kg|ft|mph))\.?{_POWER}\s*$"
)
_TEXT_UNIT = re.compile(rf"(?<=\S)\s*(?:{_TEXT}{_POWER}\s*[/.]?\s*)+$")
_NAME = re.compile(
    r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Za-z]\s*\([A-Za-z]\)|[A-Za-z]{2,}[A-Za-z ]*)'?\s*"
)
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
_MATRIX = re.compile(
    r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.DOTALL
)
# As in \\textbf{(B)}\\ 12: the letter of an option, and the option.
_CHOICE = re.compile(r"\s*\\(?:text|textbf|mathrm|mathbf|textrm)\s*\{\s*\(?([A-J])[).:]*\s*\}")
_BASE = re.compile(r"([0-9A-Fa-f]+)_\{?(\d+)\}?")
_OPENING, _CLOSING = "([{", ")]}"


def normal_expression(text: str) -> str:
    r"""Bring an answer to its normal form.

    >>> normal_expression(r"  \dfrac{3}{4}\text{ cm}. "), normal_expression("1,000.0")
    ('0.75', '1000')
    >>> normal_expression("3+2x"), normal_expression("x = 2, 1"), normal_expression("(1, 2)")
    ('2*x + 3', '1,2', '(1,2)')
    """
    text = _cut_rows(plain_characters(text))
    text = text.replace("\\!", "").replace("{,}", ",")
    text = re.sub(r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", "", text)
    for space in _SPACES:
        text = re.sub(re.escape(space) + ("(?![A-Za-z])" if space[-1].isalpha() else ""), " ", text)
    for pattern, plain in _SPELLED:
        text = re.sub(pattern, plain, text)
    text = _DROPPED.sub("", text)
    return _form(text.strip().rstrip(".;").strip())


def _form(text: str) -> str:
    """Normalise cleaned text: a matrix, a union, a list, or one element."""
    if (matrix := _MATRIX.fullmatch(text.strip())) is not None:
        kind = "array" if matrix[1] in ("pmatrix", "bmatrix") else matrix[1]
        rows = [row for row in matrix[2].split(_ROW) if row.strip()]
        cells = ["[" + ",".join(_form(cell) for cell in row.split("&")) + "]" for row in rows]
        return f"{kind}[{','.join(cells)}]"
    if (whole := re.fullmatch(_TEXT, text.strip())) is not None:
        text = whole[1]
    if (choice := _CHOICE.match(text)) is not None:
        return choice[1]
    text = _CONNECTIVE.sub(",", text)
    text = _named(_without_unit(text)).strip()
    if len(parts := _split(text, "\\cup")) > 1:
        return "∪".join(sorted(_form(part) for part in parts))
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = SPACED_NUMBER.sub(lambda match: re.sub(r"\s", "", match[0]), text)
    if len(parts := _split(text, ",")) > 1:
        return ",".join(sorted(_form(part) for part in parts if part.strip()))
    if len(parts := _split(text, "\\pm")) == 2 and "=" not in text:
        left, right = parts
        return ",".join(sorted((_form(f"{left}+{right}"), _form(f"{left}-({right})"))))
    if (inside := _bracketed(text)) is not None:
        opening, body, closing = inside
        if len(parts := _split(body, ",")) > 1:
            forms = [_form(part) for part in parts]
            return opening + ",".join(sorted(forms) if opening == "{" else forms) + closing
        if opening == "{":
            return "{" + _form(body) + "}"
    return _element(text)


def _element(text: str) -> str:
    from triptych.datamodules.commune.expression_parser import (
        UnknownNotationError,
        parse_expression,
    )

    text = re.sub(_TEXT, r"\1", text).strip().strip("*").strip()
    if (base := _BASE.fullmatch(text.replace(" ", ""))) is not None:
        return f"{base[1]}_{base[2]}"
    mixed = re.fullmatch(r"(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)", text)
    if mixed is not None and int(mixed[4]):
        value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return number_form(-value if mixed[1] else value)
    # A word: its letters are no variables to be ordered.
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}|[A-Za-z]\s+[A-Za-z]{2,}", text) or (
        re.fullmatch(r"\(?[A-Za-z]{2,}\)?", text)
    ):
        return _as_text(text)
    try:
        value = parse_expression(text)
    except UnknownNotationError:
        return _as_text(text)
    if value.is_Rational:
        return number_form(Fraction(int(value.p), int(value.q)))
    return str(value)


def _as_text(text: str) -> str:
    """Compare what cannot be parsed as text, without spaces and with braces around arguments."""
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"([_^])\{(\w+)\}", r"\1\2", text)
    text = re.sub(r"\s+", "", text).strip("'\"")
    if re.fullmatch(r"\(?[A-Za-z]{2,}[A-Za-z'-]*\)?", text):
        return text.strip("()").casefold()
    return text


def _without_unit(text: str) -> str:
    """Drop a unit after something else; a word that is the whole answer stays."""
    cut = _TEXT_UNIT.sub("", text)
    if cut.strip() and not cut.rstrip().endswith(("=", "+", "-", "*", "{", "^", "_")):
        text = cut
    return _UNIT.sub("", text)


def _named(text: str) -> str:
    r"""Drop a name before a single equals sign, as in `x = 3`, or before `\in`."""
    parts = re.split(r"=|\\in(?![A-Za-z])", text)
    if len(parts) == 2 and parts[1].strip() and _NAME.fullmatch(re.sub(_TEXT, r"\1", parts[0])):
        return parts[1]
    if len(parts) > 1 and "," in text:  # x = 1, y = 2 or x = 1, x = 2
        named = [part.split("=") for part in _split(text, ",")]
        names = {part[0].strip() for part in named if len(part) == 2}
        if len(names) == 1 and _NAME.fullmatch(names.pop()):
            return ",".join(part[-1] for part in named)
    return text


def _split(text: str, separator: str) -> list[str]:
    """Split outside brackets."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        if text[place] in _OPENING:
            depth += 1
        elif text[place] in _CLOSING:
            depth -= 1
        elif depth == 0 and text.startswith(separator, place):
            parts.append(text[start:place])
            place = start = place + len(separator)
            continue
        place += 1
    return [*parts, text[start:]]


def _bracketed(text: str) -> tuple[str, str, str] | None:
    r"""Return the brackets around a whole text and what is inside; \{ counts as {."""
    text = text.replace("\\{", "{").replace("\\}", "}").strip()
    if len(text) < 2 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return None
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and place < len(text) - 1:
            return None
    return text[0], text[1:-1], text[-1]


_ROW = "\x00"


def _cut_rows(text: str) -> str:
    r"""Mark the row breaks `\\` of matrices, which a space after a backslash would look like."""
    return re.sub(r"\\\\(?:\[\w*\])?", _ROW, text)
