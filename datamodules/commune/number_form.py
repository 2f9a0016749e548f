r"""Numbers as models write them, and the one form in which equal numbers are equal strings.

Signs, currencies, thousands (1,000), fractions, mixed numbers, powers of ten and percent signs are
read; a minus between two operands is an operator and no sign.
"""

import re
from decimal import Decimal
from fractions import Fraction

# Longer numbers come from replies that repeat a digit without end.
_MOST_DIGITS = 60
_CURRENCY = r"(?:US\$|[$£€¥₹])"
_THOUSANDS = r"\d{1,3}(?:,\d{3})+(?!\d)"
_SPACED = r"\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?![\d.,]*\d)"
_UNSIGNED = rf"(?:{_THOUSANDS}|[\d]+)?(?:\.\d+|(?<=\d))"
# Not within a word (H2O), an exponent (cm^2) or an index (x_1), nor after a digit and a point.
_START = r"(?<![\w^])(?<![\^_]\{)(?<!\d[.,])"
_TENS = (
    r"(?:[eE](?P<e>[+-]?\d{1,3})(?!\w)"
    r"|\s*(?:×|x|\*)\s*10\s*\^\s*[({]?(?P<ten>[+-]?\d{1,3})[)}]?)"
)
_FRACTION = r"\s*/\s*(?P<below>\d{1,9})(?![\d.]*\d)"
_MIXED = r"(?P<whole>\d{1,9})\s+(?:and\s+)?(?P<over>\d{1,9})\s*/\s*(?P<under>\d{1,9})"
_SIGN = r"(?P<sign>(?<![\w)\]}.%])-|(?<![\w)\]}])\+)?"
NUMBER = re.compile(
    rf"{_START}{_SIGN}(?:{_CURRENCY}\s?)?(?P<inner>(?<=[$£€¥₹])-)?"
    rf"(?:{_MIXED}|(?P<plain>{_UNSIGNED})(?:{_TENS}|{_FRACTION})?)"
)
SPACED_NUMBER = re.compile(rf"(?<![\w.,]){_SPACED}")

_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5",
    "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_MINUS = str.maketrans({"\u2212": "-", "\u2010": "-", "\u2011": "-", "\ufe63": "-", "\uff0d": "-"})


def plain_characters(text: str) -> str:
    """Replace Unicode minus signs, vulgar fractions and fixed spaces by their plain forms.

    >>> plain_characters("\u22123 and 2½")
    '-3 and 2 1/2'
    """
    text = text.translate(_MINUS)
    text = re.sub(r"(?<![\d\w)])\s?[\u2013\u2014](?=[\d$.])", " -", text)  # a dash that is a sign
    for sign, written in _VULGAR.items():
        text = text.replace(sign, f" {written}")
    return text.replace("\u00a0", " ").strip() if "\u00a0" in text else text.strip()


def numbers_in(text: str) -> list[tuple[int, int, str]]:
    """Find the numbers in a text: start, end, and form of each.

    >>> numbers_in("2 1/2 cm^2 of $-1,000.50"), numbers_in("x-3, 1/0")
    ([(0, 5, '2.5'), (14, 24, '-1000.5')], [(2, 3, '3')])
    """
    found = []
    for match in NUMBER.finditer(text):
        if not match["plain"] and match["whole"] is None:
            continue
        form = _form_of(match)
        if form is not None:
            found.append((match.start(), match.end(), form))
    return found


def number_form(value: Fraction) -> str:
    """Write a number: as an integer, as a decimal that ends, or as a fraction in lowest terms.

    >>> [number_form(Fraction(*pair)) for pair in ((4, 2), (1, 4), (2, 6))]
    ['2', '0.25', '1/3']
    """
    if value.denominator == 1:
        return str(value.numerator)
    places = 0
    while places < _MOST_DIGITS and 10**places % value.denominator:
        places += 1
    if 10**places % value.denominator:
        return f"{value.numerator}/{value.denominator}"
    scaled = value.numerator * (10**places // value.denominator)
    return format(Decimal(scaled).scaleb(-places), "f")


def _form_of(match: re.Match[str]) -> str | None:
    sign = -1 if match["sign"] == "-" or match["inner"] else 1
    if match["whole"] is not None:
        below = int(match["under"])
        if not below:
            return None
        return number_form(sign * (int(match["whole"]) + Fraction(int(match["over"]), below)))
    digits = match["plain"].replace(",", "")
    if len(digits) > _MOST_DIGITS:
        return ("-" if sign < 0 else "") + digits
    value = sign * Fraction(digits)
    tens = match["e"] or match["ten"]
    if tens is not None:
        power = int(tens)
        if abs(power) > _MOST_DIGITS:
            return None
        return number_form(value * Fraction(10) ** power)
    if match["below"] is not None:
        below = int(match["below"])
        return None if not below else number_form(value / below)
    return number_form(value)
