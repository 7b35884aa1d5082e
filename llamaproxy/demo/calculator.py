"""Arithmetic in Python's notation, evaluated without ``eval`` and within bounds."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

#: The longest expression, in characters; no nesting can be deeper.
MAX_LENGTH = 200

#: The largest whole number, in bits: about 3000 digits, which take no time to compute or print.
MAX_BITS = 10_000

_ALPHABET = re.compile(r"[0-9.eE+\-*/%() ]*")

_OPERATIONS: dict[type[ast.operator | ast.unaryop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """The value of *expression*; fractions are rounded to 15 significant digits.

    :raises ValueError: with the reason, if it is no arithmetic or has no such value.
    """
    text = expression.strip()
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression is longer than {MAX_LENGTH} characters")
    if not _ALPHABET.fullmatch(text):
        raise ValueError("only numbers, + - * / // % ** and parentheses can be calculated")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("this is not a complete arithmetic expression") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("the number is too large") from None
    return format(value, ".15g") if isinstance(value, float) else str(value)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value):
            pass
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATIONS:
            value = _OPERATIONS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            value = _result(op, _value(left), _value(right))
        case _:
            raise SyntaxError("no arithmetic")
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    if not math.isfinite(value) if isinstance(value, float) else value.bit_length() > MAX_BITS:
        raise OverflowError
    return value


def _result(op: ast.operator, left: int | float, right: int | float) -> Any:
    if isinstance(op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * abs(right) > MAX_BITS:  # known before it is computed
            raise OverflowError
    return _OPERATIONS[type(op)](left, right)
