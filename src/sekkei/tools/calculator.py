"""Exact arithmetic on what a model wrote: parsed to a syntax tree, walked, never executed.

    calculate("0.1 + 0.2")         -> 3/10, shown as "0.3"
    calculate("2/3 * (7 - 1)**2")  -> 24
    calculate("9**9**9")           -> CalculatorError: the result would have more than 1,000 digits

Numbers are fractions, so decimals are what they say and nothing is rounded. Operators as in Python: + - * / // % **
(also written × ÷ − ^), parentheses, and the functions of `FUNCTIONS`; // and % round down. Every number, in between
too, has at most 1,000 digits above and below the line, which is checked before a power is computed.

It does not handle what has no exact answer here: sqrt(2), 2**0.5, trigonometry, logarithms. They are refused; nor
variables, units, percentages ("5%" is an error), or thousands separators ("1,250" would mean two arguments).
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from sekkei.core.errors import UserError

MAX_DIGITS = 1000
MAX_LENGTH = 500  # characters of an expression; keeps the tree shallow, too
_MAX_BITS = int(MAX_DIGITS * math.log2(10))
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**", "（": "(", "）": ")"})


class CalculatorError(UserError):
    """An expression without an exact value here. The message says which part, and why."""


def calculate(expression: str) -> Fraction:
    """The exact value.

    Raises:
        CalculatorError: not an expression of the kind above, no exact value, or too large.
    """
    text = expression.translate(_SPELLINGS).strip().removesuffix("=").strip()
    if not text:
        raise CalculatorError("the expression is empty")
    if len(text) > MAX_LENGTH:
        raise CalculatorError(f"the expression has {len(text):,} characters, at most {MAX_LENGTH} are read")
    try:
        return _Walk(text).value(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise CalculatorError(f"{expression.strip()!r} is not an expression ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError):
        raise CalculatorError(f"{expression.strip()[:60]!r} cannot be read as an expression") from None


def show(value: Fraction) -> str:
    """A whole number, a decimal where it ends (after at most 20 places), else a reduced fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1 or places > 20:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def answer(expression: str) -> str:
    """`show(calculate(expression))`."""
    return show(calculate(expression))


# -- functions --------------------------------------------------------------------------------------------------------


def _whole(name: str, value: Fraction) -> int:
    if value.denominator != 1:
        raise CalculatorError(f"{name} needs whole numbers, got {show(value)}")
    return value.numerator


def _natural(name: str, value: Fraction, most: int) -> int:
    number = _whole(name, value)
    if not 0 <= number <= most:
        raise CalculatorError(f"{name} needs whole numbers from 0 to {most:,}, got {number}")
    return number


def _sqrt(value: Fraction) -> Fraction:
    return _root(value, 2, f"sqrt({show(value)})")


def _root(value: Fraction, degree: int, name: str) -> Fraction:
    """The exact root, found by bisection on whole numbers."""
    if value < 0:
        raise CalculatorError(f"{name} is not a real number")
    roots = []
    for number in (value.numerator, value.denominator):
        low, high = 0, 1 << (number.bit_length() // degree + 1)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if middle**degree < number else (low, middle)
        if low**degree != number:
            raise CalculatorError(f"{name} is not a fraction, and only exact values are given")
        roots.append(low)
    return Fraction(*roots)


def _round(value: Fraction, places: Fraction = Fraction(0)) -> Fraction:
    """Halves away from zero, as at school (Python's own rounds them to even)."""
    scale = Fraction(10) ** max(min(_whole("round", places), MAX_DIGITS), -MAX_DIGITS)
    whole = math.floor(abs(value) * scale + Fraction(1, 2))
    return (-1 if value < 0 else 1) * whole / scale


FUNCTIONS: dict[str, Callable[..., Fraction | int]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": _round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": _sqrt,
    "gcd": lambda *values: math.gcd(*(_whole("gcd", value) for value in values)),
    "lcm": lambda *values: math.lcm(*(_whole("lcm", value) for value in values)),
    "factorial": lambda value: math.factorial(_natural("factorial", value, 449)),  # 450! has 1,001 digits
    "comb": lambda n, k: math.comb(_natural("comb", n, 3000), _natural("comb", k, 3000)),
}
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


# -- the walk ---------------------------------------------------------------------------------------------------------


class _Walk:
    """One expression's tree; `text` is kept because the digits of a decimal are in it and not in the tree."""

    def __init__(self, text: str) -> None:
        self.text = text

    def value(self, node: ast.expr) -> Fraction:
        found = self._value(node)
        if max(abs(found.numerator), found.denominator).bit_length() > _MAX_BITS:
            raise CalculatorError(f"the result would have more than {MAX_DIGITS:,} digits")
        return found

    def _value(self, node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return self._number(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self.value(node.operand)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp):
            return self._binary(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, [self.value(argument) for argument in node.args])
        raise CalculatorError(f"{self._source(node)!r} is not arithmetic; known: + - * / // % ** ( ) {_known()}")

    def _number(self, node: ast.Constant) -> Fraction:
        source = self._source(node)
        found = re.fullmatch(r"[0-9_]+|([0-9_]*\.?[0-9_]*)(?:[eE]([-+]?[0-9]+))?", source)
        if isinstance(node.value, bool) or not isinstance(node.value, int | float) or not found:
            raise CalculatorError(f"{source!r} is not a number written in decimal digits")
        if abs(int(found[2] or 0)) > MAX_DIGITS:
            raise CalculatorError(f"the result would have more than {MAX_DIGITS:,} digits")
        return Fraction(source.replace("_", ""))

    def _binary(self, node: ast.BinOp) -> Fraction:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Pow):
            return self._power(left, right)
        if type(node.op) not in _BINARY:
            raise CalculatorError(f"{self._source(node)!r}: known operators are + - * / // % **")
        if right == 0 and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod):
            raise CalculatorError(f"{self._source(node)!r} divides by zero")
        return Fraction(_BINARY[type(node.op)](left, right))

    def _power(self, base: Fraction, exponent: Fraction) -> Fraction:
        if base == 0 and exponent < 0:
            raise CalculatorError("a negative power of 0 divides by zero")
        if base in (0, 1):
            return Fraction(1) if exponent == 0 else base
        size = max(abs(base.numerator), base.denominator).bit_length() - 1
        if size * abs(exponent) > _MAX_BITS or abs(exponent) > _MAX_BITS or exponent.denominator > _MAX_BITS:
            if base != -1 or exponent.denominator != 1:
                raise CalculatorError(f"the result would have more than {MAX_DIGITS:,} digits")
            return Fraction(1 if exponent.numerator % 2 == 0 else -1)
        root = base
        if exponent.denominator != 1:
            root = _root(base, exponent.denominator, f"{show(base)} ** {exponent}")
        return root**exponent.numerator

    def _call(self, name: str, arguments: list[Fraction]) -> Fraction:
        if name not in FUNCTIONS:
            raise CalculatorError(f"no function {name!r}; known: {_known()}")
        if not arguments:
            raise CalculatorError(f"{name}() needs a number")
        try:
            return Fraction(FUNCTIONS[name](*arguments))
        except TypeError:
            if len(arguments) == 1 and name in ("min", "max"):
                return arguments[0]
            raise CalculatorError(f"{name}() does not take {len(arguments)} numbers") from None

    def _source(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node) or ast.unparse(node)


def _known() -> str:
    return ", ".join(FUNCTIONS)
