"""The arguments of a model's call, parsed as a JSON object and repaired where that is safe. Pure.

A tool is run with what the model wrote, or not at all: a guess could delete the wrong file. So a
repair counts only if the repaired value has each token of the text, and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from math import isfinite
from typing import Any

from llamaproxy import jsontext
from llamaproxy.errors import ToolFailed

#: What is repaired, in characters, and in characters times depth: the tolerant parser may read
#: the rest again for each open bracket, at some 5 µs a character, while nothing else is served.
_MAX_LENGTH = 64 * 1024
_MAX_EFFORT = 256 * 1024

#: The tokens that a damaged object may have. A string must be closed, and a bare word must be a
#: literal, JSON's or Python's, or a key.
_TOKEN = re.compile(
    r"""\s+ | [,:]
    | (?P<bracket>[{}\[\]])
    | (?P<string>"[^"\\]*(?:\\.[^"\\]*)*" | '[^'\\]*(?:\\.[^'\\]*)*')
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<key>[A-Za-z_$][\w$]*(?=\s*:))
    | (?P<literal>true|false|null|True|False|None)(?!\w)
    """,
    re.VERBOSE | re.DOTALL,
)
_LITERALS = {"true": True, "True": True, "false": False, "False": False}
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"} | {c: c for c in "\"'\\/"}

#: A key of an object, wherever it stands in the text; inside of strings there may be more.
_KEY = re.compile(r'"\s*:')


def parse_arguments(text: str) -> dict[str, Any]:
    """The object in *text* (DESIGN: L12).

    Valid JSON is never changed; a blank text means no arguments; damaged JSON is repaired if no
    token is lost or added.

    :raises ToolFailed: with a message for the model, if there is no object.
    """
    return understood(text)[0]


def understood(text: str) -> tuple[dict[str, Any], bool]:
    """The same, and whether *text* is that object as it stands."""
    if not text.strip():
        return {}, False
    try:
        value = _parse_strictly(text)
        if isinstance(value, dict):
            return value, True
        if isinstance(value, str):
            # The object was encoded twice.
            value = _parse_strictly(value) if value.strip() else None
    except ValueError as error:
        value = _parse_tolerantly(text, error)
    if value is None:
        return {}, False
    if not isinstance(value, dict):
        raise ToolFailed("Error: the arguments must be one JSON object, with a value by name.")
    return value, False


def _parse_strictly(text: str) -> Any:
    """:raises ValueError: if *text* is not JSON, or has a name twice in one object.

    Nor may it have NaN or an infinite number: sent on, that would be null.
    """
    value = jsontext.loads_exactly(text)
    if len(_KEY.findall(text)) != _count_keys(value):
        jsontext.check_unique_names(text)
    return value


def _count_keys(value: Any) -> int:
    """:raises ValueError: if there is NaN or an infinite number among the values."""
    count, pending = 0, [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            count += len(each)
            pending.extend(each.values())
        elif isinstance(each, list):
            pending.extend(each)
        elif isinstance(each, float) and not isfinite(each):
            raise ValueError("JSON has no NaN, no Infinity and no number as large as this")
    return count


def _parse_tolerantly(text: str, error: ValueError) -> Any:
    tokens = _tokens(text) if len(text) <= _MAX_LENGTH else None
    if tokens is not None and len(text) * _depth(tokens) <= _MAX_EFFORT:
        import json_repair  # most models write JSON; loaded in some 10 ms for the first that errs

        try:
            value = json_repair.loads(text)
        except (RecursionError, ValueError):
            value = None
        if isinstance(value, dict) and _tokens_agree(tokens, list(_tokens_of(value))):
            return value
    raise ToolFailed(f"Error: the arguments are not valid JSON ({error}). Call again, corrected.")


def _tokens(text: str) -> list[Any] | None:
    """The brackets, strings, numbers and literals of *text*.

    None if there is anything else, or more than one object.
    """
    tokens: list[Any] = []
    at = depth = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        kind, word = match.lastgroup, match[0]
        if kind is None:
            continue
        if kind == "bracket":
            opens = word in "{["
            if depth <= 0 and (opens if tokens else word != "{"):
                return None
            depth += 1 if opens else -1
            if depth >= 0:  # else: closed once too often
                tokens.append(_Bracket(word))
        elif depth <= 0:
            return None
        elif kind == "string":
            tokens.append(_unescaped(word[1:-1]))
        elif kind == "number":
            tokens.append(_Number(word))
        else:
            tokens.append(word if kind == "key" else _LITERALS.get(word))
    return tokens


class _Bracket(str):
    """A bracket, as opposed to the text of a string."""


class _Number(str):
    """A number as it was written."""

    def stands_for(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, int):
            return self in (str(value), f"-{value}" if value == 0 else "")
        return isfinite(value) and float(self) == value and not re.match("-?0[0-9]", self)


def _unescaped(text: str) -> str:
    """The text between the quotes of a string, unescaped; unknown escapes stay as they are."""

    def meaning(escape: re.Match[str]) -> str:
        if len(escape[1]) > 1:
            return chr(int(escape[1][1:], 16))
        return _ESCAPES.get(escape[1], escape[0])

    raw = _ESCAPE.sub(meaning, text)
    return raw.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _tokens_of(value: Any) -> Iterator[Any]:
    """The tokens of *value*, in the order in which they were written."""
    if isinstance(value, dict):
        yield _Bracket("{")
        for key, each in value.items():
            yield key
            yield from _tokens_of(each)
        yield _Bracket("}")
    elif isinstance(value, list):
        yield _Bracket("[")
        for each in value:
            yield from _tokens_of(each)
        yield _Bracket("]")
    else:
        yield value


def _tokens_agree(text_tokens: list[Any], value_tokens: list[Any]) -> bool:
    """Whether the two are equal, but for closing brackets that are missing at the text's end."""
    surplus = value_tokens[len(text_tokens) :]
    return (
        len(text_tokens) <= len(value_tokens)
        and all(isinstance(token, _Bracket) for token in surplus)
        and all(map(_token_agrees, text_tokens, value_tokens))
    )


def _token_agrees(token: Any, value: Any) -> bool:
    if isinstance(token, _Number):
        return token.stands_for(value)
    return type(token) is type(value) and bool(token == value)


def _depth(tokens: list[Any]) -> int:
    """How deep the brackets among *tokens* are nested."""
    steps = (1 if token in ("{", "[") else -1 for token in tokens if isinstance(token, _Bracket))
    return max(accumulate(steps), default=0)
