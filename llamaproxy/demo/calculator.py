"""Arithmetic in text, evaluated without ``eval`` and within bounds.

Numbers, ``+ - * / // % **`` and parentheses mean what they mean in Python; the signs that people
use for times and divided by, and ``^`` for a power, are understood too.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

Number = int | float

#: Longer or deeper than anything that a person types.
MAX_LENGTH = 200
MAX_DEPTH = 40

#: The largest whole number, in bits: about 3000 digits, which take no time to compute or print.
MAX_BITS = 10_000

_SIGNS = str.maketrans(
    {
        "\N{MULTIPLICATION SIGN}": "*",
        "\N{DIVISION SIGN}": "/",
        "\N{MINUS SIGN}": "-",
        "^": "**",
    }
)
_ALPHABET = re.compile(r"[0-9.eE+\-*/%() ]*")

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """The value of *expression* as a person would write it, to 15 significant digits.

    :raises ValueError: with the reason, if there is no such value.
    """
    value = evaluate(expression)
    return format(value, ".15g") if isinstance(value, float) else str(value)


def evaluate(expression: str) -> Number:
    """The value of *expression*, exactly as Python has it.

    :raises ValueError: with the reason, if there is no such value.
    """
    return _value(parse(expression))


def parse(expression: str) -> ast.expr:
    """*expression* as a tree that holds nothing but arithmetic.

    :raises ValueError: with the reason, if it is anything else.
    """
    text = " ".join(in_ascii(expression).split())
    if not text:
        raise ValueError("there is nothing to calculate")
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression is longer than {MAX_LENGTH} characters")
    if not _ALPHABET.fullmatch(text):
        raise ValueError("only numbers, + - * / // % ** and parentheses can be calculated")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("this is not a complete arithmetic expression") from None
    _check(tree, MAX_DEPTH)
    return tree


def in_ascii(expression: str) -> str:
    """*expression* with Python's operators for those that people write."""
    return expression.translate(_SIGNS)


def _check(node: ast.expr, depth: int) -> None:
    if not depth:
        raise ValueError("the expression is too deeply nested")
    match node:
        case ast.Constant(value=int() | float()):
            return
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, depth - 1)
            _check(right, depth - 1)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            _check(operand, depth - 1)
        case _:
            raise ValueError("only numbers and arithmetic operators can be calculated")


def _value(node: ast.expr) -> Number:
    """The value of a tree that :func:`parse` has passed."""
    try:
        match node:
            case ast.BinOp():
                left, right = _value(node.left), _value(node.right)
                if isinstance(node.op, ast.Pow):
                    _check_power(left, right)
                return _bounded(_BINARY[type(node.op)](left, right))
            case ast.UnaryOp():
                return _bounded(_UNARY[type(node.op)](_value(node.operand)))
            case ast.Constant(value=int() | float() as number):
                return _bounded(number)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("the number is too large") from None
    raise ValueError("only numbers and arithmetic operators can be calculated")


def _check_power(base: Number, exponent: Number) -> None:
    """Refuse a power of whole numbers before it is computed, if it would be enormous."""
    if isinstance(base, int) and isinstance(exponent, int):
        if base.bit_length() * abs(exponent) > MAX_BITS:
            raise ValueError("the power is too large")


def _bounded(value: object) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ValueError("the number is too large")
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    raise ValueError("the number is too large")
