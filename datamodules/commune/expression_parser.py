r"""A parser of the LaTeX that answers are written in: numbers, variables, fractions, roots, powers.

It returns a sympy expression, whose automatic evaluation orders terms, reduces fractions and takes
squares out of roots, and which expands nothing: `2x+3` is `3+2x`, but `(x+1)^2` is not
`x^2+2x+1`, since questions ask for factors. What it does not know is an error, and the caller then
compares text.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy

_LONGEST, _MOST_POWER, _MOST_BITS, _MOST_FACTORIAL = 300, 64, 2048, 20
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "ln": sympy.log,
    "log": lambda value: sympy.Function("log10")(value),
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
}
_GREEK = frozenset(
    {"alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "phi", "varphi"}
    | {"omega", "rho", "sigma", "tau"}
)
_CONSTANTS = {"pi": sympy.pi, "infty": sympy.oo}
_TIMES = ("\\cdot", "\\times", "*", "·", "×", "\\ast")
_DIVIDED = ("\\div", "÷", "/")


class UnknownNotationError(ValueError):
    """The text is no expression of the notation that is known here."""


def parse_expression(text: str) -> sympy.Expr:
    r"""Parse an expression.

    Raises:
        UnknownNotationError: if it holds something else, or a power too large to write out.

    >>> parse_expression(r"3+2x"), parse_expression(r"\frac{-1}2"), parse_expression(r"2\sqrt3")
    (2*x + 3, -1/2, 2*sqrt(3))
    """
    if len(text) > _LONGEST:
        raise UnknownNotationError("the text is too long")
    reader = _Reader(text)
    try:
        found = reader.sum()
    except (RecursionError, TypeError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise UnknownNotationError(str(error)) from error
    if reader.peek():
        raise UnknownNotationError(f"{reader.peek()!r} is left over")
    if found.has(sympy.zoo, sympy.nan):
        raise UnknownNotationError("a division by zero")
    return found


class _Reader:
    r"""A recursive descent over characters, since \frac12 splits a number."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def peek(self) -> str:
        """Return the next command or character; empty at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        if self.at >= len(self.text):
            return ""
        end = self.at + 1
        if self.text[self.at] == "\\":
            while end < len(self.text) and self.text[end].isascii() and self.text[end].isalpha():
                end += 1
        return self.text[self.at : end]

    def take(self, *wanted: str) -> bool:
        """Move on if one of these comes next."""
        token = self.peek()
        if token and token in wanted:
            self.at += len(token)
            return True
        return False

    def expect(self, wanted: str) -> None:
        if not self.take(wanted):
            raise UnknownNotationError(f"{wanted} is missing")

    def sum(self) -> Any:
        self.depth += 1
        if self.depth > 20:
            raise UnknownNotationError("too many brackets")
        total = self.signed()
        while self.peek() in ("+", "-"):
            total = total + self.signed()
        self.depth -= 1
        return total

    def signed(self) -> Any:
        sign = 1
        while (token := self.peek()) in ("+", "-") and token:
            sign = -sign if token == "-" else sign
            self.at += 1
        return sign * self.product()

    def product(self) -> Any:
        value = self.power()
        while True:
            if self.take(*_TIMES):
                value = value * self.operand()
            elif self.take(*_DIVIDED):
                value = value / self.operand()
            elif self._starts_factor():
                value = value * self.power()
            else:
                return value

    def operand(self) -> Any:
        return -self.power() if self.take("-") else self.power()

    def _starts_factor(self) -> bool:
        token = self.peek()
        if not token or token[0].isdigit() or token == ".":
            return False  # two numbers side by side are no product
        if token[0] == "\\":
            return token[1:] in {"frac", "sqrt", "binom", *_FUNCTIONS, *_CONSTANTS} or (
                token[1:] in _GREEK
            )
        return token in "([{" or (token.isascii() and token.isalpha())

    def power(self) -> Any:
        base = self.atom()
        while self.take("!"):
            if not (base.is_Integer and 0 <= base <= _MOST_FACTORIAL):
                raise UnknownNotationError("a factorial of something else than a small integer")
            base = sympy.factorial(base)
        if not self.take("^"):
            return base
        return _raised(base, self.argument())

    def argument(self) -> Any:
        """Read {...}, one digit, one letter, or one command."""
        if self.take("{"):
            value = self.sum()
            self.expect("}")
            return value
        token = self.peek()
        if token.isascii() and token.isdigit():
            self.at += 1
            return sympy.Integer(token)
        if token == "-":
            self.at += 1
            return -self.argument()
        return self.atom()

    def atom(self) -> Any:
        token = self.peek()
        for opening, closing in (("(", ")"), ("{", "}"), ("[", "]")):
            if token == opening:
                self.at += 1
                value = self.sum()
                self.expect(closing)
                return value
        if token == "." or (token.isascii() and token.isdigit()):
            return self._number()
        if token.startswith("\\"):
            return self._command(token[1:])
        if token.isascii() and token.isalpha():
            self.at += 1
            return self._variable(token)
        raise UnknownNotationError(f"{token!r} is unknown")

    def _number(self) -> Any:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] in "0123456789.":
            self.at += 1
        try:
            value = Fraction(self.text[start : self.at])
        except ValueError as error:
            raise UnknownNotationError(str(error)) from error
        number = sympy.Rational(value.numerator, value.denominator)
        if value.denominator == 1 and self.peek() == "\\frac":  # a mixed number
            after = self.at
            part = self.atom()
            if part.is_Rational and 0 < part < 1:
                return number + part
            self.at = after
        return number

    def _variable(self, name: str) -> Any:
        if not self.take("_"):
            return sympy.Symbol(name)
        return sympy.Symbol(f"{name}_{self.argument()}")

    def _command(self, name: str) -> Any:
        self.at += 1 + len(name)
        if name == "frac":
            over = self.argument()
            return over / self.argument()
        if name == "binom":
            return sympy.Function("binom")(self.argument(), self.argument())
        if name == "sqrt":
            if self.take("["):
                index = self.sum()
                self.expect("]")
                if not (index.is_Integer and 2 <= index <= _MOST_POWER):
                    raise UnknownNotationError("a root of an unknown index")
                return sympy.root(self.argument(), index)
            return sympy.sqrt(self.argument())
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name in _FUNCTIONS:
            power = self.argument() if self.take("^") else None
            subscript = self.argument() if self.take("_") else None
            value = self.power()
            if subscript is not None:
                result = sympy.Function("log")(value, subscript)
            else:
                result = _FUNCTIONS[name](value)
            return result if power is None else _raised(result, power)
        if name in _GREEK:
            return self._variable(name)
        raise UnknownNotationError(f"\\{name} is unknown")


def _raised(base: Any, power: Any) -> Any:
    if base.is_Rational and power.is_Rational:
        bits = max(abs(int(base.p)), int(base.q)).bit_length()
        if abs(power) > _MOST_POWER or bits * abs(power) > _MOST_BITS:
            raise UnknownNotationError("a power too large to write out")
    elif power.is_Rational and abs(power) > 10 * _MOST_POWER:
        raise UnknownNotationError("a power too large to write out")
    return base**power
